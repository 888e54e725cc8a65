// SPDX-License-Identifier: Apache-2.0
// How long prompts and answers of a benchmark are, and when requests arrive: drawn from a seed, so
// that the same flags send the same requests.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "base/time.h"

namespace penstock::cli {

inline constexpr std::int32_t kBenchTokensMax = 1 << 24;

class LengthDistribution {
 public:
  // "512" or "fixed:512"; "uniform:100:900", both ends included; "lognormal:512:0.8", the median
  // and the standard deviation of the logarithm. INVALID_ARGUMENT naming `what` for anything else.
  static absl::StatusOr<LengthDistribution> Parse(std::string_view what, std::string_view text);

  // From 1 to kBenchTokensMax.
  std::int32_t Draw(std::mt19937_64& random) const;
  std::string ToString() const;

 private:
  enum class Kind : std::uint8_t { kFixed, kUniform, kLognormal };
  Kind kind_ = Kind::kFixed;
  double a_ = 1;
  double b_ = 1;
};

// In [0, 1).
double DrawUnit(std::mt19937_64& random);
// Between two arrivals of a Poisson process of `rate` a second, above 0.
Duration DrawGap(double rate, std::mt19937_64& random);

}  // namespace penstock::cli
