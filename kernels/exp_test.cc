// SPDX-License-Identifier: Apache-2.0
#include "kernels/exp.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <iostream>
#include <limits>
#include <vector>

#include "device/cpu_info.h"
#include "kernels/exp_avx2.h"
#include "kernels/exp_avx512.h"
#include "kernels/exp_constants.h"

namespace penstock::kernels {
namespace {

using Block = void (*)(const float* x, float* exp, float* exp2);  // 16 floats at a time.

[[PENSTOCK_AVX2]] void BlockAvx2(const float* x, float* exp, float* exp2) {
  for (int i = 0; i < 16; i += 8) {
    _mm256_storeu_ps(exp + i, Exp(_mm256_loadu_ps(x + i)));
    _mm256_storeu_ps(exp2 + i, Exp2(_mm256_loadu_ps(x + i)));
  }
}

[[PENSTOCK_AVX512]] void BlockAvx512(const float* x, float* exp, float* exp2) {
  _mm512_storeu_ps(exp, Exp(_mm512_loadu_ps(x)));
  _mm512_storeu_ps(exp2, Exp2(_mm512_loadu_ps(x)));
}

// In units of the last place of a float near `want`.
double Ulps(float got, double want) {
  int exponent;
  std::frexp(want, &exponent);
  return std::abs(double{got} - want) / std::ldexp(1.0, exponent - 24);
}

// Every 251st bit pattern, a prime, so that all mantissas' endings come up: signs, subnormals,
// infinities and NaNs included.
constexpr std::uint32_t kStride = 251;

TEST(ExpTest, WithinItsUlps) {
  double exp_worst = 0;
  double exp2_worst = 0;
  for (std::uint64_t bits = 0; bits < (std::uint64_t{1} << 32); bits += kStride) {
    const float x = std::bit_cast<float>(static_cast<std::uint32_t>(bits));
    if (x >= kExpLow && x <= kExpHigh) {
      exp_worst = std::max(exp_worst, Ulps(Exp(x), std::exp(double{x})));
    }
    if (x >= kExp2Low && x <= 0) {
      exp2_worst = std::max(exp2_worst, Ulps(Exp2(x), std::exp2(double{x})));
    }
  }
  std::cout << "Exp " << exp_worst << " ulp, Exp2 " << exp2_worst << " ulp\n";
  EXPECT_LT(exp_worst, 1);
  EXPECT_LT(exp2_worst, 2);
}

TEST(ExpTest, Edges) {
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(Exp(0), 1);
  EXPECT_EQ(Exp(-0.0f), 1);
  EXPECT_EQ(Exp(-infinity), 0);
  EXPECT_EQ(Exp(infinity), infinity);
  EXPECT_EQ(Exp(std::nextafter(kExpLow, -infinity)), 0);
  EXPECT_GT(Exp(kExpLow), std::numeric_limits<float>::min());
  EXPECT_EQ(Exp(std::nextafter(kExpHigh, infinity)), infinity);
  EXPECT_LT(Exp(kExpHigh), infinity);
  EXPECT_EQ(Exp2(0), 1);
  EXPECT_EQ(Exp2(-0.0f), 1);
  EXPECT_EQ(Exp2(-1), 0.5f);
  EXPECT_EQ(Exp2(-infinity), 0);
  EXPECT_EQ(Exp2(kExp2Low), 0x1p-100f);
  EXPECT_EQ(Exp2(std::nextafter(kExp2Low, -infinity)), 0);
}

void ExpectScalarBits(Block block) {
  float x[16];
  float exp[16];
  float exp2[16];
  for (std::uint64_t begin = 0; begin < (std::uint64_t{1} << 32); begin += 16 * kStride) {
    for (std::uint32_t i = 0; i < 16; ++i) {
      x[i] = std::bit_cast<float>(static_cast<std::uint32_t>(begin + i * kStride));
    }
    block(x, exp, exp2);
    for (int i = 0; i < 16; ++i) {
      if (std::isnan(x[i])) continue;  // Any bits will do.
      ASSERT_EQ(std::bit_cast<std::uint32_t>(exp[i]), std::bit_cast<std::uint32_t>(Exp(x[i])))
          << x[i];
      if (x[i] > 0) continue;  // Not for Exp2.
      ASSERT_EQ(std::bit_cast<std::uint32_t>(exp2[i]), std::bit_cast<std::uint32_t>(Exp2(x[i])))
          << x[i];
    }
  }
}

TEST(ExpTest, Avx2HasTheScalarBits) {
  if (!ThisCpu().avx2) GTEST_SKIP() << "no AVX2";
  ExpectScalarBits(BlockAvx2);
}

TEST(ExpTest, Avx512HasTheScalarBits) {
  if (!ThisCpu().avx512) GTEST_SKIP() << "no AVX-512";
  ExpectScalarBits(BlockAvx512);
}

}  // namespace
}  // namespace penstock::kernels
