// SPDX-License-Identifier: Apache-2.0
// Attention of a whole batch on the CPU: cuts it into tasks of kernels/attention.h and shares them
// out.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/attention.h"
#include "kernels/cpu_parallel.h"
#include "kernels/ops.h"

namespace penstock::kernels {

// One thread at a time; keeps its lists from call to call.
class CpuAttention {
 public:
  // `workers` must outlive it.
  explicit CpuAttention(CpuWorkers& workers) : workers_(workers) {}

  // As Ops::Attention, result in float only. q: [rows, qo_heads * k_dim]. out: [rows, qo_heads *
  // v_dim].
  void Run(const float* q, std::int32_t qo_heads, float scale, const KvBatch& kv, float* out);

 private:
  void ListPages(const KvBatch& kv);
  void ListTasks(const float* q, std::int32_t qo_heads, float scale, const KvBatch& kv, float* out);
  void RunSplit(std::size_t scratch_bytes);

  CpuWorkers& workers_;
  std::vector<const std::byte*> pages_;   // Per sequence and KV head, one run of page addresses.
  std::vector<std::size_t> pages_begin_;  // [sequences * kv_heads + 1]
  std::vector<std::int32_t> first_positions_;  // [sequences]: position of the first listed page.
  std::vector<AttentionTask> tasks_;
  std::vector<float> states_;
};

}  // namespace penstock::kernels
