// SPDX-License-Identifier: Apache-2.0
#include "kernels/exp.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels/exp_constants.h"

namespace penstock::kernels {

float Exp(float x) {
  if (x < kExpLow) return 0;
  if (x > kExpHigh) return std::numeric_limits<float>::infinity();
  const float n = std::nearbyint(x * kLog2E);
  float r = std::fma(n, -kLn2High, x);
  r = std::fma(n, -kLn2Low, r);
  float p = kExpPoly[0];
  for (int i = 1; i < 7; ++i) p = std::fma(p, r, kExpPoly[i]);
  // 2^n in two factors, since n reaches 128 and -126 together with p just below and above 1.
  const std::int32_t exponent = static_cast<std::int32_t>(n);
  const std::int32_t half = exponent >> 1;
  const float first = std::bit_cast<float>((half + 127) << 23);
  const float second = std::bit_cast<float>((exponent - half + 127) << 23);
  return p * first * second;
}

}  // namespace penstock::kernels
