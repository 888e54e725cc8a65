// SPDX-License-Identifier: Apache-2.0
// kernels/exp.h for GPU kernels: the same bits.
#pragma once

#include "kernels/gpu.h"
//
#include <cstdint>

#include "kernels/exp_constants.h"

namespace penstock::kernels {

GPU_DEVICE float ExpCuda(float x) {
  constexpr float p0 = kExpPoly[0], p1 = kExpPoly[1], p2 = kExpPoly[2], p3 = kExpPoly[3],
                  p4 = kExpPoly[4], p5 = kExpPoly[5], p6 = kExpPoly[6];
  if (x < kExpLow) return 0;
  if (x > kExpHigh) return gpu::FloatFromBits(0x7f800000);
  const float rounded = gpu::Fma(x, kLog2E, kRoundToInteger);
  const float n = rounded - kRoundToInteger;
  const float r = gpu::Fma(n, -kLn2Low, gpu::Fma(n, -kLn2High, x));
  float p = gpu::Fma(p0, r, p1);
  p = gpu::Fma(p, r, p2);
  p = gpu::Fma(p, r, p3);
  p = gpu::Fma(p, r, p4);
  p = gpu::Fma(p, r, p5);
  p = gpu::Fma(p, r, p6);
  return gpu::FloatFromBits(gpu::BitsFromFloat(p) + (gpu::BitsFromFloat(rounded) << 23));
}

// As kernels/exp.h's Exp2. A NaN stays one: a GPU's own has all bits set, and adding an exponent to
// those would make a number of it.
GPU_DEVICE float Exp2Cuda(float x) {
  const float rounded = x + kRoundToInteger;
  const float r = x - (rounded - kRoundToInteger);
  constexpr float k0 = kExp2Poly[0], k1 = kExp2Poly[1], k2 = kExp2Poly[2];
  constexpr float k3 = kExp2Poly[3], k4 = kExp2Poly[4], k5 = kExp2Poly[5];
  static_assert(kExp2Terms == 6);
  const float p =
      gpu::Fma(gpu::Fma(gpu::Fma(gpu::Fma(gpu::Fma(k0, r, k1), r, k2), r, k3), r, k4), r, k5);
  const float scaled =
      gpu::FloatFromBits(gpu::BitsFromFloat(p) + (gpu::BitsFromFloat(rounded) << 23));
  return x < kExp2Low ? 0.0f : x == x ? scaled : x;
}

}  // namespace penstock::kernels
