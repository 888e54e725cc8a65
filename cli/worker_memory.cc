// SPDX-License-Identifier: Apache-2.0
#include "cli/worker_memory.h"

#include <algorithm>
#include <optional>

#include "absl/strings/str_cat.h"
#include "base/device_name.h"
#include "base/status.h"
#include "cli/terminal.h"
#include "engine/tensor_shard.h"

namespace penstock::cli {

absl::StatusOr<std::size_t> DeviceBytes(const launch::Worker& worker,
                                        const absl::StatusOr<CudaSystem>& gpus,
                                        std::size_t available_bytes) {
  const std::optional<int> gpu = GpuOf(worker.device);
  if (!gpu.has_value()) return available_bytes;
  RETURN_IF_ERROR(gpus.status());
  RETURN_IF_ERROR(CheckGpu(*gpus, *gpu));
  return gpus->gpus[static_cast<std::size_t>(*gpu)].memory_bytes;
}

absl::StatusOr<engine::MemoryPlan> PlanWorkerMemory(const launch::Worker& worker,
                                                    std::int64_t block_tokens,
                                                    const engine::LocalModel& model,
                                                    std::size_t available_bytes) {
  const auto sums = static_cast<std::int32_t>(worker.tp_sum);
  RETURN_IF_ERROR(engine::CheckSplit(model.architecture(), model.file().tensors(), 1, sums));
  engine::MemoryRequest request;
  request.sums = sums;
  ASSIGN_OR_RETURN(request.kv_dtype, ParseKvDtype(worker.kv_dtype));
  request.kv_bytes = static_cast<std::size_t>(worker.kv_bytes);
  request.context_tokens = static_cast<std::int32_t>(worker.context_tokens);
  request.sequences = request.logit_rows = static_cast<std::int32_t>(worker.sequences);
  request.chunk_tokens = static_cast<std::int32_t>(worker.chunk_tokens);
  request.block_tokens = static_cast<std::int32_t>(block_tokens);
  request.page_tokens = worker.page_tokens != 0
                            ? static_cast<std::int32_t>(worker.page_tokens)
                            : std::min(request.page_tokens, request.block_tokens);
  request.device_memory = GpuOf(worker.device).has_value();
  // A paced one has no weights.
  const std::size_t weights =
      worker.device == "paced" ? 0 : engine::Weights::BytesOf(model.file(), {});
  return engine::PlanMemory(model.architecture(), weights, request, available_bytes);
}

std::string DescribeGpuMemory(const launch::Worker& worker, const engine::MemoryPlan& plan) {
  return absl::StrCat(worker.name, " on ", worker.device, ": ", FormatBytes(plan.weights_bytes),
                      " of weights, ", FormatBytes(plan.kv_bytes), " of KV and ",
                      FormatBytes(plan.scratch_bytes), " for steps, of device memory; up to ",
                      FormatBytes(plan.kv_bytes), " of the host's for blocks on their way");
}

}  // namespace penstock::cli
