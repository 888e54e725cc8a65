// SPDX-License-Identifier: Apache-2.0
#include "kernels/sincos.h"

#include <cmath>
#include <cstdint>

namespace penstock::kernels {
namespace {

constexpr double kTwoOverPi = 0.63661977236758134308;
constexpr double kHalfPiHigh = 1.57079632679489655800;     // pi / 2 rounded to double,
constexpr double kHalfPiLow = 6.12323399573676603587e-17;  // and what is missing.

// Taylor, highest term first, in r^2: the first term left out is below 1e-17 for |r| <= pi / 4.
constexpr double kSin[] = {-1.0 / 1307674368000, 1.0 / 6227020800, -1.0 / 39916800, 1.0 / 362880,
                           -1.0 / 5040,          1.0 / 120,        -1.0 / 6,        1.0};
constexpr double kCos[] = {1.0 / 20922789888000,
                           -1.0 / 87178291200,
                           1.0 / 479001600,
                           -1.0 / 3628800,
                           1.0 / 40320,
                           -1.0 / 720,
                           1.0 / 24,
                           -1.0 / 2,
                           1.0};

template <std::size_t n>
double Horner(const double (&terms)[n], double x) {
  double sum = terms[0];
  for (std::size_t i = 1; i < n; ++i) sum = std::fma(sum, x, terms[i]);
  return sum;
}

}  // namespace

CosSin CosSinOf(double angle) {
  const double n = std::nearbyint(angle * kTwoOverPi);
  double r = std::fma(n, -kHalfPiHigh, angle);
  r = std::fma(n, -kHalfPiLow, r);
  const double square = r * r;
  const double s = r * Horner(kSin, square);
  const double c = Horner(kCos, square);
  switch (static_cast<std::int64_t>(n) & 3) {
    case 0:
      return {static_cast<float>(c), static_cast<float>(s)};
    case 1:
      return {static_cast<float>(-s), static_cast<float>(c)};
    case 2:
      return {static_cast<float>(-c), static_cast<float>(-s)};
    default:
      return {static_cast<float>(s), static_cast<float>(-c)};
  }
}

}  // namespace penstock::kernels
