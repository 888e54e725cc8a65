// SPDX-License-Identifier: Apache-2.0
// A device with what an engine needs of it, on the CPU or on a GPU: for tests of both.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "base/key.h"
#include "device/cuda_api.h"
#include "device/device.h"
#include "device/thread_pool.h"
#include "engine/model_parts.h"
#include "engine/weights.h"
#include "kernels/ops.h"
#include "model/model_file.h"

namespace penstock::tests {

struct DeviceHarness {
  // `cuda` null: on the CPU, whose numerics are exact. `threads` of the host, in both cases.
  static absl::StatusOr<DeviceHarness> Make(const CudaPlugin* cuda, int threads,
                                            kernels::Numerics numerics = kernels::Numerics::kExact);

  std::unique_ptr<Device> device;
  ThreadPool* threads = nullptr;  // The device's.
  std::unique_ptr<kernels::Ops> ops;
};

// A model's weights on devices of their own, one per shard. The file must outlive it.
struct ModelHarness {
  struct Options {
    const CudaPlugin* cuda = nullptr;  // As of DeviceHarness.
    kernels::Numerics numerics = kernels::Numerics::kExact;
    int threads = 1;  // Of each device.
    std::int32_t stages = 1;
    std::int32_t shards = 1;  // Of each stage.
    std::int32_t sums = 1;    // As of engine::TensorShard.
    engine::Weights::Options weights = {};
  };
  // Errors as of CheckStages, CheckSplit and Weights::Load.
  static absl::StatusOr<ModelHarness> Make(const model::ModelFile& file, const Options& options);

  std::vector<DeviceHarness> devices;
  std::vector<std::unique_ptr<engine::Weights>> weights;
  std::vector<engine::ShardParts> parts;  // Of those.
};

std::vector<TokenId> RandomTokens(std::uint32_t seed, std::size_t n, std::int32_t vocab);

}  // namespace penstock::tests
