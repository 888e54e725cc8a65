// SPDX-License-Identifier: Apache-2.0
#include "base/time.h"

#include <ctime>

namespace penstock {
namespace {

class SteadyClockImpl final : public Clock {
 public:
  MonoTime Now() const override { return std::chrono::steady_clock::now(); }
};

}  // namespace

const Clock& SteadyClock() {
  static const SteadyClockImpl clock;
  return clock;
}

CivilTime CivilNow() {
  const std::time_t now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  std::tm civil{};
  ::localtime_r(&now, &civil);
  return CivilTime(std::chrono::seconds(now + civil.tm_gmtoff));
}

std::int64_t UnixNow() {
  return std::chrono::duration_cast<std::chrono::seconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

std::uint64_t NewEpoch() {
  return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::milliseconds>(
                                        std::chrono::system_clock::now().time_since_epoch())
                                        .count());
}

}  // namespace penstock
