// SPDX-License-Identifier: Apache-2.0
// Time is an argument: only base/ reads clocks, everything else is handed `now` or a Clock.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace penstock {

using Duration = std::chrono::nanoseconds;
using MonoTime = std::chrono::steady_clock::time_point;  // Never compared across hosts.

class Clock {
 public:
  virtual ~Clock() = default;
  virtual MonoTime Now() const = 0;
};

// The machine's monotonic clock. Lives for ever; any thread.
const Clock& SteadyClock();

// What calendar and clock show where this machine stands. For text that people read, such as the
// date in a prompt; never for measuring: it jumps.
using CivilTime = std::chrono::local_seconds;
CivilTime CivilNow();

// Seconds since 1970, for formats that want to say when they were made; it jumps, too.
std::int64_t UnixNow();

// Names this life of a process: higher than those of earlier lives, as long as the machine's
// calendar does not go back (milliseconds since 1970).
std::uint64_t NewEpoch();

inline double ToSeconds(Duration d) { return std::chrono::duration<double>(d).count(); }
// From 0 to 1e9: what is beyond, as predictions may be, is taken for that.
inline Duration FromSeconds(double seconds) {
  return std::chrono::duration_cast<Duration>(
      std::chrono::duration<double>(std::clamp(seconds, 0.0, 1e9)));
}
inline double ToMillis(Duration d) { return std::chrono::duration<double, std::milli>(d).count(); }

}  // namespace penstock
