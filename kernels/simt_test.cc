// SPDX-License-Identifier: Apache-2.0
// The emulator finds what is wrong with a kernel, and nothing with those that are right. Each case
// has one fault; a schedule that cannot show it may pass, all four together may not.
#include "kernels/simt.h"

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "kernels/cuda_testing.h"
#include "kernels/gpu.h"

namespace penstock::kernels {
namespace {

using namespace gpu;

constexpr int kThreads = 64;

GPU_KERNEL(kThreads, 1) Sum(const float* x, float* y) {
  GPU_SHARED(float, s, kThreads);
  s[threadIdx.x] = x[threadIdx.x];
  SyncThreads();
  float sum = 0;
  for (float value : s) sum += value;
  y[threadIdx.x] = sum;
}

GPU_KERNEL(kThreads, 1) SumWithoutBarrier(const float* x, float* y) {
  GPU_SHARED(float, s, kThreads);
  s[threadIdx.x] = x[threadIdx.x];
  float sum = 0;
  for (float value : s) sum += value;
  y[threadIdx.x] = sum;
}

GPU_KERNEL(kThreads, 1) ReusedWithoutBarrier(const float* x, float* y) {
  GPU_SHARED(float, s, kThreads);
  float sum = 0;
  for (int round = 1; round <= 3; ++round) {
    s[threadIdx.x] = x[threadIdx.x] * static_cast<float>(round);
    SyncThreads();
    sum += s[kThreads - 1 - threadIdx.x];
  }
  y[threadIdx.x] = sum;
}

GPU_KERNEL(kThreads, 1) DivergentBarrier(const float* x, float* y) {
  if (threadIdx.x < 32) {
    SyncThreads();
    y[threadIdx.x] = x[threadIdx.x];
  } else {
    y[threadIdx.x] = x[threadIdx.x];
    SyncThreads();
  }
}

GPU_KERNEL(kThreads, 1) BarrierAfterReturn(const float* x, float* y) {
  if (threadIdx.x >= 40) return;
  y[threadIdx.x] = x[threadIdx.x];
  SyncThreads();
}

GPU_KERNEL(kThreads, 1) ShuffleByHalfAWarp(const float* x, float* y) {
  float value = x[threadIdx.x];
  if (threadIdx.x % 32 < 16) value += ShflXor(value, 1);
  y[threadIdx.x] = value;
}

GPU_KERNEL(kThreads, 1) OutsideItsMask(const float* x, float* y) {
  SyncWarp(0x0000ffff);
  y[threadIdx.x] = x[threadIdx.x];
}

GPU_KERNEL(kThreads, 1) CrossedMasks(const float* x, float* y) {
  const unsigned lane = threadIdx.x % 32;
  SyncWarp(lane == 0   ? 0x00000003u
           : lane == 1 ? 0x00000006u
           : lane == 2 ? 0x00000005u
                       : 1u << lane);
  y[threadIdx.x] = x[threadIdx.x];
}

GPU_KERNEL(kThreads, 1) Neighbours(const float* x, float* y) {
  GPU_SHARED(float, s, kThreads);
  s[threadIdx.x] = x[threadIdx.x];
  SyncWarp();
  y[threadIdx.x] = s[threadIdx.x ^ 1];
}

GPU_KERNEL(kThreads, 1) NeighboursWithoutBarrier(const float* x, float* y) {
  GPU_SHARED(float, s, kThreads);
  s[threadIdx.x] = x[threadIdx.x];
  y[threadIdx.x] = s[threadIdx.x ^ 1];
}

// Copies x to y through two asynchronous groups; `pending` groups may be missing when it reads.
template <int pending>
GPU_DEVICE void CopyThroughShared(const float* x, float* y, bool wait, bool barrier) {
  GPU_SHARED(float, s, kThreads);
  if (threadIdx.x < 16) {
    for (int half = 0; half < 2; ++half) {
      if (static_cast<int>(threadIdx.x / 8) == half)
        CopyAsync16(s + 4 * threadIdx.x, x + 4 * threadIdx.x);
      CopyAsyncCommit();
    }
    if (wait) CopyAsyncWait<pending>();
  }
  if (barrier) SyncThreads();
  y[threadIdx.x] = s[threadIdx.x];
}
GPU_KERNEL(kThreads, 1) Copied(const float* x, float* y) { CopyThroughShared<0>(x, y, true, true); }
GPU_KERNEL(kThreads, 1) CopiedWithoutWait(const float* x, float* y) {
  CopyThroughShared<0>(x, y, false, true);
}
GPU_KERNEL(kThreads, 1) CopiedWithShortWait(const float* x, float* y) {
  CopyThroughShared<1>(x, y, true, true);
}
GPU_KERNEL(kThreads, 1) CopiedWithoutBarrier(const float* x, float* y) {
  CopyThroughShared<0>(x, y, true, false);
}

GPU_KERNEL(kThreads, 1) NotInitialised(const float* x, float* y) {
  GPU_SHARED(float, s, kThreads);
  if (threadIdx.x != 0) s[threadIdx.x] = x[threadIdx.x];
  SyncThreads();
  float sum = 0;
  for (float value : s) sum += value;
  y[threadIdx.x] = sum;
}

GPU_KERNEL(kThreads, 1) SharedTooFar(const float* x, float* y) {
  GPU_DYNAMIC_SHARED(bytes);
  auto* s = reinterpret_cast<float*>(bytes);
  s[threadIdx.x + 1] = x[threadIdx.x];
  SyncThreads();
  y[threadIdx.x] = s[threadIdx.x + 1];
}

GPU_KERNEL(kThreads, 1) GlobalTooFar(const float* x, float* y) {
  y[threadIdx.x] = x[threadIdx.x];
  y[threadIdx.x + 1] = x[threadIdx.x];
}

GPU_KERNEL(kThreads, 1) Misaligned(const float* x, float* y) {
  const auto value = Load<float4>(x + 1);
  y[threadIdx.x] = value.x;
}

GPU_KERNEL(kThreads, 1) BlocksShareOutput(const float* x, float* y) {
  y[threadIdx.x] = x[threadIdx.x] + static_cast<float>(blockIdx.x);
}

GPU_KERNEL(kThreads, 1) TooMuchStatic(const float* x, float* y) {
  GPU_SHARED(float, s, 12289);
  s[threadIdx.x] = x[threadIdx.x];
  y[threadIdx.x] = s[threadIdx.x];
}

struct Case {
  const char* name;
  void (*kernel)(const float*, float*);
  const char* message;  // Part of what the failed launch says; null: wrong numbers are the sign.
  unsigned blocks = 1;
  bool right = false;
  std::function<float(int)> want = [](int i) { return static_cast<float>(i + 1); };
};

// Whether the schedule shows a fault; `failure`: what the launch said.
bool Faulty(const Case& c, std::string& failure) {
  std::vector<float> values(kThreads);
  for (int i = 0; i < kThreads; ++i)
    values[static_cast<std::size_t>(i)] = static_cast<float>(i + 1);
  const DeviceBuffer<float> x(values);
  DeviceBuffer<float> y(kThreads + 1);  // One more, for what writes too far.
  GPU_LAUNCH(c.kernel, c.blocks, kThreads, kThreads * sizeof(float), nullptr, x.data(), y.data());
  failure = simt::TakeFailure();
  const bool failed = cudaGetLastError() != cudaSuccess;
  EXPECT_EQ(failed, !failure.empty()) << failure;
  if (failed) return true;
  const std::vector<float> got = y.Get();
  for (int i = 0; i < kThreads; ++i) {
    if (got[static_cast<std::size_t>(i)] != c.want(i)) return true;
  }
  return got.back() == got.back();  // No longer NaN.
}

TEST(SimtTest, FindsPlantedFaults) {
  const auto sum = [](int) { return 2080.0f; };
  const auto reversed = [](int i) { return static_cast<float>(6 * (kThreads - i)); };
  const auto neighbour = [](int i) { return static_cast<float>((i ^ 1) + 1); };
  const Case cases[] = {
    {"Sum", &Sum, nullptr, 2, true, sum},
    {"Neighbours", &Neighbours, nullptr, 2, true, neighbour},
    {"Copied", &Copied, nullptr, 2, true},
    {"SumWithoutBarrier", &SumWithoutBarrier, nullptr, 1, false, sum},
    {"ReusedWithoutBarrier", &ReusedWithoutBarrier, nullptr, 1, false, reversed},
    {"DivergentBarrier", &DivergentBarrier, "divergent SyncThreads"},
    {"BarrierAfterReturn", &BarrierAfterReturn, "returned"},
    {"ShuffleByHalfAWarp", &ShuffleByHalfAWarp, "ShflXor"},
    {"OutsideItsMask", &OutsideItsMask, "is not in its mask 0000ffff"},
    {"CrossedMasks", &CrossedMasks, "wait for ever"},
    {"NeighboursWithoutBarrier", &NeighboursWithoutBarrier, nullptr, 1, false, neighbour},
    {"CopiedWithoutWait", &CopiedWithoutWait, nullptr},
    {"CopiedWithShortWait", &CopiedWithShortWait, nullptr},
    {"CopiedWithoutBarrier", &CopiedWithoutBarrier, nullptr},
    {"NotInitialised", &NotInitialised, nullptr, 1, false, sum},
#if !defined(PENSTOCK_SANITIZED)  // The address sanitizer would end the program.
    {"SharedTooFar", &SharedTooFar, "byte 256 of shared memory of 256 bytes"},
#endif
    {"GlobalTooFar", &GlobalTooFar, nullptr},
    {"Misaligned", &Misaligned, "misaligned"},
    {"BlocksShareOutput", &BlocksShareOutput, nullptr, 2},
    {"TooMuchStatic", &TooMuchStatic, "take 49156 bytes, 49152 at most"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    int found = 0;
    for (const simt::Schedule& schedule : simt::Schedules()) {
      SCOPED_TRACE(schedule.name);
      simt::SetSchedule(schedule);
      std::string failure;
      found += Faulty(c, failure) ? 1 : 0;
      if (c.right) {
        EXPECT_EQ(failure, "");
      }
      if (c.message != nullptr) {
        EXPECT_NE(failure.find(c.message), std::string::npos) << failure;
        EXPECT_NE(failure.find("simt_test.cc"), std::string::npos) << failure;
      }
    }
    simt::SetSchedule(simt::Schedules()[0]);
    EXPECT_EQ(found > 0, !c.right);
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

TEST(SimtTest, RefusesImpossibleLaunches) {
  DeviceBuffer<float> x(kThreads);
  struct Launched {
    dim3 grid, block;
    std::size_t shared_bytes;
    const char* message;
  };
  for (const Launched& c :
       {Launched{0, 32, 0, "grid of 0 x 1 x 1"}, Launched{1, 1025, 0, "block of 1025 x 1 x 1"},
        Launched{dim3(1, 65536), 32, 0, "grid of 1 x 65536 x 1"},
        Launched{1, 32, 49153, "49153 bytes of dynamic shared memory, but 49152"}}) {
    GPU_LAUNCH(Neighbours, c.grid, c.block, c.shared_bytes, nullptr, x.data(), x.data());
    EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidConfiguration);
    const std::string failure = simt::TakeFailure();
    EXPECT_NE(failure.find(c.message), std::string::npos) << failure;
  }
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  // With leave, up to what the smallest of the GPUs has.
  EXPECT_EQ(cudaFuncSetAttribute(Sum, cudaFuncAttributeMaxDynamicSharedMemorySize, 50000),
            cudaSuccess);
  EXPECT_EQ(cudaFuncSetAttribute(Sum, cudaFuncAttributeMaxDynamicSharedMemorySize, 200000),
            cudaErrorInvalidValue);
  GPU_LAUNCH(Sum, 1, kThreads, 50000, nullptr, x.data(), x.data());
  EXPECT_TRUE(Ran(cudaGetLastError()));
}

}  // namespace
}  // namespace penstock::kernels
