// SPDX-License-Identifier: Apache-2.0
#include "kernels/elementwise.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <iostream>
#include <limits>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/float16.h"
#include "base/kv_spec.h"
#include "kernels/elementwise_targets.h"

namespace penstock::kernels {
namespace {

constexpr float kGuard = 12345.5f;
constexpr std::int32_t kLengthMax = 100;

std::vector<float> Random(std::size_t n, float size, std::mt19937& random) {
  std::uniform_real_distribution<float> uniform(-size, size);
  std::vector<float> values(n);
  for (float& v : values) v = uniform(random);
  return values;
}

// n values with a guard behind.
std::vector<float> RandomGuarded(std::size_t n, float size, std::mt19937& random) {
  std::vector<float> values = Random(n, size, random);
  values.push_back(kGuard);
  return values;
}

std::vector<std::uint32_t> Bits(const std::vector<float>& values) {
  std::vector<std::uint32_t> bits;
  for (const float v : values) bits.push_back(std::bit_cast<std::uint32_t>(v));
  return bits;
}

constexpr float kSizes[] = {1e-42f, 1e-20f, 1e-3f, 1.0f, 50.0f, 1e5f, 1e18f};

// Calls check(target, scalar, n, size) for every target but the scalar one, every length, and every
// size of values.
template <typename Check>
void ForAll(Check check) {
  const ElementwiseTarget& scalar = ElementwiseTargets()[0];
  for (const ElementwiseTarget& target : ElementwiseTargets().subspan(1)) {
    for (std::int32_t n = 0; n <= kLengthMax; ++n) {
      for (const float size : kSizes) {
        SCOPED_TRACE(absl::StrCat("target ", std::string(target.name), " n=", n, " size=", size));
        check(target, scalar, n, size);
        if (testing::Test::HasFailure()) return;
      }
    }
  }
}

TEST(ElementwiseTest, PrintsTargets) {
  for (const ElementwiseTarget& target : ElementwiseTargets()) {
    std::cout << "ran: " << target.name << "\n";
  }
  EXPECT_EQ(ElementwiseTargets()[0].name, "scalar");
}

TEST(ElementwiseTest, RmsNormTargetsAgree) {
  std::mt19937 random(1);
  ForAll([&](const ElementwiseTarget& target, const ElementwiseTarget& scalar, std::int32_t n,
             float size) {
    if (n == 0) return;
    const std::vector<float> x = Random(n, size, random);
    const std::vector<float> w = Random(n, 2, random);
    std::vector<float> want(n + 1, kGuard);
    scalar.rms_norm(x.data(), w.data(), n, 1e-5f, want.data());
    std::vector<float> got(n + 1, kGuard);
    target.rms_norm(x.data(), w.data(), n, 1e-5f, got.data());
    EXPECT_EQ(Bits(got), Bits(want));
    got = x;
    got.push_back(kGuard);
    target.rms_norm(got.data(), w.data(), n, 1e-5f, got.data());
    EXPECT_EQ(Bits(got), Bits(want));
  });
}

TEST(ElementwiseTest, AddTargetsAgree) {
  std::mt19937 random(2);
  ForAll([&](const ElementwiseTarget& target, const ElementwiseTarget& scalar, std::int32_t n,
             float size) {
    const std::vector<float> y = Random(n, size, random);
    std::vector<float> want = RandomGuarded(n, size, random);
    std::vector<float> got = want;
    scalar.add(y.data(), n, want.data());
    target.add(y.data(), n, got.data());
    EXPECT_EQ(Bits(got), Bits(want));
  });
}

TEST(ElementwiseTest, RopeTargetsAgree) {
  std::mt19937 random(3);
  for (const RopePairs pairs : {RopePairs::kAdjacent, RopePairs::kHalves}) {
    ForAll([&](const ElementwiseTarget& target, const ElementwiseTarget& scalar, std::int32_t half,
               float size) {
      const std::vector<float> cos = Random(half, 1, random);
      const std::vector<float> sin = Random(half, 1, random);
      std::vector<float> want = RandomGuarded(2 * half, size, random);
      std::vector<float> got = want;
      scalar.rope(pairs, cos.data(), sin.data(), 2 * half, want.data());
      target.rope(pairs, cos.data(), sin.data(), 2 * half, got.data());
      EXPECT_EQ(Bits(got), Bits(want));
    });
  }
}

TEST(ElementwiseTest, GatedActivationTargetsAgree) {
  std::mt19937 random(4);
  for (const Activation activation : {Activation::kSilu, Activation::kGeluTanh}) {
    ForAll([&](const ElementwiseTarget& target, const ElementwiseTarget& scalar, std::int32_t n,
               float size) {
      const std::vector<float> up = Random(n, 3, random);
      std::vector<float> want = RandomGuarded(n, size, random);
      std::vector<float> got = want;
      scalar.gated_activation(activation, up.data(), n, want.data());
      target.gated_activation(activation, up.data(), n, got.data());
      EXPECT_EQ(Bits(got), Bits(want));
    });
  }
}

TEST(ElementwiseTest, NarrowAndWidenTargetsAgree) {
  std::mt19937 random(5);
  for (const KvDtype dtype : {KvDtype::kF16, KvDtype::kBF16, KvDtype::kF32}) {
    ForAll([&](const ElementwiseTarget& target, const ElementwiseTarget& scalar, std::int32_t n,
               float size) {
      const std::vector<float> from = Random(n, size, random);
      const std::size_t bytes = BytesPerElement(dtype) * n;
      std::vector<std::byte> want(bytes + 1, std::byte{0xA5});
      std::vector<std::byte> got = want;
      scalar.narrow_row(dtype, from.data(), n, want.data());
      target.narrow_row(dtype, from.data(), n, got.data());
      EXPECT_EQ(got, want);
      std::vector<float> wide_want(n + 1, kGuard);
      std::vector<float> wide_got(n + 1, kGuard);
      scalar.widen_row(dtype, want.data(), n, wide_want.data());
      target.widen_row(dtype, want.data(), n, wide_got.data());
      EXPECT_EQ(Bits(wide_got), Bits(wide_want));
    });
  }
}

// Floats at every 16-bit boundary and its neighbours, infinities and NaNs included.
TEST(ElementwiseTest, NarrowIsRightAtEveryBoundary) {
  std::vector<float> from;
  for (std::uint32_t upper = 0; upper < 0x10000; ++upper) {
    for (const std::uint32_t lower :
         {0x0000u, 0x0001u, 0x0FFFu, 0x1000u, 0x1001u, 0x7FFFu, 0x8000u, 0x8001u, 0xFFFFu}) {
      from.push_back(std::bit_cast<float>((upper << 16) | lower));
    }
  }
  const auto n = static_cast<std::int32_t>(from.size());
  for (const ElementwiseTarget& target : ElementwiseTargets()) {
    SCOPED_TRACE(absl::StrCat("target ", std::string(target.name)));
    std::vector<std::uint16_t> f16(n);
    std::vector<std::uint16_t> bf16(n);
    target.narrow_row(KvDtype::kF16, from.data(), n, reinterpret_cast<std::byte*>(f16.data()));
    target.narrow_row(KvDtype::kBF16, from.data(), n, reinterpret_cast<std::byte*>(bf16.data()));
    for (std::int32_t i = 0; i < n; ++i) {
      ASSERT_EQ(f16[i], static_cast<std::uint16_t>(ToF16Saturated(from[i]))) << from[i];
      ASSERT_EQ(bf16[i], static_cast<std::uint16_t>(ToBF16(from[i]))) << from[i];
    }
  }
}

TEST(ElementwiseTest, WidenIsRightForEveryPattern) {
  std::vector<std::uint16_t> from(0x10000);
  for (std::uint32_t i = 0; i < 0x10000; ++i) from[i] = static_cast<std::uint16_t>(i);
  const auto* const bytes = reinterpret_cast<const std::byte*>(from.data());
  std::vector<float> to(0x10000);
  for (const ElementwiseTarget& target : ElementwiseTargets()) {
    SCOPED_TRACE(absl::StrCat("target ", std::string(target.name)));
    for (const KvDtype dtype : {KvDtype::kF16, KvDtype::kBF16}) {
      target.widen_row(dtype, bytes, 0x10000, to.data());
      for (std::uint32_t i = 0; i < 0x10000; ++i) {
        const float want = dtype == KvDtype::kF16 ? ToFloat(F16{from[i]}) : ToFloat(BF16{from[i]});
        if (std::isnan(want)) {
          ASSERT_TRUE(std::isnan(to[i])) << i;
        } else {
          ASSERT_EQ(to[i], want) << i;
        }
      }
    }
  }
}

// Of a row to int8: its levels, its scale as bits, and what comes back.
struct Levels {
  std::vector<std::int8_t> levels;
  std::uint16_t scale;
  std::vector<float> back;
};
Levels ToLevels(const std::vector<float>& from) {
  const auto n = static_cast<std::int32_t>(from.size());
  Levels to{std::vector<std::int8_t>(from.size() + 1, 99), 0, std::vector<float>(from.size())};
  auto* const levels = reinterpret_cast<std::byte*>(to.levels.data());
  auto* const scale = reinterpret_cast<std::byte*>(&to.scale);
  NarrowRow(KvDtype::kInt8, from.data(), n, levels, scale);
  WidenRow(KvDtype::kInt8, levels, scale, n, to.back.data());
  EXPECT_EQ(to.levels.back(), 99);
  to.levels.pop_back();
  return to;
}

TEST(ElementwiseTest, LevelsAreNearAndOfTheLeastScale) {
  for (std::uint32_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed=", seed));
    std::mt19937 random(seed);
    const std::int32_t n = 8 * static_cast<std::int32_t>(1 + random() % 20);
    const float sizes[] = {1e-9f, 1e-7f, 1e-3f, 1, 1000, 65504, 8e6f};
    const std::vector<float> from = Random(n, sizes[seed % std::size(sizes)], random);
    const Levels to = ToLevels(from);
    float most = 0;
    for (const float x : from) most = std::max(most, std::abs(x));
    const float scale = ToFloat(F16{to.scale});
    EXPECT_GE(scale, most / 127);
    EXPECT_LT(ToFloat(F16{static_cast<std::uint16_t>(to.scale - 1)}), most / 127);
    for (std::int32_t i = 0; i < n; ++i) {
      EXPECT_EQ(to.back[i], static_cast<float>(to.levels[i]) * scale);
      EXPECT_LE(std::abs(double{to.back[i]} - from[i]), 0.5000001 * scale);
    }
  }
}

TEST(ElementwiseTest, LevelsOfExtremeRows) {
  const float inf = std::numeric_limits<float>::infinity();
  struct Case {
    const char* name;
    float odd;  // One value; the others are `rest`.
    float rest;
    std::uint16_t scale;
    int odd_level, rest_level;
  };
  for (const Case& c :
       {Case{"zeros", 0, 0, 0, 0, 0}, Case{"minus zeros", -0.0f, -0.0f, 0, 0, 0},
        Case{"one huge", 65504 * 127.0f, 1, 0x7BFF, 127, 0},
        Case{"beyond the largest", -1e30f, 65504 * 127.0f, 0x7BFF, -127, 127},
        Case{"the least float", 1e-45f, 0, 0, 0, 0}, Case{"tiny", 1e-30f, 0, 0x0001, 0, 0},
        Case{"the least scale", -0x1p-24f * 127, 0x1p-24f, 0x0001, -127, 1},
        Case{"a subnormal scale", 0x3p-24f * 127, 0x3p-24f, 0x0003, 127, 1},
        Case{"infinite", -inf, 1, 0x7E00, 0, 0}, Case{"NaN", std::nanf(""), 1, 0x7E00, 0, 0}}) {
    for (const std::size_t n : {8, 24, 64}) {
      SCOPED_TRACE(absl::StrCat(c.name, " of ", n));
      std::vector<float> from(n, c.rest);
      from[n - 3] = c.odd;
      const Levels to = ToLevels(from);
      EXPECT_EQ(to.scale, c.scale);
      for (std::size_t i = 0; i < n; ++i) {
        EXPECT_EQ(to.levels[i], i == n - 3 ? c.odd_level : c.rest_level);
        EXPECT_EQ(std::isnan(to.back[i]), c.scale == 0x7E00);
      }
    }
  }
}

TEST(ElementwiseTest, ScalarAgreesWithDoubles) {
  std::mt19937 random(6);
  const std::int32_t n = 576;
  const std::vector<float> x = Random(n, 5, random);
  const std::vector<float> w = Random(n, 2, random);
  std::vector<float> y(n);
  RmsNorm(x.data(), w.data(), n, 1e-5f, y.data());
  double mean = 0;
  for (const float v : x) mean += double{v} * double{v} / n;
  for (std::int32_t i = 0; i < n; ++i) {
    EXPECT_NEAR(y[i], x[i] / std::sqrt(mean + 1e-5) * w[i], 2e-6);
  }
  for (const Activation activation : {Activation::kSilu, Activation::kGeluTanh}) {
    std::vector<float> gate = x;
    GatedActivation(activation, w.data(), n, gate.data());
    for (std::int32_t i = 0; i < n; ++i) {
      const double v = x[i];
      const double want =
          activation == Activation::kSilu
              ? v / (1 + std::exp(-v))
              : 0.5 * v * (1 + std::tanh(std::sqrt(2 / M_PI) * (v + 0.044715 * v * v * v)));
      EXPECT_NEAR(gate[i], want * w[i], 3e-6);
    }
  }
}

TEST(ElementwiseTest, RopeRotatesTheRightPairs) {
  const float cos[2] = {0.6f, 0.0f};
  const float sin[2] = {0.8f, 1.0f};
  float adjacent[5] = {1, 2, 3, 4, kGuard};
  Rope(RopePairs::kAdjacent, cos, sin, 4, adjacent);
  EXPECT_FLOAT_EQ(adjacent[0], 0.6f * 1 - 0.8f * 2);
  EXPECT_FLOAT_EQ(adjacent[1], 0.6f * 2 + 0.8f * 1);
  EXPECT_FLOAT_EQ(adjacent[2], -4);
  EXPECT_FLOAT_EQ(adjacent[3], 3);
  float halves[5] = {1, 2, 3, 4, kGuard};
  Rope(RopePairs::kHalves, cos, sin, 4, halves);
  EXPECT_FLOAT_EQ(halves[0], 0.6f * 1 - 0.8f * 3);
  EXPECT_FLOAT_EQ(halves[2], 0.6f * 3 + 0.8f * 1);
  EXPECT_FLOAT_EQ(halves[1], -4);
  EXPECT_FLOAT_EQ(halves[3], 2);
  EXPECT_EQ(adjacent[4], kGuard);
  EXPECT_EQ(halves[4], kGuard);
}

}  // namespace
}  // namespace penstock::kernels
