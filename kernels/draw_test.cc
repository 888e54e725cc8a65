// SPDX-License-Identifier: Apache-2.0
#include "kernels/draw.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/draw_testing.h"
#include "kernels/draw_weights.h"

namespace penstock::kernels {
namespace {

TEST(DrawTest, IsTheSlowDraw) {
  for (const std::size_t vocab : {1, 2, 16, 33, 511, 512, 513, 1500, 9001}) {
    for (const DrawRow& row : DrawRows(vocab, vocab)) {
      for (const DrawCase& c : DrawCases()) {
        SCOPED_TRACE(absl::StrCat(row.name, " vocab=", vocab, " ", c.name));
        ExpectSame(SlowDraw(row.logits, c.spec), Draw(row.logits, c.spec));
        if (HasFailure()) return;
      }
    }
  }
}

TEST(DrawTest, AgreesWithTheSlowDrawOnRandomSpecs) {
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed=", seed));
    std::mt19937_64 random(seed);
    std::uniform_real_distribution<double> uniform(0, 1);
    const std::vector<DrawRow> rows = DrawRows(1 + random() % 2000, seed);
    const DrawSpec spec = {
        .temperature = 0.01 + 3 * uniform(random),
        .top_k = random() % 2 == 0 ? static_cast<std::int32_t>(random() % 900) : 0,
        .top_p = random() % 2 == 0 ? 1 - uniform(random) : 1,
        .min_p = random() % 2 == 0 ? uniform(random) / 10 : 0,
        .uniform = uniform(random)};
    for (const DrawRow& row : rows) ExpectSame(SlowDraw(row.logits, spec), Draw(row.logits, spec));
    if (HasFailure()) return;
  }
}

TEST(DrawTest, OfNoLogitsIsNone) {
  EXPECT_EQ(Draw({}, {}).token, -1);
  EXPECT_EQ(Draw({}, {.temperature = 1, .top_k = 3, .top_p = 0.5}).token, -1);
}

// Each token comes as often as the softmax says: `uniform` in even steps through its range.
TEST(DrawTest, StepsOfUniformGiveTheSoftmax) {
  const std::vector<float> logits = {1, 0, -2, 3, 0.5f};
  constexpr int kSteps = 100000;
  std::vector<double> counts(logits.size(), 0);
  for (int i = 0; i < kSteps; ++i) {
    const DrawSpec spec = {.temperature = 2, .uniform = static_cast<double>(i) / kSteps};
    ++counts[static_cast<std::size_t>(Draw(logits, spec).token)];
  }
  double sum = 0;
  for (const float logit : logits) sum += std::exp(double{logit} / 2);
  for (std::size_t i = 0; i < logits.size(); ++i) {
    EXPECT_NEAR(counts[i] / kSteps, std::exp(double{logits[i]} / 2) / sum, 2e-5) << i;
  }
}

TEST(DrawTest, ExpIsExp) {
  EXPECT_EQ(ExpNegative(0), 1);
  EXPECT_EQ(ExpNegative(-0.0), 1);
  for (const double x : {-700.0, -1e300, -std::numeric_limits<double>::infinity(),
                         std::numeric_limits<double>::quiet_NaN()}) {
    EXPECT_GT(ExpNegative(x), 0);
    EXPECT_EQ(DrawUnits(ExpNegative(x)), 0u);
  }
  std::mt19937_64 random(1);
  std::uniform_real_distribution<double> uniform(-1, 0);
  for (int i = 0; i < 100000; ++i) {
    const double x = uniform(random) * (i % 2 == 0 ? 700 : 3);
    const double want = std::exp(x);
    ASSERT_NEAR(ExpNegative(x), want, 2.5 * 0x1p-52 * want) << x;
  }
}

TEST(DrawTest, WeightsAreRounded) {
  EXPECT_EQ(DrawUnits(1), std::uint64_t{1} << kDrawWeightBits);
  EXPECT_EQ(DrawUnits(0), 0u);
  EXPECT_EQ(DrawUnits(0x1p-38), 1u);
  EXPECT_EQ(DrawUnits(0x1p-39), 0u);  // To even.
  EXPECT_EQ(DrawUnits(0x1.8p-39), 1u);
  EXPECT_EQ(MassBefore(1 - 0x1p-53, 3), 2u);
  EXPECT_EQ(MassBefore(1 - 0x1p-53, std::uint64_t{1} << 62), (std::uint64_t{1} << 62) - 512);
  EXPECT_EQ(MassBefore(0, 3), 0u);
  EXPECT_EQ(NucleusMass(1e-300, 3), 1u);
  EXPECT_EQ(NucleusMass(1 - 0x1p-53, 3), 2u);
}

TEST(DrawTest, KeysHaveTheOrderOfLogits) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const std::vector<float> ascending = {-kInfinity, -3e38f, -1,   -1e-45f, 0,
                                        1e-45f,     1e-3f,  1.5f, 3e38f,   kInfinity};
  for (std::size_t i = 0; i < ascending.size(); ++i) {
    EXPECT_EQ(LogitOfKey(DrawKey(ascending[i])), ascending[i]);
    EXPECT_GT(DrawKey(ascending[i]), i == 0 ? 0u : DrawKey(ascending[i - 1])) << i;
  }
  EXPECT_EQ(DrawKey(-0.0f), DrawKey(0.0f));
  for (const std::uint32_t nan : {0x7fc00000u, 0xffc00000u, 0xffffffffu, 0x7f800001u}) {
    EXPECT_EQ(DrawKey(std::bit_cast<float>(nan)), DrawKey(-kInfinity));
  }
}

}  // namespace
}  // namespace penstock::kernels
