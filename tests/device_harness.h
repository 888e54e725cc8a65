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
#include "kernels/ops.h"

namespace penstock::tests {

struct DeviceHarness {
  // `cuda` null: on the CPU. `threads` of the host, in both cases.
  static absl::StatusOr<DeviceHarness> Make(const CudaPlugin* cuda, int threads);

  std::unique_ptr<Device> device;
  ThreadPool* threads = nullptr;  // The device's.
  std::unique_ptr<kernels::Ops> ops;
};

std::vector<TokenId> RandomTokens(std::uint32_t seed, std::size_t n, std::int32_t vocab);

}  // namespace penstock::tests
