// SPDX-License-Identifier: Apache-2.0
// What the SIMD targets of kernels/attention.h share: the walk over partitions, tiles and edges, in
// plain C++, on top of a few vector kernels that each target supplies. Internal to kernels/.
//
// Two ways through a partition give the same bits. Direct: one token, up to 8 heads, K and V rows
// are read where they lie, each once; for decode, which waits for memory. Tiled: a partition's K
// (transposed) and V are widened to floats once, then all rows run over them from cache; for
// prefill, which waits for the multipliers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/attention.h"

namespace penstock::kernels {

inline constexpr std::int32_t kDirectRowsMax = 8;  // Rows that the direct kernels take.
inline constexpr std::int32_t kTileRows = 6;       // Rows that the tile kernels take.
inline constexpr std::int32_t kKeyBlock = 32;      // Keys that `score_tile` takes.
inline constexpr std::int32_t kValueDims = 64;     // Dims that `value_tile` takes.

// Widened values lie in slices of kValueDims dims, v [v_dim / kValueDims, kPartitionTokens,
// kValueDims], since whole rows of a power of two would share too few sets of an L1 cache. Offset
// of dim `d` of a row from the row's first.
inline std::int64_t ValueOffset(std::int32_t d) {
  return std::int64_t{d / kValueDims} * kPartitionTokens * kValueDims + d % kValueDims;
}

// K or V rows of consecutive positions.
struct KvRows {
  KvDtype dtype;
  const std::byte* const* at;
  const float* scales;  // Of each row, with int8 alone.
};

// The rows that a direct kernel prefetches while it works: one with each row that it takes, but none
// with the last of every 1 << shift. So its lead shrinks, by as much as the driver fetches between
// kernels, where no other request would keep memory busy.
struct RowsAhead {
  const std::byte* const* rows;
  int shift;
  // How many come before those of row `i`.
  std::int32_t Before(std::int32_t i) const { return i - (i >> shift); }
};

// Scores and weights of a row are [kPartitionTokens] floats, by position in the partition, aligned
// to 64; several rows follow each other.
struct AttentionKernels {
  // to[i] = from[i] * factor. n: multiple of 8.
  void (*scale)(const float* from, std::int32_t n, float factor, float* to);

  // Direct. Scores of `keys` (multiple of 16) K rows for rows q [rows, k_dim].
  void (*scores)(const KvRows& key_rows, std::int32_t keys, std::int32_t k_dim, std::int32_t rows,
                 const float* q, RowsAhead ahead, float* scores);
  // Direct. o += sum over `keys` V rows of weight * V row. o: [rows, v_stride].
  void (*values)(const KvRows& value_rows, std::int32_t keys, std::int32_t v_dim, std::int32_t rows,
                 const float* weights, RowsAhead ahead, float* o, std::int32_t v_stride);

  // Tiled. Transposes and widens `keys` (multiple of kKeyBlock) rows to
  // k [keys / kKeyBlock, k_dim, kKeyBlock].
  void (*pack_keys)(const KvRows& key_rows, std::int32_t keys, std::int32_t k_dim, float* k);
  // Tiled. Widens `keys` rows to v, at the slices' first row of these.
  void (*pack_values)(const KvRows& value_rows, std::int32_t keys, std::int32_t v_dim, float* v);
  // Tiled. Scores of one block k [k_dim, kKeyBlock] for rows q [rows, k_dim], rows <= kTileRows.
  void (*score_tile)(const float* k, std::int32_t k_dim, std::int32_t rows, const float* q,
                     float* scores);
  // Tiled. o[r, 0..dims) += sum over keys of weights[r, key] * v[key, 0..dims), rows <= kTileRows.
  // dims: multiple of 16, up to kValueDims. v: [keys, kValueDims], o: [rows] of a stride of
  // v_stride.
  void (*value_tile)(const float* v, std::int32_t keys, std::int32_t dims, std::int32_t rows,
                     const float* weights, float* o, std::int32_t v_stride);

  // Turns the scores of one row's keys [begin, end) into weights, 0 for the other keys of the 16s
  // they lie in, and writes m and l.
  void (*softmax)(float* scores, std::int32_t begin, std::int32_t end, float* m, float* l);
  // Merges (m, l, o) of a later partition into state; n: multiple of 8. The state has l > 0.
  void (*merge)(float m, float l, const float* o, std::int32_t n, float* state_m, float* state_l,
                float* state_o);
  // o[i] = o[i] / l. n: multiple of 8.
  void (*divide)(float* o, std::int32_t n, float l);
};

// As AttentionScratchBytes, AttendTarget::attend, attend_partition, merge_partitions.
std::size_t DriverScratchBytes(std::int32_t tokens_max, std::int32_t heads, std::int32_t k_dim,
                               std::int32_t v_dim);
void AttendWith(const AttentionKernels& kernels, const AttentionTask& task,
                std::span<std::byte> scratch);
void AttendPartitionWith(const AttentionKernels& kernels, const AttentionTask& task,
                         std::int32_t partition, float* state, std::span<std::byte> scratch);
void MergePartitionsWith(const AttentionKernels& kernels, const AttentionTask& task,
                         const float* states, std::int32_t partitions);

extern const AttentionKernels kAttentionAvx2;
extern const AttentionKernels kAttentionAvx512;

}  // namespace penstock::kernels
