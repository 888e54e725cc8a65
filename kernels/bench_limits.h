// SPDX-License-Identifier: Apache-2.0
// What this machine can do at most, for benchmarks: each measures its limits in
// its own run and reports what it reaches of them. Times are the best of short pieces, since other
// work on the machine only ever takes time away.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "base/time.h"
#include "device/thread_pool.h"

namespace penstock::kernels {

// A pool of that many threads, made once. For the main thread.
ThreadPool& BenchThreads(int threads);

// The best time of each of several pieces of work.
class BestTimes {
 public:
  explicit BestTimes(std::size_t pieces) : best_(pieces, std::numeric_limits<double>::infinity()) {}
  template <typename Work>
  void Run(std::size_t piece, Work work) {
    const MonoTime begin = SteadyClock().Now();
    work();
    best_[piece] = std::min(best_[piece], ToSeconds(SteadyClock().Now() - begin));
  }
  std::size_t pieces() const { return best_.size(); }
  double Sum() const { return std::accumulate(best_.begin(), best_.end(), 0.0); }

 private:
  std::vector<double> best_;
};

// 1e9 multiplications with addition per second, in registers, all threads together: of floats, or
// of int8 with the instruction that the best target uses (dpbusd, or maddubs). Measured once, in
// some 20 milliseconds. 0 on a CPU without AVX2.
double PeakGmacs(int threads, bool floats);

// Walks over memory that do nothing else, whole lines of 256 bytes only, with the widest registers
// of this CPU. Read fetches ahead, as the products do: it is faster than the CPU's own prefetching.
void ReadBytes(const std::byte* from, std::size_t bytes);
void UpdateBytes(std::byte* at, std::size_t bytes);  // Reads and writes each in its place.

// Reads [from, from + bytes) on all threads, piece by piece of the same size.
void ReadOnce(const std::byte* from, std::size_t bytes, int threads, BestTimes& times);

}  // namespace penstock::kernels
