// SPDX-License-Identifier: Apache-2.0
// How GPU kernels find and read the pages of kernels/batch_cuda.h. For kernel files only.
#pragma once

#include "kernels/gpu.h"
//
#include <bit>

#include "kernels/batch_cuda.h"
#include "kernels/bf16_cuda.h"

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

// Of an int8 page: where the scale of the K (or V) row of a token in it lies.
GPU_DEVICE std::int64_t ScaleAt(const CudaKv& kv, std::int32_t in_page, bool is_k) {
  return kv.scales_at + 2 * std::int64_t{in_page + (is_k ? 0 : kv.page_tokens)};
}

// The element type of pages: bytes of one, and the exact widening of 8 that follow each other, in
// memory aligned to 8 of them, or to 16 where those are more. kScaled: what is widened is a level,
// and comes out times the scale of its row; others do not look at `scale`.
template <KvDtype dtype>
struct KvElements {
  static constexpr int kBytes = 2;
  static constexpr bool kScaled = false;
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
  GPU_DEVICE void Widen(float /*scale*/, float (&x)[8]) const {
    Widen2(words.x, x[0], x[1]);
    Widen2(words.y, x[2], x[3]);
    Widen2(words.z, x[4], x[5]);
    Widen2(words.w, x[6], x[7]);
  }
  // Elements 2 * pair and 2 * pair + 1 of a row in memory.
  GPU_DEVICE static void Pair(const void* row, int pair, float /*scale*/, float& low, float& high) {
    Widen2(gpu::Load<std::uint32_t>(static_cast<const std::byte*>(row) + 4 * pair), low, high);
  }
};

template <>
struct KvElements<KvDtype::kF32> {
  static constexpr int kBytes = 4;
  static constexpr bool kScaled = false;
  float4 words[2];

  GPU_DEVICE static KvElements Load(const void* p) {
    return {{gpu::Load<float4>(p), gpu::Load<float4>(static_cast<const std::byte*>(p) + 16)}};
  }
  GPU_DEVICE static KvElements Zero() { return {{{0, 0, 0, 0}, {0, 0, 0, 0}}}; }
  GPU_DEVICE void Widen(float /*scale*/, float (&x)[8]) const {
    x[0] = words[0].x;
    x[1] = words[0].y;
    x[2] = words[0].z;
    x[3] = words[0].w;
    x[4] = words[1].x;
    x[5] = words[1].y;
    x[6] = words[1].z;
    x[7] = words[1].w;
  }
  GPU_DEVICE static void Pair(const void* row, int pair, float /*scale*/, float& low, float& high) {
    const auto two = gpu::Load<float2>(static_cast<const std::byte*>(row) + 8 * pair);
    low = two.x;
    high = two.y;
  }
};

template <>
struct KvElements<KvDtype::kInt8> {
  static constexpr int kBytes = 1;
  static constexpr bool kScaled = true;
  uint2 words;

  GPU_DEVICE static KvElements Load(const void* p) { return {gpu::Load<uint2>(p)}; }
  GPU_DEVICE static KvElements Zero() { return {uint2{0, 0}}; }
  // Byte i of a word, as a level: its unsigned form becomes the last bits of 2^23, exactly, which
  // takes fewer and faster instructions than a conversion.
  GPU_DEVICE static float Level(std::uint32_t word_plus_128, int i) {
    constexpr std::uint32_t kTwoTo23 = 0x4b000000u;
    const auto selector = static_cast<std::uint32_t>(0x7440 + i);
    const std::uint32_t bits = gpu::PickBytes(word_plus_128, kTwoTo23, selector);
    return gpu::FloatFromBits(bits) - (0x1p23f + 128);
  }
  GPU_DEVICE static std::uint32_t Plus128(std::uint32_t word) { return word ^ 0x80808080u; }

  GPU_DEVICE void Widen(float scale, float (&x)[8]) const {
    const std::uint32_t low = Plus128(words.x);
    const std::uint32_t high = Plus128(words.y);
    GPU_UNROLL(4) for (int i = 0; i < 4; ++i) {
      x[i] = Level(low, i) * scale;
      x[4 + i] = Level(high, i) * scale;
    }
  }
  GPU_DEVICE static void Pair(const void* row, int pair, float scale, float& low, float& high) {
    const std::uint32_t word =
        Plus128(gpu::Load<std::uint16_t>(static_cast<const std::byte*>(row) + 2 * pair));
    low = Level(word, 0) * scale;
    high = Level(word, 1) * scale;
  }
};

}  // namespace penstock::kernels
