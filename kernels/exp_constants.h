// SPDX-License-Identifier: Apache-2.0
// The constants of kernels/exp.h, for its SIMD copies.
#pragma once

namespace penstock::kernels {

inline constexpr float kExpLow = -87.3f;   // exp of it is just above the smallest normal float.
inline constexpr float kExpHigh = 88.37f;  // exp of it is just below the largest.
inline constexpr float kLog2E = 1.44269504088896341f;
inline constexpr float kLn2High = 0.693359375f;  // 355 / 512: n * kLn2High is exact for |n| < 2^15.
inline constexpr float kLn2Low = -2.12194440e-4f;  // ln 2 - kLn2High
// Taylor terms 1/6! ... 1/0!, highest first; |r| <= ln(2)/2, so what is cut off is below 1.2e-7 of
// the result.
inline constexpr float kExpPoly[7] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6,
                                      0.5f,       1.0f,       1.0f};

}  // namespace penstock::kernels
