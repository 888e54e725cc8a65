// SPDX-License-Identifier: Apache-2.0
// What this machine can do at most with so many threads, measured in the process whose work is
// judged by it (kernels/bench_limits.h).
#pragma once

#include <cstddef>

namespace penstock::bench {

struct MachineLimits {
  double read_bytes_per_s = 0;  // Of a buffer of the size asked for, walked again and again.
  double fma_per_s = 0;         // Float multiply-adds.
  double int_dot_per_s = 0;     // int8 multiply-adds: VNNI, else products summed up in 16 bits.
};

// Takes about half a second, and `read_bytes` of memory. The best of several tries counts.
MachineLimits MeasureMachineLimits(int threads, std::size_t read_bytes);

}  // namespace penstock::bench
