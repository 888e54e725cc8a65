// SPDX-License-Identifier: Apache-2.0
#include "base/clock_id.h"

#include <unistd.h>

#include <array>
#include <chrono>
#include <fstream>

namespace penstock {

std::string MonoClockId() {
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  // "time:[4026531834]"; kernels before 5.6 have none, and then all processes share one.
  std::array<char, 64> space{};
  const ssize_t size = ::readlink("/proc/self/ns/time", space.data(), space.size());
  if (boot.empty() || size <= 0) return boot;
  return boot + " " + std::string(space.data(), static_cast<std::size_t>(size));
}

std::int64_t UnixNanos() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

}  // namespace penstock
