// SPDX-License-Identifier: Apache-2.0
// The numbers behind kernels/draw.h, for CPU and GPU alike: plain multiplications and additions, none
// contracted, so that all of them give the same bits.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>

namespace penstock::kernels {

inline constexpr int kDrawWeightBits = 38;  // exp(0) weighs 2^38.

// exp(x) for x of at most 0, within 2 ulp: libm picks its version by the CPU. From -700 down, and for
// NaN, that of -700, which is no unit of a weight. Without branches, so that compilers vectorize it with what every x86-64 has.
constexpr double ExpNegative(double exponent) {
  constexpr double kLowest = -700;
  constexpr double kRound = 0x1.8p52;  // Adding it leaves x rounded to an integer in the low bits.
  const double x = exponent > kLowest ? exponent : kLowest;
  const double shifted = x * 0x1.71547652b82fep+0 + kRound;  // log2(e)
  const double n = shifted - kRound;
  const double r = (x - n * 0x1.62e42feep-1) - n * 0x1.a39ef35793c76p-33;  // ln(2) in two parts.
  // Taylor, to r^13: |r| <= 0.3466, so that the rest is below 2^-57.
  double p = 1.0 / 6227020800.0;
  p = p * r + 1.0 / 479001600;
  p = p * r + 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = p * r + 1;
  p = p * r + 1;
  const std::uint64_t power = (std::bit_cast<std::uint64_t>(shifted) + 1023) << 52;
  return p * std::bit_cast<double>(power);
}

// A weight of at most 1 in units of 2^-38, rounded to even.
constexpr std::uint64_t DrawUnits(double weight) {
  constexpr double kRound = 0x1p52;  // The integer is in the low bits of the sum.
  const double shifted = weight * static_cast<double>(std::uint64_t{1} << kDrawWeightBits) + kRound;
  return std::bit_cast<std::uint64_t>(shifted) - std::bit_cast<std::uint64_t>(kRound);
}

// What a token weighs. `logit` is not NaN.
constexpr std::uint64_t DrawWeight(float logit, float max, double temperature) {
  return DrawUnits(ExpNegative((double{logit} - double{max}) / temperature));
}

// `share`, of [0, 1], of a mass of 1 to 2^62, but at least `least` and at most `most`.
constexpr std::uint64_t ShareOfMass(double share, std::uint64_t mass, std::uint64_t least,
                                    std::uint64_t most) {
  const auto part = static_cast<std::uint64_t>(
      static_cast<std::int64_t>(share * static_cast<double>(static_cast<std::int64_t>(mass))));
  return part < least ? least : part > most ? most : part;
}
// What a token must weigh to pass min_p.
constexpr std::uint64_t LeastWeight(double min_p, std::uint64_t heaviest) {
  return ShareOfMass(min_p, heaviest, 1, heaviest);
}
// The mass that a nucleus reaches.
constexpr std::uint64_t NucleusMass(double top_p, std::uint64_t mass) {
  return ShareOfMass(top_p, mass, 1, mass);
}
// The mass that is gone by before the token that is drawn.
constexpr std::uint64_t MassBefore(double uniform, std::uint64_t mass) {
  return ShareOfMass(uniform, mass, 0, mass - 1);
}

// The order of tokens as integers: larger logits have larger keys, equal ones the same, and NaN that of
// -infinity. Every key is above 0.
constexpr std::uint32_t DrawKey(float logit) {
  const float number = logit == logit ? logit : -std::numeric_limits<float>::infinity();
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(number + 0.0f);  // No -0.
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}
// The logit of a key.
constexpr float LogitOfKey(std::uint32_t key) {
  return std::bit_cast<float>((key >> 31) != 0 ? key & 0x7fffffffu : ~key);
}

}  // namespace penstock::kernels
