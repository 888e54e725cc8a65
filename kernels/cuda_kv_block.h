// SPDX-License-Identifier: Apache-2.0
// A block's layout and encoding as kernels/kv_encoding_cuda.h and kernels/kv_split_cuda.h read them.
#pragma once

#include "base/kv_spec.h"
#include "kernels/kv_encoding.h"
#include "kernels/kv_encoding_cuda.h"
#include "kernels/kv_split.h"
#include "kernels/kv_split_cuda.h"

namespace penstock::kernels {

inline CudaKvBlock CudaKvBlockOf(const KvEncoding& encoding, const PageLayout& layout) {
  const KvPlanes planes(encoding, layout);
  const auto part = [&](bool keys) -> CudaKvPart {
    return {.way = keys ? encoding.keys : encoding.values,
            .dim = keys ? layout.group.k_dim : layout.group.v_dim,
            .codes_at = static_cast<std::int64_t>(planes.CodesAt(keys, 0)),
            .ranges_at = static_cast<std::int64_t>(planes.RangesAt(keys, 0)),
            .codes_bytes = static_cast<std::int64_t>(planes.codes(keys)),
            .ranges_bytes = static_cast<std::int64_t>(planes.ranges(keys))};
  };
  return {.dtype = layout.group.dtype,
          .block_tokens = layout.block_tokens,
          .page_tokens = layout.page_tokens,
          .cache_layers = layout.group.cache_layers,
          .kv_heads = layout.group.kv_heads,
          .page_bytes = static_cast<std::int64_t>(layout.page_bytes()),
          .k_bytes = static_cast<std::int64_t>(layout.k_bytes()),
          .layer_bytes = static_cast<std::int64_t>(planes.layer_bytes()),
          .keys = part(true),
          .values = part(false)};
}

inline CudaKvSplit CudaKvSplitOf(const PageLayout& layout) {
  const KvSplitBlock block(layout);
  const auto bytes = [](std::size_t n) { return static_cast<std::int64_t>(n); };
  return {.dtype = layout.group.dtype,
          .block_tokens = layout.block_tokens,
          .page_tokens = layout.page_tokens,
          .cache_layers = layout.group.cache_layers,
          .kv_heads = layout.group.kv_heads,
          .k_dim = layout.group.k_dim,
          .v_dim = layout.group.v_dim,
          .page_bytes = bytes(layout.page_bytes()),
          .k_bytes = bytes(layout.k_bytes()),
          .values = bytes(block.values),
          .code_bytes = bytes(block.code_bytes),
          .layer_bytes = bytes(block.layer_bytes()),
          .counts_at = bytes(block.CountAt(0, 0, true)),
          .tails_at = bytes(block.TailAt(0, 0, true)),
          .k_tail_bytes = bytes(block.TailBytes(true)),
          .v_tail_bytes = bytes(block.TailBytes(false))};
}

}  // namespace penstock::kernels
