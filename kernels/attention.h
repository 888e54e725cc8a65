// SPDX-License-Identifier: Apache-2.0
// Paged attention: softmax(q K^T * scale) V for query rows that share one KV head, over keys in
// pages.
//
// The bits of one (query row, head) are a function of its q and of the keys it may see: never of
// the other rows, of the chunk, of page or block size, or of threads. Keys are taken in partitions
// of 256 absolute positions. With q'_d = q_d * (scale * log2(e)), both products rounded to float,
// in a partition, for the visible keys in ascending position:
//   s_k = (p_0 + p_2) + (p_1 + p_3), where p_i sums q'_d * k[k, d] over d = i mod 4 in ascending d,
//         by fma from 0
//   m   = max s_k;   p_k = Exp2(s_k - m)  (kernels/exp.h)
//   l   = 16 partial sums of p_k over (position mod 16) by addition, added in pairs at distance 8,
//         4, 2, 1
//   o_d = sum over ascending k of p_k * v[k, d], by fma from 0
// and partitions merge in ascending order, the first visible one starting the state:
//   M = max(m, m'), a = Exp2(m - M), b = Exp2(m' - M), l = fma(l, a, l' * b),
//   o_d = fma(o_d, a, o'_d * b)
// Result: o_d / l. K and V are read in the pool's dtype, widened exactly; of int8 pages a value is
// level * scale, which is exact, too; where a scale is 0 so are its levels.
//
// Four sums over d, not sixteen: at k_dim = 64 adding up sixteen would cost every tiled prefill a
// tenth of its time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "base/kv_spec.h"

namespace penstock::kernels {

inline constexpr std::int32_t kPartitionTokens = 256;

// Query rows of one sequence against one KV head of one cache layer. With g = qo_heads / kv_heads,
// row t * g + j is head (kv_head * g + j) of token t.
struct AttentionTask {
  // q of (token t, head j): q + t * q_token_stride + j * k_dim, k_dim floats. Not scaled.
  const float* q = nullptr;
  std::int64_t q_token_stride = 0;
  // out of (token t, head j): out + t * out_token_stride + j * v_dim, v_dim floats. Holds
  // unfinished sums while Attend runs, so it must not overlap q.
  float* out = nullptr;
  std::int64_t out_token_stride = 0;
  // Query tokens, at consecutive positions; their own keys are already in the pages.
  std::int32_t tokens = 0;
  std::int32_t heads = 1;  // g
  // Absolute position of token 0. Token t sees keys up to position + t, and, unless window_tokens
  // is 0, only the last window_tokens of those (itself included).
  std::int32_t position = 0;
  std::int32_t window_tokens = 0;
  float scale = 1;
  // pages[i] holds the keys of positions first_page_position + [i, i + 1) * page_tokens, laid out as
  // base/kv_spec.h has it. Covers every key that is visible to some token. first_page_position is a
  // multiple of page_tokens.
  std::span<const std::byte* const> pages;
  std::int32_t first_page_position = 0;
  std::int32_t page_tokens = 0;
  std::int32_t k_dim = 0;  // Multiple of 8, up to 1,024.
  std::int32_t v_dim = 0;
  KvDtype dtype = KvDtype::kF16;
};

// Bytes of scratch that one call needs, for any task with these shapes.
std::size_t AttentionScratchBytes(std::int32_t tokens_max, std::int32_t heads, std::int32_t k_dim,
                                  std::int32_t v_dim);

// Runs the whole task on the caller's thread with the best target. `scratch`: aligned to 64,
// AttentionScratchBytes.
void Attend(const AttentionTask& task, std::span<std::byte> scratch);

// For splitting one long decode over threads: the partial state (m, l, o) of each row for one
// partition (positions partition * 256 and up), and the merge of such states. `state`:
// [tokens * heads] of {float m, l; float o[v_dim]} = (2 + v_dim) floats each. A row that sees no
// key there has l = 0 and its o is not written. m is in units of log2; the sign of a zero m is not
// fixed.
void AttendPartition(const AttentionTask& task, std::int32_t partition, float* state,
                     std::span<std::byte> scratch);
// Folds states[p] for p = 0.. in order and writes the task's output rows: with the states of
// ascending partitions the bits of Attend. states: [partitions][tokens * heads][2 + v_dim]. Each
// row sees a key in one of them.
void MergePartitions(const AttentionTask& task, const float* states, std::int32_t partitions);

struct AttendTarget {
  std::string_view name;
  void (*attend)(const AttentionTask& task, std::span<std::byte> scratch);
  void (*attend_partition)(const AttentionTask& task, std::int32_t partition, float* state,
                           std::span<std::byte> scratch);
  void (*merge_partitions)(const AttentionTask& task, const float* states, std::int32_t partitions);
};
// All this CPU can run: scalar first, best last.
std::span<const AttendTarget> AttendTargets();

}  // namespace penstock::kernels
