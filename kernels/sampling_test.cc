// SPDX-License-Identifier: Apache-2.0
#include "kernels/sampling.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <iostream>
#include <limits>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/sampling_targets.h"

namespace penstock::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Few distinct values, so that ties are common; `special` in a hundred are -infinity or NaN.
std::vector<float> Random(std::size_t n, float size, unsigned distinct, unsigned special,
                          std::mt19937& random) {
  std::vector<float> values(n);
  for (float& v : values) {
    v = size * (static_cast<float>(random() % distinct) / static_cast<float>(distinct) - 0.5f);
    if (random() % 100 < special) v = random() % 2 == 0 ? kNan : -kInfinity;
  }
  return values;
}

std::vector<Candidate> SlowTopK(const std::vector<float>& logits, std::int32_t k) {
  std::vector<Candidate> all;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (!std::isnan(logits[i])) all.push_back({static_cast<std::int32_t>(i), logits[i]});
  }
  std::stable_sort(all.begin(), all.end(),
                   [](const Candidate& a, const Candidate& b) { return a.logit > b.logit; });
  if (static_cast<std::size_t>(k) < all.size()) all.resize(static_cast<std::size_t>(k));
  return all;
}

void ExpectSame(const std::vector<Candidate>& got, const std::vector<Candidate>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(got[i].token, want[i].token) << "place " << i;
    ASSERT_EQ(std::bit_cast<std::uint32_t>(got[i].logit),
              std::bit_cast<std::uint32_t>(want[i].logit));
  }
}

void ExpectAllAgree(const std::vector<float>& logits) {
  const SamplingTarget& scalar = SamplingTargets()[0];
  const auto n = static_cast<std::int32_t>(logits.size());
  const MaxResult max = scalar.arg_max(logits.data(), n);
  for (const SamplingTarget& target : SamplingTargets()) {
    SCOPED_TRACE(absl::StrCat("target ", std::string(target.name), " n=", n));
    const MaxResult got = target.arg_max(logits.data(), n);
    ASSERT_EQ(got.index, max.index);
    ASSERT_EQ(got.value, max.value);
    const double sum = LogSumExpWith(target, logits);
    const double want = LogSumExpWith(scalar, logits);
    ASSERT_TRUE(sum == want || (std::isnan(sum) && std::isnan(want))) << sum << " vs " << want;
    for (const std::int32_t k : {0, 1, 2, 17, 40, n / 3, n, n + 5}) {
      SCOPED_TRACE(absl::StrCat("k=", k));
      ExpectSame(TopKWith(target, logits, k), SlowTopK(logits, k));
    }
  }
}

TEST(SamplingTest, PrintsTargets) {
  for (const SamplingTarget& target : SamplingTargets())
    std::cout << "ran: " << target.name << "\n";
  EXPECT_EQ(SamplingTargets()[0].name, "scalar");
}

TEST(SamplingTest, EveryLength) {
  std::mt19937 random(1);
  for (std::size_t n = 0; n <= 140; ++n) {
    for (const float size : {1e-40f, 1.0f, 30.0f, 400.0f, 1e30f}) {
      ExpectAllAgree(Random(n, size, 1000000, 0, random));
      ExpectAllAgree(Random(n, size, 5, 20, random));
      if (HasFatalFailure()) return;
    }
  }
}

TEST(SamplingTest, WholeVocabularies) {
  std::mt19937 random(2);
  for (const std::size_t n : {49152u, 60001u}) {
    ExpectAllAgree(Random(n, 40, 1u << 30, 0, random));
    ExpectAllAgree(Random(n, 40, 50, 3, random));
    // Ascending: every logit beats all before it, the most work for a filter.
    std::vector<float> ascending(n);
    for (std::size_t i = 0; i < n; ++i) ascending[i] = static_cast<float>(i);
    ExpectAllAgree(ascending);
    ExpectAllAgree(std::vector<float>(n, -1.0f));
  }
}

TEST(SamplingTest, EdgesOfArgMax) {
  for (const SamplingTarget& target : SamplingTargets()) {
    SCOPED_TRACE(std::string(target.name));
    const std::vector<float> nans(20, kNan);
    EXPECT_EQ(target.arg_max(nans.data(), 20).index, -1);
    EXPECT_EQ(target.arg_max(nans.data(), 20).value, -kInfinity);
    EXPECT_EQ(target.arg_max(nans.data(), 0).index, -1);
    std::vector<float> lowest(20, -kInfinity);
    lowest[0] = kNan;
    EXPECT_EQ(target.arg_max(lowest.data(), 20).index, 1);
    lowest[7] = lowest[18] = kInfinity;
    EXPECT_EQ(target.arg_max(lowest.data(), 20).index, 7);
    EXPECT_EQ(LogSumExpWith(target, std::vector<float>(3, -kInfinity)), -kInfinity);
    EXPECT_EQ(LogSumExpWith(target, {}), -kInfinity);
  }
}

TEST(SamplingTest, LogSumExpAgreesWithDoubles) {
  std::mt19937 random(3);
  const std::vector<float> logits = Random(49152, 30, 1u << 30, 0, random);
  double sum = 0;
  for (const float v : logits) sum += std::exp(double{v});
  EXPECT_NEAR(LogSumExp(logits), std::log(sum), 1e-6);
  EXPECT_EQ(ArgMax(logits).index, TopK(logits, 1)[0].token);
}

}  // namespace
}  // namespace penstock::kernels
