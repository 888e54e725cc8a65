// SPDX-License-Identifier: Apache-2.0
#include "tests/device_harness.h"

#include <random>
#include <utility>

#include "base/status.h"
#include "device/cpu_device.h"
#include "device/cuda_device.h"

namespace penstock::tests {

absl::StatusOr<DeviceHarness> DeviceHarness::Make(const CudaPlugin* cuda, int threads,
                                                  kernels::Numerics numerics) {
  DeviceHarness made;
  if (cuda == nullptr) {
    ASSIGN_OR_RETURN(std::unique_ptr<CpuDevice> cpu, CpuDevice::Make({.threads = threads}));
    made.ops = kernels::MakeCpuOps(*cpu);
    made.threads = &cpu->threads();
    made.device = std::move(cpu);
    return made;
  }
  ASSIGN_OR_RETURN(std::unique_ptr<CudaDevice> gpu, CudaDevice::Make(*cuda, {.threads = threads}));
  ASSIGN_OR_RETURN(made.ops, kernels::MakeCudaOps(*gpu, numerics));
  made.threads = &gpu->threads();
  made.device = std::move(gpu);
  return made;
}

absl::StatusOr<ModelHarness> ModelHarness::Make(const model::ModelFile& file,
                                                const Options& options) {
  RETURN_IF_ERROR(engine::CheckStages(file.architecture(), options.stages));
  RETURN_IF_ERROR(
      engine::CheckSplit(file.architecture(), file.tensors(), options.shards, options.sums));
  ModelHarness made;
  for (std::int32_t i = 0; i < options.stages * options.shards; ++i) {
    ASSIGN_OR_RETURN(DeviceHarness device,
                     DeviceHarness::Make(options.cuda, options.threads, options.numerics));
    engine::Weights::Options load = options.weights;
    load.part = engine::PartOf(i, options.stages, options.shards, options.sums);
    ASSIGN_OR_RETURN(std::unique_ptr<engine::Weights> weights,
                     engine::Weights::Load(file, *device.device, *device.threads, load,
                                           [](std::size_t, std::size_t) {}));
    made.parts.push_back({device.device.get(), device.ops.get(), weights.get()});
    made.devices.push_back(std::move(device));
    made.weights.push_back(std::move(weights));
  }
  return made;
}

std::vector<TokenId> RandomTokens(std::uint32_t seed, std::size_t n, std::int32_t vocab) {
  std::mt19937 random(seed);
  std::vector<TokenId> tokens(n);
  for (TokenId& t : tokens) t = static_cast<TokenId>(random() % static_cast<std::uint32_t>(vocab));
  return tokens;
}

}  // namespace penstock::tests
