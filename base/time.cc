// SPDX-License-Identifier: Apache-2.0
#include "base/time.h"

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

}  // namespace penstock
