// SPDX-License-Identifier: Apache-2.0
// What the kernels behind kernels/attention_cuda.h share. For kernel files only.
#pragma once

#include "kernels/gpu.h"
//
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/batch_cuda.h"
#include "kernels/exp_cuda.h"
#include "kernels/kv_pages_cuda.h"

namespace penstock::kernels {

inline constexpr int kCudaPartition = 256;  // kPartitionTokens of kernels/attention.h.
inline constexpr int kStreamRowsMax = 16;   // Rows (token, head of one KV head) that are streamed.

// Blocks of tiles that fill a GPU: 132 SMs of an H100 take two each.
inline constexpr int kTilesMin = 264;

// One call of AttentionCuda. Row i of a sequence and KV head is token i / group, head i % group.
struct AttentionLaunch {
  const float* q = nullptr;  // [rows, qo_heads * k_dim]
  float* out = nullptr;      // [rows, qo_heads * v_dim]
  float factor = 0;          // scale * log2(e)
  std::int32_t qo_heads = 0;
  std::int32_t group = 0;  // qo_heads / kv_heads
  KvShifts shifts;
  CudaKv kv;
  // Sequences of up to this many rows * group are streamed, and of up to `split_tokens` rows are
  // split: they leave states, of which [sequence_count, state_tokens, qo_heads, partitions_max]
  // have room.
  std::int32_t split_tokens = 0;
  bool split = false;  // Of LaunchTiles: the split sequences, or the others.
  std::int32_t state_tokens = 0;
  float2* state_ml = nullptr;  // m and l
  float* state_o = nullptr;    // [..., v_dim]

  GPU_DEVICE bool Streamed(const CudaSequence& s) const { return s.rows * group <= kStreamRowsMax; }
  GPU_DEVICE bool Split(const CudaSequence& s) const {
    return !Streamed(s) && s.rows <= split_tokens;
  }
  // The first key that the query at end - 1 sees; `end` is where its keys end.
  GPU_DEVICE std::int32_t FirstKey(std::int32_t end) const {
    return kv.window_tokens > 0 && end > kv.window_tokens ? end - kv.window_tokens : 0;
  }
  // Which state is that of a partition for one token and head.
  GPU_DEVICE std::int64_t State(std::int32_t sequence, std::int32_t token, std::int32_t head,
                                std::int32_t partition_in_row) const {
    const std::int64_t row = (std::int64_t{sequence} * state_tokens + token) * qo_heads + head;
    return row * kv.partitions_max + partition_in_row;
  }
};

constexpr float MaxOf(float a, float b) { return a < b ? b : a; }
constexpr std::int32_t MaxOf(std::int32_t a, std::int32_t b) { return a < b ? b : a; }
constexpr std::int32_t MinOf(std::int32_t a, std::int32_t b) { return b < a ? b : a; }

GPU_DEVICE float NoKey() { return gpu::FloatFromBits(0xff800000u); }  // -infinity

// Positions [begin, end).
struct KeySpan {
  std::int32_t begin;
  std::int32_t end;
};

// Writes the addresses of the pages that hold `keys` (not empty) to pages[0..]: of page
// (keys.begin >> page shift) and those after it. By all threads of the block.
GPU_DEVICE void ListPages(const AttentionLaunch& a, const CudaSequence& s, std::int32_t kv_head,
                          KeySpan keys, const std::byte** pages) {
  const std::int32_t first = keys.begin >> a.shifts.page;
  const std::int32_t count = ((keys.end - 1) >> a.shifts.page) - first + 1;
  for (auto i = static_cast<std::int32_t>(threadIdx.x); i < count;
       i += static_cast<std::int32_t>(blockDim.x)) {
    pages[i] = PageAt(a.kv, a.shifts, s, kv_head, first + i);
  }
}

// Pages of one partition at most.
constexpr std::int32_t PagesOfPartition(const CudaKv& kv) {
  return kv.page_tokens >= kCudaPartition ? 1 : kCudaPartition / kv.page_tokens;
}

// What begins at byte `offset` of a block's dynamic shared memory.
template <typename T>
GPU_DEVICE T* SharedAt(std::size_t offset) {
  GPU_DYNAMIC_SHARED(shared);
  return reinterpret_cast<T*>(shared + offset);
}

// What a block's shared memory ends with, in both ways: from kQueryAt on the scaled queries of
// kRows rows, [kRows * k_dim] floats, then the addresses of a partition's pages.
template <int kRows, std::size_t kQueryAt>
struct QueryAndPages {
  static constexpr std::size_t Pages(const CudaKv& kv) {
    return kQueryAt + sizeof(float) * kRows * static_cast<std::size_t>(kv.k_dim);
  }
  static constexpr std::size_t Bytes(const CudaKv& kv) {
    return Pages(kv) + sizeof(std::byte*) * static_cast<std::size_t>(PagesOfPartition(kv));
  }

  GPU_DEVICE static float* Query() { return SharedAt<float>(kQueryAt); }
};

// Brings 16 bytes of a row of `dim` elements to shared memory, zeros where `live` is false: as
// gpu::CopyAsync16, whose waits and barriers it needs. Rows of an odd number of 8 bytes, which only
// int8 has, may begin between multiples of 16, and are there when this returns.
template <KvDtype dtype>
GPU_DEVICE void CopyOfRow(std::byte* to, const std::byte* from, int dim, bool live) {
  if constexpr (dtype == KvDtype::kInt8) {
    if (dim % 16 != 0) {
      const uint2 zeros = {0, 0};
      gpu::Store(to, live ? gpu::Load<uint2>(from) : zeros);
      gpu::Store(to + 8, live ? gpu::Load<uint2>(from + 8) : zeros);
      return;
    }
  }
  gpu::CopyAsync16(to, from, live);
}

// Calls run with the dtype as a constant.
template <typename Run>
cudaError_t WithKvDtype(KvDtype dtype, const Run& run) {
  switch (dtype) {
    case KvDtype::kF16:
      return run(std::integral_constant<KvDtype, KvDtype::kF16>());
    case KvDtype::kBF16:
      return run(std::integral_constant<KvDtype, KvDtype::kBF16>());
    case KvDtype::kF32:
      return run(std::integral_constant<KvDtype, KvDtype::kF32>());
    case KvDtype::kInt8:
      return run(std::integral_constant<KvDtype, KvDtype::kInt8>());
  }
  return cudaErrorInvalidValue;
}

cudaError_t LaunchStream(const AttentionLaunch& a, cudaStream_t stream);
cudaError_t LaunchTiles(const AttentionLaunch& a, cudaStream_t stream);

// Rows of a tile at this k_dim.
constexpr std::int32_t TileRows(std::int32_t k_dim) {
  return k_dim <= 128 ? 64 : k_dim <= 512 ? 32 : 16;
}

}  // namespace penstock::kernels
