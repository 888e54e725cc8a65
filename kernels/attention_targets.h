// SPDX-License-Identifier: Apache-2.0
// The functions behind AttendTargets(), and what they agree on: which keys a token sees. Internal
// to kernels/.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/attention.h"

namespace penstock::kernels {

// log2(e), which turns the softmax's powers of e into powers of two.
inline constexpr float kAttentionLog2E = 1.44269504088896341f;

// Absolute positions [begin, end).
struct KeyRange {
  std::int32_t begin;
  std::int32_t end;
};

// Offsets in the task's pages.
inline PageLayout PageOf(const AttentionTask& task) {
  PageLayout layout;
  layout.page_tokens = task.page_tokens;
  layout.group.k_dim = task.k_dim;
  layout.group.v_dim = task.v_dim;
  layout.group.dtype = task.dtype;
  return layout;
}

// The keys that token `token` of the task sees.
inline KeyRange VisibleKeys(const AttentionTask& task, std::int32_t token) {
  const std::int32_t end = task.position + token + 1;
  const std::int32_t begin = task.window_tokens > 0 ? end - task.window_tokens : 0;
  return {std::max(begin, 0), end};
}

// Those of them that lie in one partition; empty when begin >= end.
inline KeyRange VisibleKeysIn(const AttentionTask& task, std::int32_t token,
                              std::int32_t partition) {
  const KeyRange all = VisibleKeys(task, token);
  const std::int32_t first = partition * kPartitionTokens;
  return {std::max(all.begin, first), std::min(all.end, first + kPartitionTokens)};
}

void AttendScalar(const AttentionTask& task, std::span<std::byte> scratch);
void AttendPartitionScalar(const AttentionTask& task, std::int32_t partition, float* state,
                           std::span<std::byte> scratch);
void MergePartitionsScalar(const AttentionTask& task, const float* states, std::int32_t partitions);

}  // namespace penstock::kernels
