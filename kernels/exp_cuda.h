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

}  // namespace penstock::kernels
