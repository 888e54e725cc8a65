// SPDX-License-Identifier: Apache-2.0
// cos and sin of rotary angles: the same bits on every machine (libm's differ between CPUs), within
// 1e-15 of the truth before they are rounded to float.
//
// Cody-Waite reduction by pi/2 in two parts with fma, then Taylor polynomials on [-pi/4, pi/4];
// plain double arithmetic.
#pragma once

namespace penstock::kernels {

struct CosSin {
  float cos;
  float sin;
};

// `angle` finite, |angle| < 2^30: positions up to 2^28 times frequencies up to 1.
CosSin CosSinOf(double angle);

}  // namespace penstock::kernels
