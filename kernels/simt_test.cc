// SPDX-License-Identifier: Apache-2.0
// The emulator finds what is wrong with a kernel, and nothing with those that are right. A schedule
// that cannot show a fault may pass, all four together may not; the race check needs only one.
#include "kernels/simt.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "kernels/cuda_testing.h"
#include "kernels/gpu.h"
#include "kernels/simt_faulty.h"

namespace penstock::kernels {
namespace {

// Whether the schedule shows a fault; `failure`: what the launch said.
bool Faulty(const FaultyKernel& kernel, std::string& failure) {
  std::vector<float> values;
  for (int i = 0; i < kFaultyThreads; ++i) values.push_back(static_cast<float>(i + 1));
  const DeviceBuffer<float> x(values);
  DeviceBuffer<float> y(kFaultyThreads + 1);
  LaunchFaulty(kernel, x.data(), y.data());
  failure = simt::TakeFailure();
  const bool failed = cudaGetLastError() != cudaSuccess;
  EXPECT_EQ(failed, !failure.empty()) << failure;
  if (failed) return true;
  const std::vector<float> got = y.Get();
  for (int i = 0; i < kFaultyThreads; ++i) {
    if (got[static_cast<std::size_t>(i)] != kernel.want(i)) return true;
  }
  return got.back() == got.back();  // No longer NaN.
}

TEST(SimtTest, FindsPlantedFaults) {
  for (const FaultyKernel& kernel : FaultyKernels()) {
    SCOPED_TRACE(kernel.name);
#if defined(PENSTOCK_SANITIZED)
    if (kernel.name == std::string("SharedTooFar")) {
      std::string failure;
      EXPECT_DEATH(Faulty(kernel, failure), "AddressSanitizer: use-after-poison");
      continue;
    }
#endif
    std::size_t found = 0;
    for (const simt::Schedule& schedule : simt::Schedules()) {
      SCOPED_TRACE(schedule.name);
      simt::SetSchedule(schedule);
      std::string failure;
      found += Faulty(kernel, failure) ? 1 : 0;
      if (kernel.right) {
        EXPECT_EQ(failure, "");
      }
      if (kernel.message != nullptr) {
        EXPECT_NE(failure.find(kernel.message), std::string::npos) << failure;
        EXPECT_NE(failure.find("simt_faulty.cu"), std::string::npos) << failure;
      }
      if (kernel.race && simt::ChecksRaces()) {
        EXPECT_NE(failure.find("races or accesses out of bounds, the first: "), std::string::npos)
            << failure;
        EXPECT_NE(failure.find("simt_faulty.cu"), std::string::npos) << failure;
      }
    }
    simt::SetSchedule(simt::Schedules()[0]);
    EXPECT_EQ(found > 0, !kernel.right);
    if (kernel.race && simt::ChecksRaces()) {
      EXPECT_EQ(found, simt::Schedules().size());
    }
  }
}

GPU_KERNEL(1024, 1) WritesShape(unsigned* out) {
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] = block * 1000 + thread;
}

TEST(SimtTest, RunsEveryThreadOfEveryBlockOnce) {
  ForEachSchedule([] {
    DeviceBuffer<unsigned> out(2 * 3 * 2 * 5 * 3 * 2);
    GPU_LAUNCH(WritesShape, dim3(2, 3, 2), dim3(5, 3, 2), 0, nullptr, out.data());
    ASSERT_TRUE(Ran(cudaGetLastError()));
    const std::vector<unsigned> got = out.Get();
    for (unsigned i = 0; i < got.size(); ++i) EXPECT_EQ(got[i], i / 30 * 1000 + i % 30);
  });
}

TEST(SimtTest, EarlyLaunchesWaitForOthers) {
  DeviceBuffer<float> y(32);
  LaunchTwo(true, y.data());
  ASSERT_TRUE(Ran(cudaGetLastError()));
  EXPECT_EQ(y.Get(), std::vector<float>(32, 2.0f));
  LaunchNeverWaiting(y.data());
  EXPECT_EQ(cudaGetLastError(), cudaErrorLaunchFailure);
  const std::string failure = simt::TakeFailure();
  EXPECT_NE(failure.find("no call of WaitForEarlier"), std::string::npos) << failure;
}

TEST(SimtTest, RefusesImpossibleLaunches) {
  DeviceBuffer<unsigned> x(32);
  struct Launched {
    dim3 grid, block;
    std::size_t shared_bytes;
    const char* message;
  };
  for (const Launched& c :
       {Launched{0, 32, 0, "grid of 0 x 1 x 1"}, Launched{1, 1025, 0, "block of 1025 x 1 x 1"},
        Launched{dim3(1, 65536), 32, 0, "grid of 1 x 65536 x 1"},
        Launched{1, 32, 49153, "49153 bytes of dynamic shared memory, but 49152"}}) {
    GPU_LAUNCH(WritesShape, c.grid, c.block, c.shared_bytes, nullptr, x.data());
    EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidConfiguration);
    const std::string failure = simt::TakeFailure();
    EXPECT_NE(failure.find(c.message), std::string::npos) << failure;
  }
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  // With leave, up to what the smallest of the GPUs has.
  EXPECT_EQ(cudaFuncSetAttribute(WritesShape, cudaFuncAttributeMaxDynamicSharedMemorySize, 50000),
            cudaSuccess);
  EXPECT_EQ(cudaFuncSetAttribute(WritesShape, cudaFuncAttributeMaxDynamicSharedMemorySize, 200000),
            cudaErrorInvalidValue);
  GPU_LAUNCH(WritesShape, 1, 32, 50000, nullptr, x.data());
  EXPECT_TRUE(Ran(cudaGetLastError()));
}

}  // namespace
}  // namespace penstock::kernels
