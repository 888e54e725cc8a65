// SPDX-License-Identifier: Apache-2.0
// EncodeBlock and DecodeBlock of kernels/kv_encoding.h on a GPU, of codecs that have a loss: a block
// that leaves for a store, or comes from there, crosses the link between host and GPU encoded.
//
// The program uses these types too (kernels/cuda_kernels.h), so this has no CUDA header.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/kv_dtype.h"
#include "device/cuda_api.h"
#include "kernels/kv_quant_way.h"

namespace penstock::kernels {

// Keys, or values, of every head and layer.
struct CudaKvPart {
  KvQuantWay way;
  std::int32_t dim = 0;
  // In a layer's payload: where those of head 0 begin, and bytes of each head.
  std::int64_t codes_at = 0;
  std::int64_t ranges_at = 0;
  std::int64_t codes_bytes = 0;
  std::int64_t ranges_bytes = 0;
};

// A slab's layout, and what becomes of it.
struct CudaKvBlock {
  KvDtype dtype = KvDtype::kF16;  // Not int8.
  std::int32_t block_tokens = 0;  // A power of two, of 8 at least.
  std::int32_t page_tokens = 0;   // Divides block_tokens.
  std::int32_t cache_layers = 0;
  std::int32_t kv_heads = 0;
  std::int64_t page_bytes = 0;
  std::int64_t k_bytes = 0;  // Of a page.
  std::int64_t layer_bytes = 0;
  CudaKvPart keys, values;
};

// slab: aligned to 16. out: [EncodedBlockBytes], aligned to 16.
//
// Gives a cudaError_t: cudaErrorInvalidValue for int8 or shorter blocks, or what the launch said.
int EncodeKvCuda(const CudaKvBlock& block, const std::byte* slab, std::byte* out,
                 CudaStreamHandle stream);
// in: the layers, aligned to 8, of any content. slab: aligned to 16; every value of it is written, and
// nothing else. As EncodeKvCuda.
int DecodeKvCuda(const CudaKvBlock& block, const std::byte* in, std::byte* slab,
                 CudaStreamHandle stream);

}  // namespace penstock::kernels
