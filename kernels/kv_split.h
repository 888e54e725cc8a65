// SPDX-License-Identifier: Apache-2.0
// Whole blocks taken apart without loss, as the codec planes keeps them: kernels/kv_codec_planes.h of
// each unit, which is the K or the V of one head and layer, [block_tokens, dim]. Of F32 the upper
// halves are taken apart, as BF16; the lower ones stay as they are.
//
// Bytes of rest and codes are known beforehand, and where each unit's lie; how many escapes a unit
// has is not, and what follows them in a frame moves with that. So that all units can be worked on
// at a time, a block that was split (KvSplitBlock) has room for a sixteenth of a unit's values as
// escapes, beside it how many there are, and a unit that has more is left to who can wait; and one
// that is to be joined (KvJoinUnit) comes with a table of where the parts of each unit begin, made by
// who has checked them. A pass over a unit's codes counts its escapes by parts, a second one does
// the work: 2 n bytes in and some 1.6 n out, or the reverse, is all that memory sees, far ahead of
// any link.
//
// No pointer needs alignment but where it says so. Pure functions; any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/kv_spec.h"
#include "kernels/kv_codec_planes.h"
#include "kernels/kv_split_parts.h"

namespace penstock::kernels {

// What units of this dtype are taken apart as.
constexpr KvDtype KvHalfType(KvDtype dtype) {
  return dtype == KvDtype::kF16 ? KvDtype::kF16 : KvDtype::kBF16;
}

// The exponents that have codes: one byte, the first of them, or kKvByColumn and that of each column.
inline constexpr std::byte kKvByColumn{0xFF};
struct KvUnitSplit {
  std::size_t firsts_bytes = 0;
  std::size_t escapes = 0;
};
// x: [rows, dim] of F16 or BF16, a multiple of 8 of them. rest: [n]; codes: [KvCodeBytes]; firsts: room
// for 1 + dim; escapes: room for n.
KvUnitSplit SplitUnit(KvDtype dtype, std::int32_t rows, std::int32_t dim, const std::byte* x,
                      std::byte* rest, std::byte* codes, std::byte* firsts, std::byte* escapes);
// The reverse, given firsts: [1], or [1 + dim]. As JoinExponents.
std::size_t JoinUnit(KvDtype dtype, std::int32_t rows, std::int32_t dim, const std::byte* rest,
                     const std::byte* codes, const std::byte* firsts, const std::byte* escapes,
                     std::size_t escapes_bytes, std::byte* x);
// How many of n values escape by their codes; n is a multiple of 32.
std::size_t CountEscapes(KvDtype dtype, const std::byte* codes, std::size_t n);

// K or V of one head and cache layer from its pages to [block_tokens, dim], and back.
void GatherUnit(const PageLayout& layout, const std::byte* slab, std::int32_t layer,
                std::int32_t head, bool keys, std::byte* to);
void ScatterUnit(const PageLayout& layout, const std::byte* from, std::int32_t layer,
                 std::int32_t head, bool keys, std::byte* slab);

// ---- A block that was split: layers one behind the other, each of rest, codes and, of F32, the
// lower halves, of all its units, head after head, K before V; then [layers, units] counts of escapes
// (uint32), kKvSplitNone where there are too many, and all else of that unit is anything; then of each
// unit its firsts, with room for 1 + dim, and its escapes, with room for EscapesMax.
struct KvSplitBlock {
  // OpsEncode of kernels/kv_encoding.h.
  explicit KvSplitBlock(const PageLayout& layout);

  // Of a unit of keys, or values.
  std::size_t ValuesOf(bool keys) const { return keys ? k_values : v_values; }
  std::size_t EscapesMax(bool keys) const { return ValuesOf(keys) / 16; }
  std::size_t DimOf(bool keys) const { return keys ? k_dim : v_dim; }
  std::size_t TailBytes(bool keys) const { return 1 + DimOf(keys) + EscapesMax(keys); }
  // Of a unit in its layer: values before it.
  std::size_t ValuesAt(std::size_t head, bool keys) const {
    return head * (k_values + v_values) + (keys ? 0 : k_values);
  }
  std::size_t half_bytes() const { return halves ? 2 * values : 0; }
  std::size_t layer_bytes() const { return values + code_bytes + half_bytes(); }
  std::size_t CountAt(std::size_t layer, std::size_t head, bool keys) const {
    return layers * layer_bytes() + 4 * (2 * (layer * heads + head) + (keys ? 0 : 1));
  }
  std::size_t TailAt(std::size_t layer, std::size_t head, bool keys) const {
    return layers * (layer_bytes() + 8 * heads) +
           (layer * heads + head) * (TailBytes(true) + TailBytes(false)) +
           (keys ? 0 : TailBytes(true));
  }
  std::size_t bytes() const { return TailAt(layers, 0, true); }

  std::size_t layers, heads, k_dim, v_dim;
  std::size_t k_values, v_values;  // Of a unit.
  std::size_t values, code_bytes;  // Of a layer.
  bool halves;                     // F32.
};
// out: [KvSplitBlock::bytes], aligned to 4. Takes what EncodeBlock takes.
void SplitBlock(const PageLayout& layout, const std::byte* slab, std::byte* out);

// ---- A block that is to be joined: bytes in any order, up to a multiple of 16, and, at the end,
// [layers, units] of KvJoinUnit.
std::size_t KvJoinTableBytes(const PageLayout& layout);
// Of all, at most.
std::size_t KvJoinBytesMax(const PageLayout& layout);
// The table, aligned to 8 in `bytes`, must be right. Escapes that a unit has not are 0.
void JoinBlock(const PageLayout& layout, std::span<const std::byte> bytes, std::byte* slab);

}  // namespace penstock::kernels
