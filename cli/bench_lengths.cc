// SPDX-License-Identifier: Apache-2.0
#include "cli/bench_lengths.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/status.h"

namespace penstock::cli {
namespace {

constexpr double kSigmaMax = 8;

absl::Status Wrong(std::string_view what, std::string_view text, std::string_view why) {
  return absl::InvalidArgumentError(
      absl::StrCat(ToAbsl(what), " must be a length such as 512, uniform:100:900 or ",
                   "lognormal:512:0.8, got '", ToAbsl(text), "': ", ToAbsl(why)));
}

// A number of tokens, or nothing.
bool ParseTokens(absl::string_view text, double* value) {
  std::int32_t tokens = 0;
  if (!absl::SimpleAtoi(text, &tokens) || tokens < 1 || tokens > kBenchTokensMax) return false;
  *value = tokens;
  return true;
}

}  // namespace

absl::StatusOr<LengthDistribution> LengthDistribution::Parse(std::string_view what,
                                                             std::string_view text) {
  const std::vector<absl::string_view> parts = absl::StrSplit(ToAbsl(text), ':');
  const std::string range = absl::StrCat("a length is from 1 to ", kBenchTokensMax, " tokens");
  LengthDistribution lengths;
  if (parts.size() == 1 || parts[0] == "fixed") {
    if (parts.size() > 2) return Wrong(what, text, "fixed takes one number");
    if (!ParseTokens(parts.back(), &lengths.a_)) return Wrong(what, text, range);
    return lengths;
  }
  if (parts[0] == "uniform") {
    lengths.kind_ = Kind::kUniform;
    if (parts.size() != 3) return Wrong(what, text, "uniform takes two numbers");
    if (!ParseTokens(parts[1], &lengths.a_) || !ParseTokens(parts[2], &lengths.b_)) {
      return Wrong(what, text, range);
    }
    if (lengths.a_ > lengths.b_) return Wrong(what, text, "the first is above the second");
    return lengths;
  }
  if (parts[0] == "lognormal") {
    lengths.kind_ = Kind::kLognormal;
    if (parts.size() != 3) return Wrong(what, text, "lognormal takes two numbers");
    if (!ParseTokens(parts[1], &lengths.a_)) return Wrong(what, text, range);
    if (!absl::SimpleAtod(parts[2], &lengths.b_) || !(lengths.b_ >= 0 && lengths.b_ <= kSigmaMax)) {
      return Wrong(what, text, absl::StrCat("the deviation is from 0 to ", kSigmaMax));
    }
    return lengths;
  }
  return Wrong(what, text, "no such distribution");
}

std::int32_t LengthDistribution::Draw(std::mt19937_64& random) const {
  double value = a_;
  if (kind_ == Kind::kUniform) {
    value = a_ + std::floor(DrawUnit(random) * (b_ - a_ + 1));
  } else if (kind_ == Kind::kLognormal) {
    // Box and Muller; 1 - u is never 0.
    const double radius = std::sqrt(-2 * std::log(1 - DrawUnit(random)));
    value = a_ * std::exp(b_ * radius * std::cos(2 * std::numbers::pi * DrawUnit(random)));
  }
  return static_cast<std::int32_t>(
      std::clamp(std::round(value), 1.0, static_cast<double>(kBenchTokensMax)));
}

std::string LengthDistribution::ToString() const {
  switch (kind_) {
    case Kind::kFixed:
      return absl::StrCat(a_);
    case Kind::kUniform:
      return absl::StrCat("uniform:", a_, ":", b_);
    case Kind::kLognormal:
      return absl::StrCat("lognormal:", a_, ":", b_);
  }
  return "";
}

double DrawUnit(std::mt19937_64& random) {
  return static_cast<double>(random() >> 11) * 0x1p-53;  // All that a double holds.
}

Duration DrawGap(double rate, std::mt19937_64& random) {
  const double seconds = -std::log(1 - DrawUnit(random)) / rate;
  return FromSeconds(seconds);
}

}  // namespace penstock::cli
