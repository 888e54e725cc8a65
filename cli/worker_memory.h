// SPDX-License-Identifier: Apache-2.0
// How much memory a worker of a deployment file will take, told before it is started.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "device/cuda_plugin.h"
#include "engine/local_model.h"
#include "engine/memory_plan.h"
#include "launch/deployment.h"

namespace penstock::cli {

// The GPUs of the worker's shards, one each, stage by stage; none where it is not on GPUs. As GpusOfShards.
absl::StatusOr<std::vector<std::size_t>> ShardGpus(const launch::Worker& worker);
// What there is for each device: of GPUs the memory of the smallest, else an equal part of `available_bytes`.
// Where a GPU cannot be used, why: the status of `gpus`, or that of CheckGpu; else as ShardGpus.
absl::StatusOr<std::size_t> ShardBytes(const launch::Worker& worker,
                                       const absl::StatusOr<CudaSystem>& gpus,
                                       std::size_t available_bytes);
// Of each device of every stage of the worker, as ShardGpus and LocalModel::PlanMemory, of the device's own
// memory where it is on GPUs. `available_bytes` are free for each: SIZE_MAX where nobody knows.
absl::StatusOr<std::vector<engine::MemoryPlan>> PlanWorkerMemory(const launch::Worker& worker,
                                                                 std::int64_t block_tokens,
                                                                 std::size_t links_bytes,
                                                                 const engine::LocalModel& model,
                                                                 std::size_t available_bytes);
// "decode-1 on cuda:1: 98.4 MiB of weights, 256.0 MiB of KV and 310.2 MiB for steps, of device memory;
// up to 112.0 MiB for links of kind nccl; up to 256.0 MiB of the host's for blocks on their way"; of each stage, where there are several.
std::string DescribeGpuMemory(const launch::Worker& worker,
                              std::span<const engine::MemoryPlan> stages);

}  // namespace penstock::cli
