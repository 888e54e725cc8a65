// SPDX-License-Identifier: Apache-2.0
#include "kernels/activations.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>
#include <iostream>
#include <limits>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace penstock::kernels {
namespace {

struct Quantized {
  std::vector<std::int8_t> q;
  std::vector<float> scale;
  std::vector<std::int32_t> sum;
};

Quantized Quantize(QuantizeRowFn run, const std::vector<float>& x) {
  const std::size_t blocks = (x.size() + 31) / 32;
  // One element more of each, to see that it stays.
  Quantized out{std::vector<std::int8_t>(blocks * 32 + 1, 99), std::vector<float>(blocks + 1, 99),
                std::vector<std::int32_t>(blocks + 1, 99)};
  run(x.data(), static_cast<std::int32_t>(x.size()), out.q.data(), out.scale.data(),
      out.sum.data());
  EXPECT_EQ(out.q.back(), 99);
  EXPECT_EQ(out.scale.back(), 99);
  EXPECT_EQ(out.sum.back(), 99);
  return out;
}

std::vector<float> RandomRow(std::size_t cols, float magnitude, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 1);
  std::vector<float> x(cols);
  for (float& v : x) v = normal(random) * magnitude;
  return x;
}

TEST(QuantizeRowTest, PrintsItsTargets) {
  ASSERT_FALSE(QuantizeRowTargets().empty());
  EXPECT_EQ(QuantizeRowTargets().front().name, "scalar");
  for (const QuantizeRowTarget& target : QuantizeRowTargets()) {
    std::cout << "QuantizeRow runs here as " << target.name << "\n";
  }
}

TEST(QuantizeRowTest, ScalarIsWithinHalfAStep) {
  for (const std::size_t cols : {1, 31, 32, 33, 64, 100}) {
    for (const float magnitude : {1e-30f, 1.0f, 1e30f}) {
      SCOPED_TRACE(absl::StrCat("cols=", cols, " magnitude=", magnitude));
      const std::vector<float> x = RandomRow(cols, magnitude, 1);
      const Quantized out = Quantize(QuantizeRowTargets().front().run, x);
      for (std::size_t b = 0; b * 32 < cols; ++b) {
        float max_abs = 0;
        int sum = 0;
        for (std::size_t i = b * 32; i < b * 32 + 32; ++i) {
          const std::int32_t q = static_cast<std::int32_t>(out.q[i]);
          sum += q;
          if (i >= cols) {
            EXPECT_EQ(q, 0);
            continue;
          }
          max_abs = std::max(max_abs, std::abs(x[i]));
          // The reciprocal and the product are off by 2^-24 each.
          EXPECT_LE(std::abs(double{x[i]} - double{out.scale[b]} * q), out.scale[b] * 0.50005);
        }
        EXPECT_EQ(out.scale[b], max_abs / 127);
        EXPECT_EQ(out.sum[b], sum);
      }
    }
  }
}

TEST(QuantizeRowTest, Edges) {
  struct Case {
    const char* name;
    float x;
    float scale;
    int q;
  };
  constexpr float kFloatMax = std::numeric_limits<float>::max();
  for (const Case& c :
       {Case{"zero", 0, 0, 0}, Case{"negative zero", -0.0f, 0, 0}, Case{"subnormal", 1e-40f, 0, 0},
        Case{"scale just below FLT_MIN", 126 * FLT_MIN, 0, 0},
        Case{"scale FLT_MIN", 127 * FLT_MIN, FLT_MIN, 127},
        Case{"largest", kFloatMax, kFloatMax / 127, 127},
        Case{"most negative", -kFloatMax, kFloatMax / 127, -127}}) {
    for (const QuantizeRowTarget& target : QuantizeRowTargets()) {
      SCOPED_TRACE(absl::StrCat(c.name, " ", ToAbsl(target.name)));
      const Quantized out = Quantize(target.run, std::vector<float>(32, c.x));
      EXPECT_EQ(out.scale[0], c.scale);
      EXPECT_EQ(out.q[0], c.q);
      EXPECT_EQ(out.q[31], c.q);
      EXPECT_EQ(out.sum[0], 32 * c.q);
    }
  }
}

TEST(QuantizeRowTest, TiesGoToEven) {
  for (const QuantizeRowTarget& target : QuantizeRowTargets()) {
    SCOPED_TRACE(ToAbsl(target.name));
    // The scale is exactly 1, so halves are ties.
    const Quantized out = Quantize(target.run, {127, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -126.5f});
    EXPECT_EQ(out.scale[0], 1);
    const std::vector<std::int8_t> want = {127, 0, 2, 2, 0, -2, -126};
    EXPECT_EQ(std::vector<std::int8_t>(out.q.begin(), out.q.begin() + 7), want);
  }
}

TEST(QuantizeRowTest, EveryTargetHasTheBitsOfTheScalar) {
  for (std::size_t cols = 1; cols <= 130; ++cols) {
    for (const float magnitude : {1e-44f, 2e-36f, 1e-20f, 1.0f, 1e38f}) {
      for (const std::uint32_t seed : {1u, 2u, 3u}) {
        std::vector<float> x = RandomRow(cols, magnitude, seed);
        for (float& v : x) v = std::clamp(v, -FLT_MAX, FLT_MAX);
        const Quantized want = Quantize(QuantizeRowTargets().front().run, x);
        for (const QuantizeRowTarget& target : QuantizeRowTargets()) {
          SCOPED_TRACE(absl::StrCat(ToAbsl(target.name), " cols=", cols, " magnitude=", magnitude,
                                    " seed=", seed));
          const Quantized got = Quantize(target.run, x);
          ASSERT_EQ(want.q, got.q);
          ASSERT_EQ(want.sum, got.sum);
          for (std::size_t b = 0; b < want.scale.size(); ++b) {
            ASSERT_EQ(std::bit_cast<std::uint32_t>(want.scale[b]),
                      std::bit_cast<std::uint32_t>(got.scale[b]));
          }
        }
      }
    }
  }
}

TEST(QuantizeRowTest, NotFiniteInputIsNoFault) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const QuantizeRowTarget& target : QuantizeRowTargets()) {
    for (const float bad : {kInf, -kInf, nan}) {
      std::vector<float> x = RandomRow(70, 1, 1);
      x[3] = bad;
      x[69] = bad;
      const Quantized out = Quantize(target.run, x);
      // The block between them is untouched by either.
      EXPECT_TRUE(std::isfinite(out.scale[1])) << target.name;
      EXPECT_GT(out.scale[1], 0) << target.name;
    }
  }
}

}  // namespace
}  // namespace penstock::kernels
