// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention.h"

#include <cstdint>
#include <vector>

#include "base/check.h"
#include "device/cpu_info.h"
#include "kernels/attention_driver.h"
#include "kernels/attention_targets.h"

namespace penstock::kernels {
namespace {

template <const AttentionKernels& kernels>
AttendTarget DriverTarget(std::string_view name) {
  return {name,
          [](const AttentionTask& task, std::span<std::byte> scratch) {
            AttendWith(kernels, task, scratch);
          },
          [](const AttentionTask& task, std::int32_t partition, float* state,
             std::span<std::byte> scratch) {
            AttendPartitionWith(kernels, task, partition, state, scratch);
          },
          [](const AttentionTask& task, const float* states, std::int32_t partitions) {
            MergePartitionsWith(kernels, task, states, partitions);
          }};
}

const AttendTarget& Best() {
  static const AttendTarget best = AttendTargets().back();
  return best;
}

void CheckShapes(const AttentionTask& task) {
  CHECK_GE(task.tokens, 0);
  CHECK_GE(task.heads, 1);
  CHECK_GE(task.position, 0);
  CHECK_GE(task.window_tokens, 0);
  CHECK_GE(task.page_tokens, 1);
  CHECK(task.k_dim > 0 && task.k_dim <= 1024 && task.k_dim % 8 == 0);
  CHECK(task.v_dim > 0 && task.v_dim <= 1024 && task.v_dim % 8 == 0);
  if (task.tokens == 0) return;
  CHECK_LE(task.first_page_position, VisibleKeys(task, 0).begin);
  CHECK_GE(static_cast<std::int64_t>(task.pages.size()) * task.page_tokens,
           std::int64_t{task.position} + task.tokens - task.first_page_position);
}

void CheckScratch(const AttentionTask& task, std::span<std::byte> scratch) {
  CHECK_GE(scratch.size(), AttentionScratchBytes(task.tokens, task.heads, task.k_dim, task.v_dim));
  CHECK_EQ(reinterpret_cast<std::uintptr_t>(scratch.data()) % 64, 0u);
}

}  // namespace

std::size_t AttentionScratchBytes(std::int32_t tokens_max, std::int32_t heads, std::int32_t k_dim,
                                  std::int32_t v_dim) {
  return DriverScratchBytes(tokens_max, heads, k_dim, v_dim);
}

void Attend(const AttentionTask& task, std::span<std::byte> scratch) {
  CheckShapes(task);
  CheckScratch(task, scratch);
  Best().attend(task, scratch);
}

void AttendPartition(const AttentionTask& task, std::int32_t partition, float* state,
                     std::span<std::byte> scratch) {
  CheckShapes(task);
  CheckScratch(task, scratch);
  Best().attend_partition(task, partition, state, scratch);
}

void MergePartitions(const AttentionTask& task, const float* states, std::int32_t partitions) {
  Best().merge_partitions(task, states, partitions);
}

std::span<const AttendTarget> AttendTargets() {
  static const std::vector<AttendTarget> targets = [] {
    std::vector<AttendTarget> all = {
        {"scalar", AttendScalar, AttendPartitionScalar, MergePartitionsScalar}};
    if (ThisCpu().avx2) all.push_back(DriverTarget<kAttentionAvx2>("avx2"));
    if (ThisCpu().avx512) all.push_back(DriverTarget<kAttentionAvx512>("avx512"));
    return all;
  }();
  return targets;
}

}  // namespace penstock::kernels
