// SPDX-License-Identifier: Apache-2.0
#include "bench/machine_limits.h"

#include <algorithm>
#include <cstddef>
#include <vector>

#include "kernels/bench_limits.h"

namespace penstock::bench {
namespace {

constexpr std::size_t kPieceBytes = std::size_t{16} << 20;
constexpr std::size_t kReadBytesInAll = std::size_t{2} << 30;

}  // namespace

MachineLimits MeasureMachineLimits(int threads, std::size_t read_bytes) {
  const std::vector<std::byte> buffer(std::max(read_bytes, kPieceBytes), std::byte{1});
  kernels::BestTimes times(buffer.size() / kPieceBytes);
  for (std::size_t read = 0; read < kReadBytesInAll; read += buffer.size()) {
    kernels::ReadOnce(buffer.data(), buffer.size(), threads, times);
  }
  return {.read_bytes_per_s = static_cast<double>(buffer.size()) / times.Sum(),
          .fma_per_s = kernels::PeakGmacs(threads, /*floats=*/true) * 1e9,
          .int_dot_per_s = kernels::PeakGmacs(threads, /*floats=*/false) * 1e9};
}

}  // namespace penstock::bench
