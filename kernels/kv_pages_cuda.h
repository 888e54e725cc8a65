// SPDX-License-Identifier: Apache-2.0
// How GPU kernels find and read the pages of kernels/batch_cuda.h. For kernel files only.
#pragma once

#include "kernels/gpu.h"
//
#include <bit>

#include "kernels/batch_cuda.h"

namespace penstock::kernels {

// Of sizes that are powers of two, since GPUs divide slowly.
struct KvShifts {
  std::int32_t page = 0;        // log2(page_tokens)
  std::int32_t block_page = 0;  // log2(pages in a block)

  static KvShifts Of(const CudaKv& kv) {
    const auto page = std::countr_zero(static_cast<std::uint32_t>(kv.page_tokens));
    return {page, std::countr_zero(static_cast<std::uint32_t>(kv.block_tokens)) - page};
  }
};

// Where page `page` of a sequence (positions page * page_tokens on) begins, for one KV head.
GPU_DEVICE std::byte* PageAt(const CudaKv& kv, KvShifts shifts, const CudaSequence& sequence,
                             std::int32_t kv_head, std::int32_t page) {
  const std::int32_t block = page >> shifts.block_page;
  const std::int32_t in_block = page - (block << shifts.block_page);
  const std::uint32_t slab = kv.slabs[sequence.slabs_begin + block - sequence.first_block];
  const std::uint32_t pool = slab & 255;
  const std::int64_t index =
      (((std::int64_t{kv.cache_layer} * kv.kv_heads + kv_head) << shifts.block_page) + in_block);
  return kv.pool_base[pool] + (slab >> 8) * kv.pool_stride_bytes[pool] + index * kv.page_bytes;
}

// The element type of pages: bytes of one, and the exact widening of 8 that follow each other, in
// memory aligned to 16.
template <KvDtype dtype>
struct KvElements {
  static constexpr int kBytes = 2;
  uint4 words;

  GPU_DEVICE static KvElements Load(const void* p) { return {gpu::Load<uint4>(p)}; }
  GPU_DEVICE static KvElements Zero() { return {uint4{0, 0, 0, 0}}; }
  // The two of one word.
  GPU_DEVICE static void Widen2(std::uint32_t word, float& low, float& high) {
    if constexpr (dtype == KvDtype::kF16) {
      low = gpu::FromF16(static_cast<std::uint16_t>(word));
      high = gpu::FromF16(static_cast<std::uint16_t>(word >> 16));
    } else {
      low = gpu::FloatFromBits(word << 16);
      high = gpu::FloatFromBits(word & 0xffff0000u);
    }
  }
  GPU_DEVICE void Widen(float (&x)[8]) const {
    Widen2(words.x, x[0], x[1]);
    Widen2(words.y, x[2], x[3]);
    Widen2(words.z, x[4], x[5]);
    Widen2(words.w, x[6], x[7]);
  }
  // Elements 2 * pair and 2 * pair + 1 of a row in memory.
  GPU_DEVICE static void Pair(const void* row, int pair, float& low, float& high) {
    Widen2(gpu::Load<std::uint32_t>(static_cast<const std::byte*>(row) + 4 * pair), low, high);
  }
};

template <>
struct KvElements<KvDtype::kF32> {
  static constexpr int kBytes = 4;
  float4 words[2];

  GPU_DEVICE static KvElements Load(const void* p) {
    return {{gpu::Load<float4>(p), gpu::Load<float4>(static_cast<const std::byte*>(p) + 16)}};
  }
  GPU_DEVICE static KvElements Zero() { return {{{0, 0, 0, 0}, {0, 0, 0, 0}}}; }
  GPU_DEVICE void Widen(float (&x)[8]) const {
    x[0] = words[0].x;
    x[1] = words[0].y;
    x[2] = words[0].z;
    x[3] = words[0].w;
    x[4] = words[1].x;
    x[5] = words[1].y;
    x[6] = words[1].z;
    x[7] = words[1].w;
  }
  GPU_DEVICE static void Pair(const void* row, int pair, float& low, float& high) {
    const auto two = gpu::Load<float2>(static_cast<const std::byte*>(row) + 8 * pair);
    low = two.x;
    high = two.y;
  }
};

}  // namespace penstock::kernels
