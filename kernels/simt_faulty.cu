// SPDX-License-Identifier: Apache-2.0
#include "kernels/gpu.h"
#include "kernels/simt_faulty.h"

namespace penstock::kernels {
namespace {

using namespace gpu;

GPU_KERNEL(kFaultyThreads, 1) Sum(const float* x, float* y) {
  GPU_SHARED(float, s, kFaultyThreads);
  s[threadIdx.x] = x[threadIdx.x];
  SyncThreads();
  float sum = 0;
  for (float value : s) sum += value;
  y[threadIdx.x] = sum;
}

GPU_KERNEL(kFaultyThreads, 1) SumWithoutBarrier(const float* x, float* y) {
  GPU_SHARED(float, s, kFaultyThreads);
  s[threadIdx.x] = x[threadIdx.x];
  float sum = 0;
  for (float value : s) sum += value;
  y[threadIdx.x] = sum;
}

GPU_KERNEL(kFaultyThreads, 1) ReusedWithoutBarrier(const float* x, float* y) {
  GPU_SHARED(float, s, kFaultyThreads);
  float sum = 0;
  for (int round = 1; round <= 3; ++round) {
    s[threadIdx.x] = x[threadIdx.x] * static_cast<float>(round);
    SyncThreads();
    sum += s[kFaultyThreads - 1 - threadIdx.x];
  }
  y[threadIdx.x] = sum;
}

GPU_KERNEL(kFaultyThreads, 1) DivergentBarrier(const float* x, float* y) {
  if (threadIdx.x < 32) {
    SyncThreads();
    y[threadIdx.x] = x[threadIdx.x];
  } else {
    y[threadIdx.x] = x[threadIdx.x];
    SyncThreads();
  }
}

GPU_KERNEL(kFaultyThreads, 1) BarrierAfterReturn(const float* x, float* y) {
  if (threadIdx.x >= 40) return;
  y[threadIdx.x] = x[threadIdx.x];
  SyncThreads();
}

GPU_KERNEL(kFaultyThreads, 1) ShuffleByHalfAWarp(const float* x, float* y) {
  float value = x[threadIdx.x];
  if (threadIdx.x % 32 < 16) value += ShflXor(value, 1);
  y[threadIdx.x] = value;
}

GPU_KERNEL(kFaultyThreads, 1) OutsideItsMask(const float* x, float* y) {
  SyncWarp(0x0000ffff);
  y[threadIdx.x] = x[threadIdx.x];
}

GPU_KERNEL(kFaultyThreads, 1) CrossedMasks(const float* x, float* y) {
  const unsigned lane = threadIdx.x % 32;
  SyncWarp(lane == 0   ? 0x00000003u
           : lane == 1 ? 0x00000006u
           : lane == 2 ? 0x00000005u
                       : 1u << lane);
  y[threadIdx.x] = x[threadIdx.x];
}

GPU_KERNEL(kFaultyThreads, 1) Neighbours(const float* x, float* y) {
  GPU_SHARED(float, s, kFaultyThreads);
  s[threadIdx.x] = x[threadIdx.x];
  SyncWarp();
  y[threadIdx.x] = s[threadIdx.x ^ 1];
}

GPU_KERNEL(kFaultyThreads, 1) NeighboursWithoutBarrier(const float* x, float* y) {
  GPU_SHARED(float, s, kFaultyThreads);
  s[threadIdx.x] = x[threadIdx.x];
  y[threadIdx.x] = s[threadIdx.x ^ 1];
}

// Copies x to y through two asynchronous groups; `pending` groups may be missing when it reads.
template <int pending>
GPU_DEVICE void CopyThroughShared(const float* x, float* y, bool wait, bool barrier) {
  GPU_SHARED(float, s, kFaultyThreads);
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
GPU_KERNEL(kFaultyThreads, 1) Copied(const float* x, float* y) {
  CopyThroughShared<0>(x, y, true, true);
}
GPU_KERNEL(kFaultyThreads, 1) CopiedWithoutWait(const float* x, float* y) {
  CopyThroughShared<0>(x, y, false, true);
}
GPU_KERNEL(kFaultyThreads, 1) CopiedWithShortWait(const float* x, float* y) {
  CopyThroughShared<1>(x, y, true, true);
}
GPU_KERNEL(kFaultyThreads, 1) CopiedWithoutBarrier(const float* x, float* y) {
  CopyThroughShared<0>(x, y, true, false);
}

GPU_KERNEL(kFaultyThreads, 1) NotInitialised(const float* x, float* y) {
  GPU_SHARED(float, s, kFaultyThreads);
  if (threadIdx.x != 0) s[threadIdx.x] = x[threadIdx.x];
  SyncThreads();
  float sum = 0;
  for (float value : s) sum += value;
  y[threadIdx.x] = sum;
}

GPU_KERNEL(kFaultyThreads, 1) SharedTooFar(const float* x, float* y) {
  GPU_DYNAMIC_SHARED(bytes);
  auto* s = reinterpret_cast<float*>(bytes);
  s[threadIdx.x + 1] = x[threadIdx.x];
  SyncThreads();
  y[threadIdx.x] = s[threadIdx.x + 1];
}

GPU_KERNEL(kFaultyThreads, 1) GlobalTooFar(const float* x, float* y) {
  y[threadIdx.x] = x[threadIdx.x];
  y[threadIdx.x + 1] = x[threadIdx.x];
}

GPU_KERNEL(kFaultyThreads, 1) Misaligned(const float* x, float* y) {
  const auto value = Load<float4>(x + 1);
  y[threadIdx.x] = value.x;
}

GPU_KERNEL(kFaultyThreads, 1) BlocksShareOutput(const float* x, float* y) {
  y[threadIdx.x] = x[threadIdx.x] + static_cast<float>(blockIdx.x);
}

// y begins as 0xff bytes, which one of the two blocks turns into zeros.
GPU_KERNEL(kFaultyThreads, 1) AtomicOfBlocks(const float* x, float* y) {
  AtomicXor(reinterpret_cast<std::uint32_t*>(&y[threadIdx.x]),
            blockIdx.x == 0 ? BitsFromFloat(x[threadIdx.x]) : ~0u);
}

GPU_KERNEL(kFaultyThreads, 1) AtomicBesidePlain(const float* x, float* y) {
  const std::uint32_t bits = BitsFromFloat(x[threadIdx.x]);
  if (blockIdx.x == 0) {
    AtomicXor(reinterpret_cast<std::uint32_t*>(&y[threadIdx.x]), ~bits);
  } else {
    y[threadIdx.x] = x[threadIdx.x];
  }
}

GPU_KERNEL(kFaultyThreads, 1) TooMuchStatic(const float* x, float* y) {
  GPU_SHARED(float, s, 12289);
  s[threadIdx.x] = x[threadIdx.x];
  y[threadIdx.x] = s[threadIdx.x];
}

// One warp.
GPU_KERNEL(32, 1) Strided(int stride, float* y) {
  GPU_SHARED(float, s, 32 * 33);
  for (int i = 0; i < 33; ++i) s[32 * i + static_cast<int>(threadIdx.x)] = 1;
  SyncWarp();
  y[threadIdx.x] = s[static_cast<int>(threadIdx.x) * stride];
}

// One warp.
GPU_KERNEL(32, 1) Wide(float* y) {
  GPU_SHARED(float4, s, 32);
  Store(&s[threadIdx.x], float4{1, 2, 3, 4});
  SyncWarp();
  y[threadIdx.x] = Load<float4>(&s[31 - threadIdx.x]).x;
}

// One thread.
GPU_KERNEL(32, 1) Reading(const float* x, int n, float* y) { y[0] = x[n] == 1234.5f ? 2.0f : 1.0f; }

// One warp.
GPU_KERNEL(32, 1) First(float* y) {
  LetNextStart();
  y[threadIdx.x] = 1;
}

// One warp.
GPU_KERNEL(32, 1) Second(bool waits, float* y) {
  if (waits) WaitForEarlier();
  y[threadIdx.x] += 1;
  if (!waits) WaitForEarlier();
}

float Count(int i) { return static_cast<float>(i + 1); }
float Total(int /*i*/) { return 2080; }
float ReversedSixfold(int i) { return static_cast<float>(6 * (kFaultyThreads - i)); }
float Neighbour(int i) { return static_cast<float>((i ^ 1) + 1); }

constexpr const char* kBehindShared = "byte 256 of shared memory of 256 bytes";

constexpr FaultyKernel kKernels[] = {
    {"Sum", &Sum, true, false, nullptr, 1, &Total},
    {"Neighbours", &Neighbours, true, false, nullptr, 1, &Neighbour},
    {"Copied", &Copied, true, false, nullptr, 1, &Count},
    {"AtomicOfBlocks", &AtomicOfBlocks, true, false, nullptr, 2, &Count},
    {"SumWithoutBarrier", &SumWithoutBarrier, false, true, nullptr, 1, &Total},
    {"ReusedWithoutBarrier", &ReusedWithoutBarrier, false, true, nullptr, 1, &ReversedSixfold},
    {"DivergentBarrier", &DivergentBarrier, false, false, "divergent SyncThreads", 1, &Count},
    {"BarrierAfterReturn", &BarrierAfterReturn, false, false, "returned", 1, &Count},
    {"ShuffleByHalfAWarp", &ShuffleByHalfAWarp, false, false, "ShflXor", 1, &Count},
    {"OutsideItsMask", &OutsideItsMask, false, false, "is not in its mask 0000ffff", 1, &Count},
    {"CrossedMasks", &CrossedMasks, false, false, "wait for ever", 1, &Count},
    {"NeighboursWithoutBarrier", &NeighboursWithoutBarrier, false, true, nullptr, 1, &Neighbour},
    {"CopiedWithoutWait", &CopiedWithoutWait, false, true, nullptr, 1, &Count},
    {"CopiedWithShortWait", &CopiedWithShortWait, false, true, nullptr, 1, &Count},
    {"CopiedWithoutBarrier", &CopiedWithoutBarrier, false, true, nullptr, 1, &Count},
    {"NotInitialised", &NotInitialised, false, false, nullptr, 1, &Total},
    {"SharedTooFar", &SharedTooFar, false, false, kBehindShared, 1, &Count},
    {"GlobalTooFar", &GlobalTooFar, false, true, nullptr, 1, &Count},
    {"Misaligned", &Misaligned, false, false, "misaligned", 1, &Count},
    {"BlocksShareOutput", &BlocksShareOutput, false, true, nullptr, 2, &Count},
    {"AtomicBesidePlain", &AtomicBesidePlain, false, true, nullptr, 2, &Count},
    {"TooMuchStatic", &TooMuchStatic, false, false, "take 49156 bytes, 49152 at most", 1, &Count},
};

}  // namespace

std::span<const FaultyKernel> FaultyKernels() { return kKernels; }

void LaunchFaulty(const FaultyKernel& kernel, const float* x, float* y) {
  GPU_LAUNCH(kernel.kernel, kernel.blocks, kFaultyThreads, kFaultyThreads * sizeof(float), nullptr,
             x, y);
}

void LaunchStrided(int stride, float* y) { GPU_LAUNCH(Strided, 1, 32, 0, nullptr, stride, y); }

void LaunchWide(float* y) { GPU_LAUNCH(Wide, 1, 32, 0, nullptr, y); }

void LaunchReading(const float* x, int n, float* y) {
  GPU_LAUNCH(Reading, 1, 1, 0, nullptr, x, n, y);
}

void LaunchTwo(bool waits, float* y) {
  GPU_LAUNCH(First, 1, 32, 0, nullptr, y);
  GPU_LAUNCH_EARLY(Second, 1, 32, 0, nullptr, waits, y);
}

void LaunchNeverWaiting(float* y) { GPU_LAUNCH_EARLY(First, 1, 32, 0, nullptr, y); }

}  // namespace penstock::kernels
