// SPDX-License-Identifier: Apache-2.0
// SplitBlock and JoinBlock of kernels/kv_split.h on a GPU: a block that leaves for a store without
// loss, or comes from there, crosses the link between host and GPU taken apart.
//
// The program uses these types too (kernels/cuda_kernels.h), so this has no CUDA header.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/kv_dtype.h"
#include "device/cuda_api.h"
#include "kernels/kv_split_parts.h"

namespace penstock::kernels {

// A slab's layout, and those of what it becomes.
struct CudaKvSplit {
  KvDtype dtype = KvDtype::kF16;  // Not int8.
  std::int32_t block_tokens = 0;  // A power of two, of 8 at least.
  std::int32_t page_tokens = 0;   // Divides block_tokens.
  std::int32_t cache_layers = 0;
  std::int32_t kv_heads = 0;
  std::int32_t k_dim = 0;
  std::int32_t v_dim = 0;
  std::int64_t page_bytes = 0;
  std::int64_t k_bytes = 0;  // Of a page.
  // As KvSplitBlock has them; of use to SplitKvCuda alone.
  std::int64_t values = 0;  // Of a layer.
  std::int64_t code_bytes = 0;
  std::int64_t layer_bytes = 0;
  std::int64_t counts_at = 0;
  std::int64_t tails_at = 0;
  std::int64_t k_tail_bytes = 0;
  std::int64_t v_tail_bytes = 0;
};

// slab: aligned to 16. out: [KvSplitBlock::bytes], aligned to 4.
//
// Gives a cudaError_t: cudaErrorInvalidValue for int8 or shorter blocks, or what the launch said.
int SplitKvCuda(const CudaKvSplit& block, const std::byte* slab, std::byte* out,
                CudaStreamHandle stream);
// in: [in_bytes], a multiple of 16 that ends with the table, aligned to 16; as JoinBlock, with bytes of
// any content but for the table. slab: aligned to 16; every value of it is written, and nothing else.
int JoinKvCuda(const CudaKvSplit& block, const std::byte* in, std::size_t in_bytes, std::byte* slab,
               CudaStreamHandle stream);

}  // namespace penstock::kernels
