// SPDX-License-Identifier: Apache-2.0
// A batch as GPU kernels read it: the tables of kernels/ops.h's KvBatch (CudaKv), flat and on the
// device, filled once per batch and group; and what is prepared of it before attention
// (CudaPrepare). Plain values; what they point to is device memory.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/kv_dtype.h"
#include "kernels/elementwise.h"

namespace penstock::kernels {

struct CudaSequence {
  std::int32_t row_begin = 0;
  std::int32_t rows = 0;
  std::int32_t position = 0;     // Of the first row.
  std::int32_t first_block = 0;  // slabs[slabs_begin + i] holds block first_block + i.
  std::int32_t slabs_begin = 0;
};

struct CudaRow {
  std::int32_t row = 0;       // In the batch's buffers.
  std::int32_t sequence = 0;  // Index into sequences.
  std::int32_t position = 0;  // In its sequence.
};

// One cache layer of a batch. A page's bytes begin at
//   pool_base[s & 255] + (s >> 8) * pool_stride_bytes[s & 255] +
//   ((cache_layer * kv_heads + kv_head) * (block_tokens / page_tokens) + page_in_block) * page_bytes
// for slab s; K rows first, V rows from k_bytes on, and of int8 the F16 scales of K rows from
// scales_at on, those of V rows behind them (base/kv_spec.h).
struct CudaKv {
  KvDtype dtype = KvDtype::kF16;
  std::int32_t block_tokens = 0;  // A power of two.
  std::int32_t page_tokens = 0;   // Divides block_tokens, so a power of two; int8: from 4 on.
  std::int32_t kv_heads = 0;
  std::int32_t k_dim = 0;  // Multiples of 8.
  std::int32_t v_dim = 0;
  std::int32_t window_tokens = 0;  // 0: none.
  std::int32_t cache_layer = 0;
  std::int64_t page_bytes = 0;
  std::int64_t k_bytes = 0;
  std::int64_t scales_at = 0;
  std::byte* const* pool_base = nullptr;             // [pools]
  const std::uint64_t* pool_stride_bytes = nullptr;  // [pools]
  const std::uint32_t* slabs = nullptr;              // SlabRefs: pool | index << 8
  const CudaSequence* sequences = nullptr;           // [sequence_count]
  const CudaRow* rows = nullptr;                     // [row_count]
  std::int32_t sequence_count = 0;
  std::int32_t row_count = 0;
  // Over all sequences, for the size of a launch.
  std::int32_t rows_max = 0;        // Rows of one sequence.
  std::int32_t partitions_max = 0;  // Partitions of 256 positions that one row can see.
};

// Q, K and V of a batch's rows before attention; see PrepareQkv of kernels/ops.h.
struct CudaPrepare {
  float* q = nullptr;        // [rows, qo_heads * k_dim], changed in place
  float* k = nullptr;        // [rows, kv_heads * k_dim], changed in place
  const float* v = nullptr;  // [rows, kv_heads * v_dim]
  std::int32_t qo_heads = 0;
  const float* q_norm = nullptr;  // [k_dim] RMS norm weights per head, or null
  const float* k_norm = nullptr;  // [k_dim] or null
  float norm_eps = 0;
  RopePairs pairs = RopePairs::kHalves;
  std::int32_t rotary_dim = 0;  // Even, at most k_dim.
  const float* cos = nullptr;   // [row_count, rotary_dim / 2]; null: no positions.
  const float* sin = nullptr;   // The same.
};

}  // namespace penstock::kernels
