// SPDX-License-Identifier: Apache-2.0
#include "kernels/exp.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels/exp_constants.h"

namespace penstock::kernels {
namespace {

// p * 2^n, for p near 1 and a normal result, with n in the low bits of `rounded`.
float ScaleByPowerOfTwo(float p, float rounded) {
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(p) +
                              (std::bit_cast<std::uint32_t>(rounded) << 23));
}

}  // namespace

float Exp(float x) {
  if (x < kExpLow) return 0;
  if (x > kExpHigh) return std::numeric_limits<float>::infinity();
  const float rounded = std::fma(x, kLog2E, kRoundToInteger);
  const float n = rounded - kRoundToInteger;
  const float r = std::fma(n, -kLn2Low, std::fma(n, -kLn2High, x));
  float p = kExpPoly[0];
  for (int i = 1; i < kExpTerms; ++i) p = std::fma(p, r, kExpPoly[i]);
  return ScaleByPowerOfTwo(p, rounded);
}

float Exp2(float x) {
  if (x < kExp2Low) return 0;
  const float rounded = x + kRoundToInteger;
  const float r = x - (rounded - kRoundToInteger);
  float p = kExp2Poly[0];
  for (int i = 1; i < kExp2Terms; ++i) p = std::fma(p, r, kExp2Poly[i]);
  return ScaleByPowerOfTwo(p, rounded);
}

}  // namespace penstock::kernels
