// SPDX-License-Identifier: Apache-2.0
#include "engine/divergence.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace penstock::engine {
namespace {

std::vector<float> Logits(std::size_t n, float spread, std::mt19937& random) {
  std::normal_distribution<float> normal(5, spread);
  std::vector<float> logits(n);
  for (float& logit : logits) logit = normal(random);
  return logits;
}

std::vector<long double> Softmax(const std::vector<float>& logits) {
  long double sum = 0;
  std::vector<long double> p;
  for (const float logit : logits) sum += p.emplace_back(std::exp(static_cast<long double>(logit)));
  for (long double& x : p) x /= sum;
  return p;
}

TEST(DivergenceTest, IsThatOfTheDefinition) {
  std::mt19937 random(1);
  for (const std::size_t n : {2u, 7u, 100u, 5000u}) {
    for (const float spread : {0.1f, 3.0f, 20.0f}) {
      const std::vector<float> a = Logits(n, spread, random), b = Logits(n, spread, random);
      const std::vector<long double> p = Softmax(a), q = Softmax(b);
      long double kl = 0;
      for (std::size_t i = 0; i < n; ++i) kl += p[i] * (std::log(p[i]) - std::log(q[i]));
      const Divergence d = Compare(a, b, 1);
      EXPECT_NEAR(d.kl, static_cast<double>(kl), 1e-12 * (1 + static_cast<double>(kl)));
      EXPECT_NEAR(d.p_nll, static_cast<double>(-std::log(p[1])), 1e-10);
      EXPECT_NEAR(d.q_nll, static_cast<double>(-std::log(q[1])), 1e-10);
      const Divergence same = Compare(a, a, 0);
      EXPECT_EQ(same.kl, 0);
      EXPECT_EQ(same.p_nll, same.q_nll);
      EXPECT_TRUE(same.same_top);
    }
  }
}

TEST(DivergenceTest, ShiftedLogitsAreTheSameDistribution) {
  const std::vector<float> a = {1, 2, 3}, b = {101, 102, 103};
  EXPECT_EQ(Compare(a, b, 2).kl, 0);
  EXPECT_FALSE(Compare(a, std::vector<float>{3, 2, 1}, 2).same_top);
}

TEST(DivergenceTest, NonFiniteLogitsShow) {
  const std::vector<float> a = {1, 2, 3};
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    EXPECT_TRUE(std::isnan(Compare(a, std::vector<float>{1, bad, 3}, 0).kl));
    EXPECT_TRUE(std::isnan(Compare(std::vector<float>{1, bad, 3}, a, 0).kl));
  }
}

TEST(DivergenceTest, SummaryCountsRanks) {
  std::vector<Divergence> positions;
  for (int i = 200; i >= 1; --i) {
    positions.push_back({.kl = i * 1.0, .p_nll = 1, .q_nll = 2, .same_top = i % 4 != 0});
  }
  const DivergenceSummary summary = Summarize(positions);
  EXPECT_NEAR(summary.mean_kl, 100.5, 1e-9);
  EXPECT_EQ(summary.median_kl, 100);
  EXPECT_EQ(summary.p99_kl, 198);
  EXPECT_EQ(summary.max_kl, 200);
  EXPECT_EQ(summary.top1, 0.75);
  EXPECT_NEAR(summary.p_perplexity, std::exp(1), 1e-9);
  EXPECT_NEAR(summary.q_perplexity, std::exp(2), 1e-9);
  const DivergenceSummary one = Summarize(std::span(positions).first(1));
  EXPECT_EQ(one.median_kl, 200);
  EXPECT_EQ(one.p99_kl, 200);
}

}  // namespace
}  // namespace penstock::engine
