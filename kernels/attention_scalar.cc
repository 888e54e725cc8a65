// SPDX-License-Identifier: Apache-2.0
// The specification of kernels/attention.h, one row and one key at a time. Every other target is
// tested against it.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/float16.h"
#include "kernels/attention_targets.h"
#include "kernels/exp.h"

namespace penstock::kernels {
namespace {

constexpr std::int32_t kDimMax = 1024;

template <typename T>
T At(const std::byte* from, std::int32_t i) {
  T value;
  std::memcpy(&value, from + sizeof(T) * i, sizeof(T));
  return value;
}

// K or V of one token.
struct Row {
  const std::byte* at;
  float scale;  // Of levels; 1 where there are none.
};

float Element(KvDtype dtype, const Row& row, std::int32_t i) {
  switch (dtype) {
    case KvDtype::kF16:
      return ToFloat(F16{At<std::uint16_t>(row.at, i)});
    case KvDtype::kBF16:
      return ToFloat(BF16{At<std::uint16_t>(row.at, i)});
    case KvDtype::kF32:
      return At<float>(row.at, i);
    case KvDtype::kInt8:
      break;
  }
  return static_cast<float>(At<std::int8_t>(row.at, i)) * row.scale;
}

// Row `position` of the part of pages that begins at `offset`, whose scales begin at `scales`.
Row RowAt(const AttentionTask& task, std::int32_t position, std::size_t offset,
          std::size_t row_bytes, std::size_t scales) {
  const std::int32_t index = position - task.first_page_position;
  const std::byte* const page = task.pages[index / task.page_tokens];
  const std::int32_t in_page = index % task.page_tokens;
  const float scale =
      task.dtype == KvDtype::kInt8 ? ToFloat(F16{At<std::uint16_t>(page + scales, in_page)}) : 1;
  return {page + offset + row_bytes * in_page, scale};
}

Row KeyRow(const AttentionTask& task, std::int32_t position) {
  const PageLayout page = PageOf(task);
  return RowAt(task, position, 0, page.k_row_bytes(), page.k_scales_offset());
}

Row ValueRow(const AttentionTask& task, std::int32_t position) {
  const PageLayout page = PageOf(task);
  return RowAt(task, position, page.v_offset(), page.v_row_bytes(), page.v_scales_offset());
}

float Score(const AttentionTask& task, const float* scaled_q, std::int32_t position) {
  const Row key = KeyRow(task, position);
  float sums[4] = {};
  for (std::int32_t d = 0; d < task.k_dim; ++d) {
    sums[d % 4] = std::fma(scaled_q[d], Element(task.dtype, key, d), sums[d % 4]);
  }
  return (sums[0] + sums[2]) + (sums[1] + sums[3]);
}

float AddInPairs(std::array<float, 16> sums) {
  for (int distance = 8; distance > 0; distance /= 2) {
    for (int i = 0; i < distance; ++i) sums[i] += sums[i + distance];
  }
  return sums[0];
}

// One row of one partition; `state` is {m, l, o[v_dim]}.
void RowPartition(const AttentionTask& task, std::int32_t row, std::int32_t partition,
                  float* state) {
  const std::int32_t token = row / task.heads;
  const KeyRange keys = VisibleKeysIn(task, token, partition);
  state[0] = -std::numeric_limits<float>::infinity();
  state[1] = 0;
  if (keys.begin >= keys.end) return;

  const float* const q =
      task.q + token * task.q_token_stride + std::int64_t{1} * (row % task.heads) * task.k_dim;
  const float factor = task.scale * kAttentionLog2E;
  std::array<float, kDimMax> scaled_q;
  for (std::int32_t d = 0; d < task.k_dim; ++d) scaled_q[d] = q[d] * factor;

  std::array<float, kPartitionTokens> p;
  const std::int32_t count = keys.end - keys.begin;
  float m = -std::numeric_limits<float>::infinity();
  for (std::int32_t i = 0; i < count; ++i) {
    p[i] = Score(task, scaled_q.data(), keys.begin + i);
    m = std::max(m, p[i]);
  }
  std::array<float, 16> sums = {};
  float* const o = state + 2;
  std::fill(o, o + task.v_dim, 0.0f);
  for (std::int32_t i = 0; i < count; ++i) {
    p[i] = Exp2(p[i] - m);
    sums[(keys.begin + i) % 16] += p[i];
    const Row value = ValueRow(task, keys.begin + i);
    for (std::int32_t d = 0; d < task.v_dim; ++d) {
      o[d] = std::fma(p[i], Element(task.dtype, value, d), o[d]);
    }
  }
  state[0] = m;
  state[1] = AddInPairs(sums);
}

// state := state merged with `next`, the state of a later partition. A state with l = 0 saw no key.
void Merge(const float* next, std::int32_t v_dim, float* state) {
  if (next[1] == 0) return;
  if (state[1] == 0) {
    std::copy(next, next + 2 + v_dim, state);
    return;
  }
  const float m = std::max(state[0], next[0]);
  const float a = Exp2(state[0] - m);
  const float b = Exp2(next[0] - m);
  state[0] = m;
  state[1] = std::fma(state[1], a, next[1] * b);
  for (std::int32_t d = 2; d < 2 + v_dim; ++d) state[d] = std::fma(state[d], a, next[d] * b);
}

void WriteRow(const AttentionTask& task, std::int32_t row, const float* state) {
  float* const out = task.out + (row / task.heads) * task.out_token_stride +
                     std::int64_t{1} * (row % task.heads) * task.v_dim;
  for (std::int32_t d = 0; d < task.v_dim; ++d) out[d] = state[2 + d] / state[1];
}

}  // namespace

void AttendScalar(const AttentionTask& task, std::span<std::byte> /*scratch*/) {
  for (std::int32_t row = 0; row < task.tokens * task.heads; ++row) {
    const KeyRange keys = VisibleKeys(task, row / task.heads);
    std::array<float, kDimMax + 2> state = {};
    std::array<float, kDimMax + 2> next;
    for (std::int32_t partition = keys.begin / kPartitionTokens;
         partition * kPartitionTokens < keys.end; ++partition) {
      RowPartition(task, row, partition, next.data());
      Merge(next.data(), task.v_dim, state.data());
    }
    WriteRow(task, row, state.data());
  }
}

void AttendPartitionScalar(const AttentionTask& task, std::int32_t partition, float* state,
                           std::span<std::byte> /*scratch*/) {
  for (std::int32_t row = 0; row < task.tokens * task.heads; ++row) {
    RowPartition(task, row, partition, state + std::int64_t{1} * row * (2 + task.v_dim));
  }
}

void MergePartitionsScalar(const AttentionTask& task, const float* states,
                           std::int32_t partitions) {
  const std::int64_t rows = std::int64_t{1} * task.tokens * task.heads;
  for (std::int32_t row = 0; row < rows; ++row) {
    std::array<float, kDimMax + 2> state = {};
    for (std::int32_t partition = 0; partition < partitions; ++partition) {
      Merge(states + (partition * rows + row) * (2 + task.v_dim), task.v_dim, state.data());
    }
    WriteRow(task, row, state.data());
  }
}

}  // namespace penstock::kernels
