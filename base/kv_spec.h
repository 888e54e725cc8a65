// SPDX-License-Identifier: Apache-2.0
// The shape of a model's KV cache, and where its bytes lie in a pool.
//
// page: one cache layer, one KV head, page_tokens tokens: K [page_tokens, k_dim] then V
// [page_tokens, v_dim], row-major, contiguous.
//
// slab: the pages of one block and one group: [cache_layers, kv_heads, pages_per_block] pages,
// contiguous, padded to 4 KiB. So one slab id per block names the KV of all layers and heads of a
// group.
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

std::size_t BytesPerElement(KvDtype dtype);
std::string_view ToString(KvDtype dtype);  // "f16", "bf16", "f32".
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

// Byte offsets inside the slabs of one group.
struct PageLayout {
  std::int32_t block_tokens = 32;
  std::int32_t page_tokens = 32;  // Divides block_tokens.
  KvGroup group;

  // INVALID_ARGUMENT naming the field and both numbers: sizes must be positive, block_tokens a
  // power of two up to 1,024, page_tokens a divisor of it, k_dim and v_dim multiples of 8 up to
  // 1,024.
  static absl::StatusOr<PageLayout> Make(const KvGroup& group, std::int32_t block_tokens,
                                         std::int32_t page_tokens);

  std::size_t k_bytes() const {
    return std::size_t{1} * page_tokens * group.k_dim * BytesPerElement(group.dtype);
  }
  std::size_t v_bytes() const {
    return std::size_t{1} * page_tokens * group.v_dim * BytesPerElement(group.dtype);
  }
  std::size_t page_bytes() const { return k_bytes() + v_bytes(); }
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
