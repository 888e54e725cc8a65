// SPDX-License-Identifier: Apache-2.0
// The shape of a model's KV cache, and where its bytes lie in a pool.
//
// page: one cache layer, one KV head, page_tokens tokens: K [page_tokens, k_dim] then V
// [page_tokens, v_dim], row-major, contiguous. In an int8 page these are levels, and behind them lie
// the scales of the K rows [page_tokens] and of the V rows [page_tokens], F16; the value of a level
// is level * scale of its row, which a float holds exactly. Scales are at least 0 or a NaN, and
// levels from -127 to 127 (kernels/elementwise.h has the rule of writing).
//
// slab: the pages of one block and one group: [cache_layers, kv_heads, pages_per_block] pages,
// contiguous, padded to 4 KiB. So one slab id per block names the KV of all layers and heads of a
// group. Pages, and K and V in them, begin at multiples of 16 bytes of it.
//
// Plain values; any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/kv_dtype.h"

namespace penstock {

std::size_t BytesPerElement(KvDtype dtype);  // Of a level, with int8.
// Of the scale that a K or V row of one token and head has; 0 but with int8.
std::size_t ScaleBytes(KvDtype dtype);
std::string_view ToString(KvDtype dtype);  // "f16", "bf16", "f32", "int8".
absl::StatusOr<KvDtype> ParseKvDtype(std::string_view text);

// Layers that keep the same tokens and have pages of the same shape.
struct KvGroup {
  // 0: every token is kept. w: a token sees itself and the w - 1 before it.
  std::int32_t window_tokens = 0;
  std::int32_t cache_layers = 0;
  std::int32_t kv_heads = 0;
  std::int32_t k_dim = 0;
  std::int32_t v_dim = 0;
  KvDtype dtype = KvDtype::kF16;

  // K and V of one token in all layers and heads.
  std::size_t BytesPerToken() const;
};

// Which cache layer a model layer reads and writes. Several layers may name the same one.
struct KvLayerRef {
  std::int32_t group = 0;
  std::int32_t cache_layer = 0;
};

struct KvSpec {
  std::vector<KvGroup> groups;
  std::vector<KvLayerRef> layers;  // One per model layer.

  // Bytes of KV that one more token costs over all groups, were none of them windowed.
  std::size_t BytesPerToken() const;
};

// K, V, or the scales of one: [page_tokens, row_bytes] from `offset` on in a page.
struct PagePart {
  std::size_t offset = 0;
  std::size_t row_bytes = 0;
};

// Byte offsets inside the slabs of one group.
struct PageLayout {
  std::int32_t block_tokens = 32;
  std::int32_t page_tokens = 32;  // Divides block_tokens.
  KvGroup group;

  // INVALID_ARGUMENT naming the field and both numbers: sizes must be positive, block_tokens a
  // power of two up to 1,024, page_tokens a divisor of it (with int8 a multiple of 4, for
  // the sake of alignment), k_dim and v_dim multiples of 8 up to 1,024.
  static absl::StatusOr<PageLayout> Make(const KvGroup& group, std::int32_t block_tokens,
                                         std::int32_t page_tokens);

  std::size_t k_row_bytes() const {
    return static_cast<std::size_t>(group.k_dim) * BytesPerElement(group.dtype);
  }
  std::size_t v_row_bytes() const {
    return static_cast<std::size_t>(group.v_dim) * BytesPerElement(group.dtype);
  }
  // K and V without scales.
  std::size_t k_bytes() const { return static_cast<std::size_t>(page_tokens) * k_row_bytes(); }
  std::size_t v_bytes() const { return static_cast<std::size_t>(page_tokens) * v_row_bytes(); }
  // The scales of K, and as many of V.
  std::size_t scales_bytes() const {
    return static_cast<std::size_t>(page_tokens) * ScaleBytes(group.dtype);
  }
  std::size_t page_bytes() const { return k_bytes() + v_bytes() + 2 * scales_bytes(); }
  // Where they begin in a page; K at 0.
  std::size_t v_offset() const { return k_bytes(); }
  std::size_t k_scales_offset() const { return k_bytes() + v_bytes(); }
  std::size_t v_scales_offset() const { return k_scales_offset() + scales_bytes(); }
  // K and V, with int8 also their scales: what a page consists of, in the order of its bytes.
  std::vector<PagePart> Parts() const;
  std::int32_t pages_per_block() const { return block_tokens / page_tokens; }
  // Unpadded bytes of one block, the figure that travels.
  std::size_t block_bytes() const {
    return page_bytes() * pages_per_block() * group.kv_heads * group.cache_layers;
  }
  std::size_t slab_bytes() const { return (block_bytes() + 4095) / 4096 * 4096; }
  std::size_t PageOffset(std::int32_t cache_layer, std::int32_t kv_head,
                         std::int32_t page_in_block) const {
    return ((std::size_t{1} * cache_layer * group.kv_heads + kv_head) * pages_per_block() +
            page_in_block) *
           page_bytes();
  }
};

}  // namespace penstock
