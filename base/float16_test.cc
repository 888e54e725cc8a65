// SPDX-License-Identifier: Apache-2.0
#include "base/float16.h"

#include <gtest/gtest.h>

#include <cfloat>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace penstock {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The definition of binary16, in double: (-1)^s * m * 2^e, straight from the three fields.
double Value(std::uint16_t bits) {
  const int exponent = (bits >> 10) & 31;
  const int mantissa = bits & 1023;
  double magnitude;
  if (exponent == 31) {
    magnitude = mantissa == 0 ? std::numeric_limits<double>::infinity() : std::nan("");
  } else {
    magnitude =
        exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  }
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

// Nearest even by search: the finite magnitudes grow with their bits, so the candidates around |f|
// are two neighbours. All differences are exact in double.
std::uint16_t NearestEven(float f) {
  const std::uint16_t sign = std::signbit(f) ? 0x8000 : 0;
  const double magnitude = std::abs(static_cast<double>(f));
  std::uint16_t below = 0;
  for (std::uint16_t step = 0x4000; step != 0; step >>= 1) {
    if (below + step <= 0x7BFF && Value(below + step) <= magnitude) below += step;
  }
  // One past the largest finite value counts as 2^16 for the choice, and is infinity.
  const double above = below == 0x7BFF ? 65536.0 : Value(below + 1);
  const double to_below = magnitude - Value(below);
  const double to_above = above - magnitude;
  const bool up = to_above < to_below || (to_above == to_below && (below & 1) != 0);
  return sign | static_cast<std::uint16_t>(below + (up ? 1 : 0));
}

std::uint16_t Bits(F16 h) { return static_cast<std::uint16_t>(h); }
std::uint16_t Bits(BF16 b) { return static_cast<std::uint16_t>(b); }

TEST(Float16Test, ToFloatIsExactForAllPatterns) {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const float f = ToFloat(F16{static_cast<std::uint16_t>(bits)});
    const double want = Value(static_cast<std::uint16_t>(bits));
    if (std::isnan(want)) {
      ASSERT_TRUE(std::isnan(f)) << bits;
    } else {
      ASSERT_EQ(f, want) << bits;
      ASSERT_EQ(std::signbit(f), (bits & 0x8000) != 0) << bits;
    }
  }
}

TEST(Float16Test, AllPatternsSurviveARoundTrip) {
  for (std::uint32_t i = 0; i < 65536; ++i) {
    const std::uint16_t bits = static_cast<std::uint16_t>(i);
    const bool nan = std::isnan(Value(bits));
    ASSERT_EQ(Bits(ToF16(ToFloat(F16{bits}))), nan ? (bits | 0x0200) : bits);  // NaN: made quiet.
    ASSERT_EQ(Bits(ToF16Saturated(ToFloat(F16{bits}))), nan ? (bits | 0x0200) : bits);
    const float wide = ToFloat(BF16{bits});
    ASSERT_EQ(Bits(ToBF16(wide)), std::isnan(wide) ? (bits | 0x0040) : bits);
  }
}

TEST(Float16Test, ToF16RoundsToNearestEvenAtEveryBorder) {
  // The middle between each pair of neighbours, and the floats right below and above it.
  for (std::uint16_t bits = 0; bits <= 0x7BFF; ++bits) {
    const double above = bits == 0x7BFF ? 65536.0 : Value(bits + 1);
    const float middle = static_cast<float>((Value(bits) + above) / 2);
    for (const float f :
         {std::nextafter(middle, 0.0f), middle, std::nextafter(middle, kInfinity)}) {
      ASSERT_EQ(Bits(ToF16(f)), NearestEven(f)) << f;
      ASSERT_EQ(Bits(ToF16(-f)), NearestEven(-f)) << -f;
    }
  }
}

TEST(Float16Test, ToF16AgreesWithTheOracleOnRandomFloats) {
  std::mt19937 random(1);
  for (int i = 0; i < 2'000'000; ++i) {
    // Half of all patterns overflow or vanish; the other draws have exponents that F16 can hold.
    std::uint32_t bits = static_cast<std::uint32_t>(random());
    if (i % 2 == 0) bits = (bits & 0x807FFFFFu) | ((100 + random() % 45) << 23);
    const float f = std::bit_cast<float>(bits);
    if (std::isnan(f)) continue;
    ASSERT_EQ(Bits(ToF16(f)), NearestEven(f)) << "bits " << bits;
  }
}

TEST(Float16Test, ToF16Edges) {
  struct Case {
    const char* name;
    float f;
    std::uint16_t want;
    std::uint16_t saturated;
  };
  for (const Case& c : {
           Case{"zero", 0.0f, 0x0000, 0x0000},
           Case{"negative zero", -0.0f, 0x8000, 0x8000},
           Case{"smallest subnormal", 0x1p-24f, 0x0001, 0x0001},
           Case{"half of it is even zero", 0x1p-25f, 0x0000, 0x0000},
           Case{"just above half of it", 0x1.000002p-25f, 0x0001, 0x0001},
           Case{"largest subnormal", 0x1.ff8p-15f, 0x03FF, 0x03FF},
           Case{"rounds up into normal", 0x1.ffcp-15f, 0x0400, 0x0400},
           Case{"smallest normal", 0x1p-14f, 0x0400, 0x0400},
           Case{"one", 1.0f, 0x3C00, 0x3C00},
           Case{"rounds up into the next power", 0x1.fffp0f, 0x4000, 0x4000},
           Case{"largest", 65504.0f, 0x7BFF, 0x7BFF},
           Case{"last that rounds down", 65519.996f, 0x7BFF, 0x7BFF},
           Case{"first that overflows", 65520.0f, 0x7C00, 0x7BFF},
           Case{"negative overflow", -65520.0f, 0xFC00, 0xFBFF},
           Case{"largest float", FLT_MAX, 0x7C00, 0x7BFF},
           Case{"infinity", kInfinity, 0x7C00, 0x7C00},
           Case{"negative infinity", -kInfinity, 0xFC00, 0xFC00},
           Case{"smallest float", FLT_TRUE_MIN, 0x0000, 0x0000},
           Case{"quiet NaN", std::bit_cast<float>(0x7FC00000u), 0x7E00, 0x7E00},
           Case{"signalling NaN", std::bit_cast<float>(0x7F800001u), 0x7E00, 0x7E00},
           Case{"negative NaN with payload", std::bit_cast<float>(0xFFFFE000u), 0xFFFF, 0xFFFF},
       }) {
    EXPECT_EQ(Bits(ToF16(c.f)), c.want) << c.name;
    EXPECT_EQ(Bits(ToF16Saturated(c.f)), c.saturated) << c.name;
  }
}

TEST(Float16Test, ToBF16RoundsToNearestEven) {
  std::mt19937 random(2);
  for (int i = 0; i < 1'000'000; ++i) {
    const float f = std::bit_cast<float>(static_cast<std::uint32_t>(random()));
    if (!std::isfinite(f)) continue;
    const std::uint16_t below = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(f) >> 16);
    const std::uint16_t above = static_cast<std::uint16_t>(below + 1);
    const double magnitude = std::abs(static_cast<double>(f));
    const double to_below = magnitude - std::abs(static_cast<double>(ToFloat(BF16{below})));
    // Past the largest finite value the next one counts as 2^128.
    const double next = std::isinf(ToFloat(BF16{above}))
                            ? 0x1p128
                            : std::abs(static_cast<double>(ToFloat(BF16{above})));
    const double to_above = next - magnitude;
    const bool up = to_above < to_below || (to_above == to_below && (below & 1) != 0);
    ASSERT_EQ(Bits(ToBF16(f)), up ? above : below) << f;
  }
  EXPECT_EQ(Bits(ToBF16(FLT_MAX)), 0x7F80);
  EXPECT_EQ(Bits(ToBF16(-kInfinity)), 0xFF80);
  EXPECT_EQ(Bits(ToBF16(std::bit_cast<float>(0x7F800001u))), 0x7FC0);  // Stays a NaN.
}

}  // namespace
}  // namespace penstock
