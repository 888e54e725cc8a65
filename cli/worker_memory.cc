// SPDX-License-Identifier: Apache-2.0
#include "cli/worker_memory.h"

#include <algorithm>
#include <limits>
#include <optional>

#include "absl/strings/str_cat.h"
#include "base/device_name.h"
#include "base/status.h"
#include "cli/terminal.h"

namespace penstock::cli {

absl::StatusOr<std::vector<std::size_t>> ShardGpus(const launch::Worker& worker) {
  if (!GpusOf(worker.device).has_value()) return std::vector<std::size_t>();
  ASSIGN_OR_RETURN(const std::vector<int> gpus,
                   GpusOfShards(worker.device, static_cast<std::int32_t>(worker.tp),
                                static_cast<std::int32_t>(worker.pp)));
  return std::vector<std::size_t>(gpus.begin(), gpus.end());
}

absl::StatusOr<std::size_t> ShardBytes(const launch::Worker& worker,
                                       const absl::StatusOr<CudaSystem>& gpus,
                                       std::size_t available_bytes) {
  ASSIGN_OR_RETURN(const std::vector<std::size_t> wanted, ShardGpus(worker));
  std::size_t bytes = available_bytes / static_cast<std::size_t>(worker.tp * worker.pp);
  if (wanted.empty()) return bytes;
  RETURN_IF_ERROR(gpus.status());
  bytes = std::numeric_limits<std::size_t>::max();
  for (const std::size_t gpu : wanted) {
    RETURN_IF_ERROR(CheckGpu(*gpus, static_cast<int>(gpu)));
    bytes = std::min<std::size_t>(bytes, gpus->gpus[gpu].memory_bytes);
  }
  return bytes;
}

absl::StatusOr<std::vector<engine::MemoryPlan>> PlanWorkerMemory(const launch::Worker& worker,
                                                                 std::int64_t block_tokens,
                                                                 std::size_t links_bytes,
                                                                 const engine::LocalModel& model,
                                                                 std::size_t available_bytes) {
  RETURN_IF_ERROR(ShardGpus(worker).status());
  engine::LocalModel::Options options;
  options.stages = static_cast<std::int32_t>(worker.pp);
  options.shards = static_cast<std::int32_t>(worker.tp);
  options.sums = static_cast<std::int32_t>(worker.tp_sum);
  ASSIGN_OR_RETURN(options.numerics, kernels::ParseNumerics(worker.numerics));
  if (worker.device == "paced") options.pace.emplace();
  engine::MemoryRequest& request = options.memory;
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
  request.links_bytes = links_bytes;
  return model.PlanMemory(options, available_bytes);
}

std::string DescribeGpuMemory(const launch::Worker& worker,
                              std::span<const engine::MemoryPlan> stages) {
  const std::string each = worker.tp == 1 ? "" : absl::StrCat("on each of ", worker.tp, " GPUs ");
  std::string text = absl::StrCat(worker.name, " on ", worker.device, ": ");
  for (std::size_t i = 0; i < stages.size(); ++i) {
    if (stages.size() > 1) absl::StrAppend(&text, i == 0 ? "" : "; ", "stage ", i, " ");
    absl::StrAppend(&text, each, FormatBytes(stages[i].weights_bytes), " of weights, ",
                    FormatBytes(stages[i].kv_bytes), " of KV and ",
                    FormatBytes(stages[i].scratch_bytes), " for steps");
  }
  const std::size_t nccl_bytes = stages[0].links_bytes;
  return absl::StrCat(
      text, ", of device memory; up to ",
      nccl_bytes == 0 ? std::string() : FormatBytes(nccl_bytes) + " for links of kind nccl; up to ",
      FormatBytes(stages[0].pool_bytes), " of the host's for blocks on their way");
}

}  // namespace penstock::cli
