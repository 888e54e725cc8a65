// SPDX-License-Identifier: Apache-2.0
// What this machine can do at most with the threads at hand, measured in the process whose work is
// judged by it: bytes read, float multiply-adds, int8 multiply-adds.
#pragma once

#include <cstddef>

#include "base/time.h"
#include "device/thread_pool.h"

namespace penstock::bench {

struct MachineLimits {
  double read_bytes_per_s = 0;  // Sums over a buffer of the size asked for, again and again.
  double fma_per_s = 0;         // Float multiply-adds, all lanes of all threads.
  double int_dot_per_s = 0;     // int8 multiply-adds: VNNI, else products summed up in 16 bits.
};

// Takes about a third of a second. Each figure is the best of a few tries. `read_bytes` is rounded
// up to 4 KiB per thread. The caller is worker 0 of `threads`.
MachineLimits MeasureMachineLimits(ThreadPool& threads, std::size_t read_bytes, const Clock& clock);

}  // namespace penstock::bench
