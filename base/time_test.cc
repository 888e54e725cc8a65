// SPDX-License-Identifier: Apache-2.0
#include "base/time.h"

#include <cstdlib>
#include <ctime>

#include "gtest/gtest.h"

namespace penstock {
namespace {

// What CivilNow says in a zone, in POSIX's notation: there "XXX-5" is five hours ahead of UTC.
CivilTime CivilIn(const char* zone) {
  ::setenv("TZ", zone, 1);
  ::tzset();
  return CivilNow();
}

TEST(CivilNowTest, IsThatOfTheTimeZone) {
  const auto utc = std::chrono::floor<std::chrono::seconds>(std::chrono::system_clock::now());
  const CivilTime here = CivilIn("UTC0");
  EXPECT_GE(here.time_since_epoch(), utc.time_since_epoch());
  EXPECT_LT(here.time_since_epoch(), utc.time_since_epoch() + std::chrono::minutes(10));
  EXPECT_GE(CivilIn("XXX-5") - here, std::chrono::hours(5));
  EXPECT_LT(CivilIn("XXX+5:30") - here, std::chrono::hours(-5));
}

}  // namespace
}  // namespace penstock
