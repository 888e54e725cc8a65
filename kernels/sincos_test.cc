// SPDX-License-Identifier: Apache-2.0
#include "kernels/sincos.h"

#include <cmath>
#include <random>

#include "gtest/gtest.h"

namespace penstock::kernels {
namespace {

// libm's double results, rounded to float, are right but for rare ties: one float step is allowed.
void ExpectNear(double angle) {
  const CosSin got = CosSinOf(angle);
  const auto step = [](double want) { return std::max(std::abs(want) * 0x1p-23, 1e-15); };
  EXPECT_NEAR(got.cos, std::cos(angle), step(std::cos(angle))) << angle;
  EXPECT_NEAR(got.sin, std::sin(angle), step(std::sin(angle))) << angle;
}

TEST(SinCosTest, AgreesWithLibm) {
  for (const double angle : {0.0, 1e-300, 1e-8, 0.5, 1.0, 1.5707963267948966, 3.141592653589793,
                             6.283185307179586, 8191.0, 131071.0, 268435456.0, 1073741823.0}) {
    ExpectNear(angle);
    ExpectNear(-angle);
  }
  std::mt19937_64 random(1);
  for (const double magnitude : {1.0, 100.0, 1e4, 1e6, 1e9}) {
    std::uniform_real_distribution<double> angles(-magnitude, magnitude);
    for (int i = 0; i < 100000; ++i) ExpectNear(angles(random));
  }
}

TEST(SinCosTest, ExactAtQuarterTurnsOfZero) {
  EXPECT_EQ(CosSinOf(0).cos, 1.0f);
  EXPECT_EQ(CosSinOf(0).sin, 0.0f);
}

}  // namespace
}  // namespace penstock::kernels
