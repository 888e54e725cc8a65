// SPDX-License-Identifier: Apache-2.0
#include "kvstore/eviction_curves.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace penstock::kvstore {
namespace {

TEST(AgeBucketTest, AreHalfOctaves) {
  EXPECT_EQ(AgeBucket(0), 0U);
  EXPECT_EQ(AgeBucket(0.999), 0U);
  EXPECT_EQ(AgeBucket(1), 1U);
  EXPECT_EQ(AgeBucket(1.999), 2U);
  EXPECT_EQ(AgeBucket(2), 3U);
  EXPECT_EQ(AgeBucket(1e9), kAgeBuckets - 1);
  for (std::size_t b = 0; b < kAgeBuckets; ++b) {
    EXPECT_EQ(AgeBucket(AgeBegin(b)), b);
    EXPECT_GT(AgeWidth(b), 0);
  }
  EXPECT_DOUBLE_EQ(AgeBegin(11), 32);
}

// A block that comes at `at` and is asked for again after `gap`, or not before `end`.
void Live(ReuseCurves& curves, std::uint32_t cls, double at, double gap, double end) {
  const double until = std::min(gap, end - at);
  const std::size_t last = AgeBucket(until);
  for (std::size_t b = 0; b < last; ++b) curves.Pass(cls, b, 1);
  curves.Enter(cls, last, 1, at + AgeBegin(last));
  if (gap > until) return;
  curves.Leave(cls, last, 1, at + AgeBegin(last), at + gap);
  curves.Hit(cls, last, 1);
}

TEST(ReuseCurvesTest, NothingLearnedIsRecency) {
  ReuseCurves curves({.groups = {0}});
  curves.See(0);
  curves.Fit(0, 50);
  for (std::size_t b = 2; b < kAgeBuckets; ++b) {  // The first second is one age.
    EXPECT_LT(curves.Index(0, b), curves.Index(0, b - 1)) << b;
  }
}

// Without memory, a block is worth its rate at any age, be it cut short by the end of what was seen.
TEST(ReuseCurvesTest, FindsTheRateOfWhatHasNoMemory) {
  for (const double rate : {0.1, 0.01}) {
    SCOPED_TRACE(rate);
    ReuseCurves curves({.groups = {0}, .half_life_s = 1e12});
    std::mt19937_64 random(3);
    const double end = 3 / rate;
    for (int i = 0; i < 200000; ++i) {
      const double at = end * static_cast<double>(random() >> 11) * 0x1p-53;
      Live(curves, 0, at, -std::log1p(-static_cast<double>(random() >> 11) * 0x1p-53) / rate, end);
    }
    curves.Fit(end, 50);
    for (std::size_t b = 4; AgeBegin(b + 1) < 1 / rate; ++b) {
      EXPECT_NEAR(curves.Index(0, b), rate, 0.15 * rate) << b;
    }
  }
}

TEST(ReuseCurvesTest, TellsClassesApartAndWaitsForWhatIsDue) {
  ReuseCurves curves({.groups = {0, 0}});
  for (int i = 0; i < 5000; ++i) {
    Live(curves, 0, 0, 100, 2000);  // Comes back after 100 s, always.
    Live(curves, 1, 0, 1e6, 2000);  // Never does.
  }
  curves.Fit(2000, 50);
  EXPECT_GT(curves.Index(0, AgeBucket(50)), 10 * curves.Index(1, AgeBucket(50)));
  // The nearer it is, the less it costs to wait for it; afterwards nothing is left to wait for.
  EXPECT_GT(curves.Index(0, AgeBucket(80)), 1.5 * curves.Index(0, AgeBucket(2)));
  EXPECT_LT(curves.Index(0, AgeBucket(400)), 0.5 * curves.Index(0, AgeBucket(80)));
}

TEST(ReuseCurvesTest, ForgetsByHalfLives) {
  ReuseCurves curves({.groups = {0}, .half_life_s = 100});
  for (int i = 0; i < 1000; ++i) Live(curves, 0, 0, 10, 1000);
  curves.Fit(20, 50);
  const double before = curves.Index(0, AgeBucket(9));
  for (int i = 0; i < 1000; ++i) {  // Nothing comes back any more.
    for (std::size_t b = 0; b <= AgeBucket(10); ++b) curves.Pass(0, b, 1);
  }
  curves.Fit(2020, 50);
  for (int i = 0; i < 1000; ++i) {
    for (std::size_t b = 0; b <= AgeBucket(10); ++b) curves.Pass(0, b, 1);
  }
  curves.Fit(2021, 50);
  EXPECT_LT(curves.Index(0, AgeBucket(9)), 0.2 * before);
}

}  // namespace
}  // namespace penstock::kvstore
