// SPDX-License-Identifier: Apache-2.0
// The KV of a block as the codecs int8, k8v4, kivi4 and kivi2 keep it: keys and values, each in one
// of the ways of kernels/kv_codec_quant.h; and, of whole blocks, the lossless way of
// kernels/kv_split.h, too.
//
// With a loss, a cache layer becomes four planes, one behind the other: codes of keys, ranges of keys, codes of
// values, ranges of values, each by head. Ranges are scales, then (but for int8) minima, of one
// head; then those of the next. No pointer needs alignment. Pure functions; any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/kv_spec.h"
#include "kernels/kv_codec_quant.h"
#include "kernels/kv_quant_way.h"

namespace penstock::kernels {

// K or V of one head and cache layer: [block_tokens, dim].
KvMatrix MatrixOf(const PageLayout& layout, bool keys);

std::size_t CodeBytes(const KvQuantWay& way, const KvMatrix& m);
std::size_t RangeBytes(const KvQuantWay& way, const KvMatrix& m);
// x: [rows, dim] of m.dtype; codes: [CodeBytes]; ranges: [RangeBytes].
void EncodeMatrix(const KvQuantWay& way, const KvMatrix& m, const std::byte* x, std::byte* codes,
                  std::byte* ranges);
void DecodeMatrix(const KvQuantWay& way, const KvMatrix& m, const std::byte* codes,
                  const std::byte* ranges, std::byte* x);

// Of one cache layer.
struct KvPlanes {
  KvPlanes(const KvEncoding& encoding, const KvMatrix& k, const KvMatrix& v, std::int32_t kv_heads);
  KvPlanes(const KvEncoding& encoding, const PageLayout& layout);
  std::size_t layer_bytes() const { return bytes[0] + bytes[1] + bytes[2] + bytes[3]; }
  // Where the codes and the ranges of a head's keys or values are.
  std::size_t CodesAt(bool keys, std::int32_t head) const {
    return (keys ? 0 : bytes[0] + bytes[1]) + static_cast<std::size_t>(head) * codes(keys);
  }
  std::size_t RangesAt(bool keys, std::int32_t head) const {
    return CodesAt(keys, 0) + bytes[keys ? 0 : 2] + static_cast<std::size_t>(head) * ranges(keys);
  }
  // Of one head.
  std::size_t codes(bool keys) const { return bytes[keys ? 0 : 2] / heads; }
  std::size_t ranges(bool keys) const { return bytes[keys ? 1 : 3] / heads; }

  std::size_t heads = 0;
  std::size_t bytes[4] = {};
};

// Whether Ops::EncodeBlock and Ops::DecodeBlock take blocks of this layout: of floats, and of 8
// tokens at least.
bool OpsEncode(const PageLayout& layout);

// A whole block: its layers one behind the other, then a byte per layer, head, and K or V, in this
// order, that is 0 where all values could be taken. Where one could not, being beyond 65,504 or no
// number, the codes and ranges of that K or V are anything. Lossless: KvSplitBlock.
std::size_t EncodedBlockBytes(const KvEncoding& encoding, const PageLayout& layout);
// Of any encoding. OpsEncode(layout).
std::size_t EncodedBlockBytesMax(const PageLayout& layout);
// slab: of `layout`, which has pages of any size, not of int8. out: [EncodedBlockBytes]. The
// specification of Ops::EncodeBlock, which has a GPU do it.
void EncodeBlock(const KvEncoding& encoding, const PageLayout& layout, const std::byte* slab,
                 std::byte* out);

// What DecodeBlock takes: the layers of a block, one behind the other; lossless, what
// kernels/kv_split.h's JoinBlock takes.
struct EncodedBlock {
  KvEncoding encoding = {};
  std::vector<std::byte> bytes = {};
};
// At most, of any encoding.
std::size_t EncodedBytesMax(const PageLayout& layout);
// `encoded`: [bytes], of any content but for the table of lossless ones; CHECKs how many there are
// of others. Writes every value of `slab`, as EncodeBlock's. The specification of Ops::DecodeBlock.
void DecodeBlock(const KvEncoding& encoding, const PageLayout& layout,
                 std::span<const std::byte> encoded, std::byte* slab);

}  // namespace penstock::kernels
