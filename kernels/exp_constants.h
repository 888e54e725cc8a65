// SPDX-License-Identifier: Apache-2.0
// The constants of kernels/exp.h, for its SIMD copies.
#pragma once

namespace penstock::kernels {

inline constexpr float kExpLow = -87.3f;   // exp of it is just above the smallest normal float.
inline constexpr float kExpHigh = 88.37f;  // exp of it is just below the largest.
// 2^-100 times the smallest F16 is still a normal float, so no product of a weight and an F16 value
// is subnormal, which CPUs are slow at.
inline constexpr float kExp2Low = -100.0f;

inline constexpr float kLog2E = 1.44269504088896341f;
inline constexpr float kLn2High = 0.693359375f;  // 355 / 512: n * kLn2High is exact for |n| < 2^15.
inline constexpr float kLn2Low = -2.12194440e-4f;  // ln 2 - kLn2High

// 1.5 * 2^23: a float of this size has no fraction bits, so adding it rounds to even and leaves the
// integer in the low bits of the sum, negative ones as two's complement.
inline constexpr float kRoundToInteger = 12582912.0f;

// Minimax fits of the relative error with the lowest coefficients held at floats, highest first.
// e^r on |r| <= ln(2) / 2, off by at most 3.2e-9.
inline constexpr int kExpTerms = 7;
inline constexpr float kExpPoly[kExpTerms] = {
    0.00138214428f, 0.00836867373f, 0.0416682586f, 0.166665211f, 0.49999994f, 1.0f, 1.0f};
// 2^r on |r| <= 1 / 2, off by at most 9.4e-8.
inline constexpr int kExp2Terms = 6;
inline constexpr float kExp2Poly[kExp2Terms] = {0.0013269519f, 0.00967129134f, 0.0555071086f,
                                                0.240222469f,  0.693147004f,   1.0f};

}  // namespace penstock::kernels
