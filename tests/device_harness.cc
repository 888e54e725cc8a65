// SPDX-License-Identifier: Apache-2.0
#include "tests/device_harness.h"

#include <random>
#include <utility>

#include "base/status.h"
#include "device/cpu_device.h"
#include "device/cuda_device.h"

namespace penstock::tests {

absl::StatusOr<DeviceHarness> DeviceHarness::Make(const CudaPlugin* cuda, int threads) {
  DeviceHarness made;
  if (cuda == nullptr) {
    ASSIGN_OR_RETURN(std::unique_ptr<CpuDevice> cpu, CpuDevice::Make({.threads = threads}));
    made.ops = kernels::MakeCpuOps(*cpu);
    made.threads = &cpu->threads();
    made.device = std::move(cpu);
    return made;
  }
  ASSIGN_OR_RETURN(std::unique_ptr<CudaDevice> gpu, CudaDevice::Make(*cuda, {.threads = threads}));
  ASSIGN_OR_RETURN(made.ops, kernels::MakeCudaOps(*gpu));
  made.threads = &gpu->threads();
  made.device = std::move(gpu);
  return made;
}

std::vector<TokenId> RandomTokens(std::uint32_t seed, std::size_t n, std::int32_t vocab) {
  std::mt19937 random(seed);
  std::vector<TokenId> tokens(n);
  for (TokenId& t : tokens) t = static_cast<TokenId>(random() % static_cast<std::uint32_t>(vocab));
  return tokens;
}

}  // namespace penstock::tests
