// SPDX-License-Identifier: Apache-2.0
#include "cli/worker_memory.h"

#include <algorithm>
#include <limits>
#include <optional>

#include "absl/strings/str_cat.h"
#include "base/device_name.h"
#include "base/status.h"
#include "cli/terminal.h"
#include "engine/tensor_shard.h"

namespace penstock::cli {

absl::StatusOr<std::vector<std::size_t>> ShardGpus(const launch::Worker& worker) {
  const auto shards = static_cast<std::int32_t>(worker.tp);
  if (!GpusOf(worker.device).has_value()) return std::vector<std::size_t>();
  ASSIGN_OR_RETURN(const std::vector<int> gpus, GpusOfShards(worker.device, shards));
  return std::vector<std::size_t>(gpus.begin(), gpus.end());
}

absl::StatusOr<std::size_t> ShardBytes(const launch::Worker& worker,
                                       const absl::StatusOr<CudaSystem>& gpus,
                                       std::size_t available_bytes) {
  ASSIGN_OR_RETURN(const std::vector<std::size_t> wanted, ShardGpus(worker));
  std::size_t bytes = available_bytes / static_cast<std::size_t>(worker.tp);
  if (wanted.empty()) return bytes;
  RETURN_IF_ERROR(gpus.status());
  bytes = std::numeric_limits<std::size_t>::max();
  for (const std::size_t gpu : wanted) {
    RETURN_IF_ERROR(CheckGpu(*gpus, static_cast<int>(gpu)));
    bytes = std::min<std::size_t>(bytes, gpus->gpus[gpu].memory_bytes);
  }
  return bytes;
}

absl::StatusOr<engine::MemoryPlan> PlanWorkerMemory(const launch::Worker& worker,
                                                    std::int64_t block_tokens,
                                                    const engine::LocalModel& model,
                                                    std::size_t available_bytes) {
  // The last shard is the largest.
  const engine::TensorShard shard = {.index = static_cast<std::int32_t>(worker.tp - 1),
                                     .shards = static_cast<std::int32_t>(worker.tp),
                                     .sums = static_cast<std::int32_t>(worker.tp_sum)};
  RETURN_IF_ERROR(
      engine::CheckSplit(model.architecture(), model.file().tensors(), shard.shards, shard.sums));
  RETURN_IF_ERROR(ShardGpus(worker).status());
  engine::MemoryRequest request;
  ASSIGN_OR_RETURN(request.kv_dtype, ParseKvDtype(worker.kv_dtype));
  request.kv_bytes = static_cast<std::size_t>(worker.kv_bytes);
  request.context_tokens = static_cast<std::int32_t>(worker.context_tokens);
  request.sequences = request.logit_rows = static_cast<std::int32_t>(worker.sequences);
  request.chunk_tokens = static_cast<std::int32_t>(worker.chunk_tokens);
  request.block_tokens = static_cast<std::int32_t>(block_tokens);
  request.page_tokens = worker.page_tokens != 0
                            ? static_cast<std::int32_t>(worker.page_tokens)
                            : std::min(request.page_tokens, request.block_tokens);
  request.device_memory = GpusOf(worker.device).has_value();
  // A paced one has no weights.
  const std::size_t weights =
      worker.device == "paced" ? 0 : engine::Weights::BytesOf(model.file(), {.shard = shard});
  return engine::PlanMemory(model.architecture(), shard, weights, request, available_bytes);
}

std::string DescribeGpuMemory(const launch::Worker& worker, const engine::MemoryPlan& plan,
                              std::size_t nccl_bytes) {
  const std::string each = worker.tp == 1 ? "" : absl::StrCat("on each of ", worker.tp, " GPUs ");
  return absl::StrCat(
      worker.name, " on ", worker.device, ": ", each, FormatBytes(plan.weights_bytes),
      " of weights, ", FormatBytes(plan.kv_bytes), " of KV and ", FormatBytes(plan.scratch_bytes),
      " for steps, of device memory; up to ",
      nccl_bytes == 0 ? std::string() : FormatBytes(nccl_bytes) + " for links of kind nccl; up to ",
      FormatBytes(plan.pool_bytes), " of the host's for blocks on their way");
}

}  // namespace penstock::cli
