// SPDX-License-Identifier: Apache-2.0
// Kernels for the test of the emulator: each has one fault, but for the first ones.
#pragma once

#include <cstddef>
#include <span>

namespace penstock::kernels {

// Adds, reverses or copies x, [kFaultyThreads], to y, [kFaultyThreads + 1], of which the last is not
// to be written.
inline constexpr int kFaultyThreads = 64;

struct FaultyKernel {
  const char* name;
  void (*kernel)(const float* x, float* y);
  bool right;
  bool race;            // Its fault is one that the race check sees under every schedule.
  const char* message;  // Part of what the failed launch says; null: wrong numbers show it.
  unsigned blocks;
  float (*want)(int i);  // y[i] for x[i] = i + 1.
};

std::span<const FaultyKernel> FaultyKernels();
// kFaultyThreads threads per block and as many floats of dynamic shared memory.
void LaunchFaulty(const FaultyKernel& kernel, const float* x, float* y);

// One warp reads words of shared memory, each `stride` words apart, and writes what it read.
void LaunchStrided(int stride, float* y);
// One warp reads 16 bytes each, side by side.
void LaunchWide(float* y);

// One thread reads x[n] and makes nothing of it; n may be behind the end.
void LaunchReading(const float* x, int n, float* y);
// Writes y[0..31], then an early launch adds 1 to them. `waits`: the second waits before it reads.
void LaunchTwo(bool waits, float* y);
// An early launch that never waits.
void LaunchNeverWaiting(float* y);

}  // namespace penstock::kernels
