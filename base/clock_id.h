// SPDX-License-Identifier: Apache-2.0
// What is needed to bring times of several processes on one line. Any thread.
#pragma once

#include <cstdint>
#include <string>

namespace penstock {

// Processes with the same id read the very same monotonic clock: one boot of one machine, in one
// time namespace. Empty where the machine does not say.
std::string MonoClockId();

// Nanoseconds since 1970, for formats that want to say when something was. It jumps.
std::int64_t UnixNanos();

}  // namespace penstock
