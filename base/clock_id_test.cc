// SPDX-License-Identifier: Apache-2.0
#include "base/clock_id.h"

#include "base/time.h"
#include "gtest/gtest.h"

namespace penstock {
namespace {

TEST(ClockIdTest, IsTheSameEachTime) {
  EXPECT_EQ(MonoClockId(), MonoClockId());
  // One line, at most: it travels as a word.
  EXPECT_EQ(MonoClockId().find('\n'), std::string::npos);
  EXPECT_LE(MonoClockId().size(), 128u);
}

TEST(ClockIdTest, UnixNanosAreThoseOfUnixSeconds) {
  const std::int64_t before = static_cast<std::int64_t>(NewEpoch());
  const std::int64_t nanos = UnixNanos();
  EXPECT_GE(nanos / 1000000, before);
  EXPECT_LE(nanos / 1000000, static_cast<std::int64_t>(NewEpoch()));
}

}  // namespace
}  // namespace penstock
