// SPDX-License-Identifier: Apache-2.0
#include "engine/sampler.h"

#include <algorithm>
#include <array>
#include <cfloat>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <set>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/philox.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace penstock::engine {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// The known answers that the Random123 distribution ships for philox4x32 with 10 rounds.
TEST(PhiloxTest, KnownAnswers) {
  EXPECT_THAT(Philox4x32({0, 0, 0, 0}, {0, 0}),
              ElementsAre(0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8));
  EXPECT_THAT(
      Philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
      ElementsAre(0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd));
  EXPECT_THAT(
      Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
      ElementsAre(0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1));
}

TEST(UniformAtTest, EveryArgumentCountsAndNothingElse) {
  const double base = UniformAt(1, 2, 3, 4);
  EXPECT_EQ(base, UniformAt(1, 2, 3, 4));
  EXPECT_NE(base, UniformAt(2, 2, 3, 4));
  EXPECT_NE(base, UniformAt(1 + (std::uint64_t{1} << 32), 2, 3, 4));
  EXPECT_NE(base, UniformAt(1, 3, 3, 4));
  EXPECT_NE(base, UniformAt(1, 2, 4, 4));
  EXPECT_NE(base, UniformAt(1, 2, 3, 5));
  // The first known answer: words 0 and 1, upper 53 bits.
  EXPECT_EQ(UniformAt(0, 0, 0, 0), static_cast<double>(0xe169c58d6627e8d5 >> 11) / 0x1p53);
}

TEST(UniformAtTest, FillsTheUnitIntervalEvenly) {
  constexpr int kBins = 100;
  constexpr int kDraws = 200000;
  std::array<int, kBins> counts{};
  for (int i = 0; i < kDraws; ++i) {
    const double u = UniformAt(42, i % 8, i / 8, 0);
    ASSERT_GE(u, 0);
    ASSERT_LT(u, 1);
    ++counts[static_cast<int>(u * kBins)];
  }
  double chi_square = 0;
  for (const int count : counts) {
    const double expected = double{kDraws} / kBins;
    chi_square += (count - expected) * (count - expected) / expected;
  }
  // 99 degrees of freedom: 148.2 has p = 0.001, 56.0 has p = 0.9998.
  EXPECT_LT(chi_square, 148.2);
  EXPECT_GT(chi_square, 56.0);
}

std::vector<float> RandomRow(std::mt19937_64& random, std::size_t size, float spread) {
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> row(size);
  for (float& logit : row) logit = normal(random);
  return row;
}

// The slow and obvious sampler: probabilities of every token after all filters, all of it sorted.
std::vector<double> BruteForce(const std::vector<float>& logits, const SamplingParams& params) {
  struct Entry {
    std::size_t token;
    double p;
  };
  std::vector<Entry> entries;
  const double max = *std::max_element(logits.begin(), logits.end());
  for (std::size_t i = 0; i < logits.size(); ++i) {
    entries.push_back({i, std::exp((logits[i] - max) / params.temperature)});
  }
  const auto normalize = [&entries] {
    double sum = 0;
    for (const Entry& e : entries) sum += e.p;
    for (Entry& e : entries) e.p /= sum;
  };
  const auto descending = [](const Entry& a, const Entry& b) {
    return a.p != b.p ? a.p > b.p : a.token < b.token;
  };
  const auto keep_mass = [&entries](double mass) {
    std::size_t kept = 0;
    for (double sum = 0; kept < entries.size() && (kept == 0 || sum < mass); ++kept) {
      sum += entries[kept].p;
    }
    entries.resize(kept);
  };
  std::sort(entries.begin(), entries.end(), descending);
  if (params.top_k > 0 && static_cast<std::size_t>(params.top_k) < entries.size()) {
    entries.resize(params.top_k);
  }
  normalize();
  if (params.typical_p < 1) {
    double entropy = 0;
    for (const Entry& e : entries) entropy -= e.p > 0 ? e.p * std::log(e.p) : 0;
    std::stable_sort(entries.begin(), entries.end(), [entropy](const Entry& a, const Entry& b) {
      return std::abs(-std::log(a.p) - entropy) < std::abs(-std::log(b.p) - entropy);
    });
    keep_mass(params.typical_p);
    normalize();
    std::sort(entries.begin(), entries.end(), descending);
  }
  if (params.top_p < 1) {
    keep_mass(params.top_p);
    normalize();
  }
  const double floor = params.min_p * entries[0].p;
  std::erase_if(entries, [floor](const Entry& e) { return e.p < floor; });
  normalize();
  std::vector<double> probabilities(logits.size(), 0);
  for (const Entry& e : entries) probabilities[e.token] = e.p;
  return probabilities;
}

TokenId Sample(const std::vector<float>& logits, const SamplingParams& params, int position = 0,
               std::vector<TokenId> prompt = {}, std::vector<TokenId> answer = {}) {
  const absl::StatusOr<SampledToken> sampled =
      SampleToken(logits, params, prompt, answer, /*choice=*/0, position);
  EXPECT_TRUE(sampled.ok()) << sampled.status();
  return sampled.ok() ? sampled->token : -1;
}

// Draws many tokens and compares their frequencies with `want` by chi-square; tokens that are not
// allowed must never come.
void ExpectDistribution(const std::vector<float>& logits, const SamplingParams& params,
                        const std::vector<double>& want, int draws) {
  std::vector<int> counts(logits.size(), 0);
  for (int i = 0; i < draws; ++i) {
    const TokenId token = Sample(logits, params, i);
    ASSERT_GE(token, 0);
    ASSERT_GT(want[token], 0) << "token " << token << " was filtered out, but drawn";
    ++counts[token];
  }
  // Tokens that are expected fewer than 5 times share one bin.
  double chi_square = 0, rare_expected = 0, rare_count = 0;
  int bins = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    const double expected = want[i] * draws;
    if (expected < 5) {
      rare_expected += expected;
      rare_count += counts[i];
    } else {
      chi_square += (counts[i] - expected) * (counts[i] - expected) / expected;
      ++bins;
    }
  }
  if (rare_expected >= 5) {
    chi_square += (rare_count - rare_expected) * (rare_count - rare_expected) / rare_expected;
    ++bins;
  }
  // Mean and variance of chi-square are k and 2k: six deviations are a fault, not bad luck.
  const double degrees = std::max(1, bins - 1);
  EXPECT_LT(chi_square, degrees + 6 * std::sqrt(2 * degrees)) << "bins " << bins;
}

TEST(SampleTokenTest, FiltersAgreeWithBruteForce) {
  struct Case {
    const char* name;
    SamplingParams params;
  };
  const std::vector<Case> cases = {
      {"plain", {}},
      {"temperature 0.5", {.temperature = 0.5}},
      {"temperature 3", {.temperature = 3}},
      {"top-k 1", {.top_k = 1}},
      {"top-k 7", {.top_k = 7}},
      {"top-k of all", {.top_k = 1 << 30}},
      {"top-p 0.9", {.top_p = 0.9}},
      {"top-p tiny", {.top_p = 1e-9}},
      {"min-p 0.1", {.min_p = 0.1}},
      {"min-p 1", {.min_p = 1}},
      {"typical 0.5", {.typical_p = 0.5}},
      {"typical 0.95", {.typical_p = 0.95}},
      {"as penstock generate", {.temperature = 0.8, .top_k = 40, .top_p = 0.95, .min_p = 0.05}},
      {"all", {.temperature = 1.3, .top_k = 60, .top_p = 0.9, .min_p = 0.02, .typical_p = 0.8}},
  };
  for (const Case& c : cases) {
    for (const std::uint64_t seed : {1, 2, 3}) {
      for (const std::size_t size : {1, 2, 30, 700, 2000}) {
        SCOPED_TRACE(absl::StrCat(c.name, " seed=", seed, " size=", size));
        std::mt19937_64 random(seed);
        const std::vector<float> row = RandomRow(random, size, 2);
        SamplingParams params = c.params;
        params.seed = seed;
        ExpectDistribution(row, params, BruteForce(row, params), /*draws=*/1000);
      }
    }
  }
}

TEST(SampleTokenTest, PlainDrawInAWideRowFollowsSoftmax) {
  std::mt19937_64 random(9);
  const std::vector<float> row = RandomRow(random, 40, 1.5);
  const SamplingParams params = {.seed = 5};
  ExpectDistribution(row, params, BruteForce(row, params), 100000);
}

TEST(SampleTokenTest, GreedyTakesTheSmallestOfEquals) {
  const SamplingParams greedy = {.temperature = 0};
  EXPECT_EQ(Sample({1, 3, 3, 2}, greedy), 1);
  EXPECT_EQ(Sample({0, 0, 0}, greedy), 0);
  EXPECT_EQ(Sample({-kInf, -kInf, -5}, greedy), 2);
  EXPECT_EQ(Sample({kNan, -2, kNan, -1}, greedy), 3);
  EXPECT_EQ(Sample({-FLT_MAX, FLT_MAX}, greedy), 1);
}

TEST(SampleTokenTest, ExtremeRows) {
  struct Case {
    const char* name;
    std::vector<float> row;
    std::set<TokenId> allowed;
  };
  for (const Case& c :
       {Case{"one finite", {-kInf, 3, -kInf}, {1}}, Case{"all equal", {2, 2, 2}, {0, 1, 2}},
        Case{"NaN beside", {kNan, 1, kNan, 1}, {1, 3}}, Case{"huge gap", {-FLT_MAX, FLT_MAX}, {1}},
        Case{"all smallest", {-FLT_MAX, -FLT_MAX}, {0, 1}}, Case{"one token", {7}, {0}}}) {
    for (const SamplingParams& params :
         {SamplingParams{}, SamplingParams{.temperature = 1e-300},
          SamplingParams{.temperature = 100}, SamplingParams{.top_k = 2},
          SamplingParams{.top_p = 0.99}, SamplingParams{.min_p = 0.5},
          SamplingParams{.typical_p = 0.9}}) {
      std::set<TokenId> seen;
      for (int i = 0; i < 200; ++i) seen.insert(Sample(c.row, params, i));
      for (const TokenId token : seen) EXPECT_TRUE(c.allowed.contains(token)) << c.name << token;
    }
  }
}

TEST(SampleTokenTest, ABrokenModelIsInternal) {
  for (const std::vector<float>& row :
       {std::vector<float>{}, std::vector<float>{kNan, kNan}, std::vector<float>{-kInf, -kInf},
        std::vector<float>{kNan, -kInf}, std::vector<float>{1, kInf}}) {
    for (const double temperature : {0.0, 1.0}) {
      EXPECT_EQ(SampleToken(row, {.temperature = temperature}, {}, {}, 0, 0).status().code(),
                absl::StatusCode::kInternal);
    }
  }
}

TEST(SampleTokenTest, PenaltiesAndBias) {
  const auto greedy = [](SamplingParams params) {
    params.temperature = 0;
    return params;
  };
  const std::vector<float> row = {4, 3, 2, -1};
  struct Case {
    const char* name;
    double repetition, presence, frequency;
    std::vector<std::pair<TokenId, double>> bias;
    std::vector<TokenId> prompt, answer;
    TokenId want;
  };
  for (const Case& c : {
           Case{"none", 1, 0, 0, {}, {0, 0}, {0, 0}, 0},
           Case{"repetition divides", 1.5, 0, 0, {}, {0}, {}, 1},  // 2.67 < 3
           Case{"repetition is not counted", 1.3, 0, 0, {}, {0, 0, 0}, {0}, 0},
           Case{"presence leaves the prompt alone", 1, 2, 0, {}, {0}, {}, 0},
           Case{"presence once", 1, 0.9, 0, {}, {}, {0, 0, 0, 0}, 0},
           Case{"presence", 1, 1.1, 0, {}, {}, {0}, 1},
           Case{"frequency counts", 1, 0, 0.6, {}, {}, {0, 0}, 1},
           Case{"frequency of one", 1, 0, 0.6, {}, {}, {0}, 0},
           Case{"negative penalties attract", 1, -1.5, 0, {}, {}, {1}, 1},
           Case{"bias up", 1, 0, 0, {{3, 5.5}}, {}, {}, 3},
           Case{"bias bans", 1, 0, 0, {{0, -100}, {1, -100}}, {}, {}, 2},
           Case{"foreign ids", 1.5, 0, 0, {}, {-1, 99, 0}, {INT32_MAX, -7}, 1},
       }) {
    SCOPED_TRACE(c.name);
    SamplingParams params = greedy({});
    params.repetition_penalty = c.repetition;
    params.presence_penalty = c.presence;
    params.frequency_penalty = c.frequency;
    params.logit_bias.insert(c.bias.begin(), c.bias.end());
    EXPECT_EQ(Sample(row, params, 0, c.prompt, c.answer), c.want);
  }
  // A negative logit is multiplied, so that it falls too: -1 becomes -4, below -3.
  EXPECT_EQ(Sample({-3, -1}, greedy({.repetition_penalty = 4}), 0, {1}), 0);
  // Nothing overflows, and -infinity stays impossible.
  EXPECT_EQ(Sample({FLT_MAX, 1}, greedy({.repetition_penalty = 1e-9}), 0, {0, 1}), 0);
  EXPECT_EQ(Sample({-kInf, -FLT_MAX}, greedy({.logit_bias = {{0, 100}}})), 1);
}

TEST(SampleTokenTest, LogprobsAreTheModelsOwn) {
  const std::vector<float> row = {1, 2, 3, 2};
  const double log_sum = std::log(std::exp(1) + 2 * std::exp(2) + std::exp(3));
  SamplingParams params = {.temperature = 0, .logit_bias = {{0, 50}}};
  params.logprobs = 3;
  const absl::StatusOr<SampledToken> sampled = SampleToken(row, params, {}, {}, 0, 0);
  ASSERT_TRUE(sampled.ok());
  EXPECT_EQ(sampled->token, 0);
  ASSERT_TRUE(sampled->logprob.has_value());
  EXPECT_NEAR(*sampled->logprob, 1 - log_sum, 1e-6);
  ASSERT_EQ(sampled->top.size(), 3u);
  EXPECT_EQ(sampled->top[0].token, 2);
  EXPECT_EQ(sampled->top[1].token, 1);
  EXPECT_EQ(sampled->top[2].token, 3);
  EXPECT_NEAR(sampled->top[0].logprob, 3 - log_sum, 1e-6);

  params.logprobs = 0;
  EXPECT_TRUE(SampleToken(row, params, {}, {}, 0, 0)->top.empty());
  params.logprobs = -1;
  EXPECT_FALSE(SampleToken(row, params, {}, {}, 0, 0)->logprob.has_value());
  params.logprobs = 20;  // More than the row has; and a NaN in it.
  const absl::StatusOr<SampledToken> with_nan =
      SampleToken(std::vector<float>{1, kNan}, params, {}, {}, 0, 0);
  ASSERT_TRUE(with_nan.ok());
  EXPECT_NEAR(*with_nan->logprob, 0, 1e-6);
}

TEST(SampleTokenTest, ChoicesDiffer) {
  const std::vector<float> row(1000, 0);
  std::set<TokenId> seen;
  for (int choice = 0; choice < 64; ++choice) {
    seen.insert(SampleToken(row, {.seed = 3}, {}, {}, choice, 0)->token);
  }
  EXPECT_GT(seen.size(), 50u);
}

TEST(SamplingParamsTest, ValidateListsEveryFault) {
  EXPECT_TRUE(SamplingParams{}.Validate(10).ok());
  SamplingParams params = {.temperature = -1,
                           .top_k = -2,
                           .top_p = 0,
                           .min_p = 1.5,
                           .typical_p = 2,
                           .repetition_penalty = 0,
                           .presence_penalty = 2.5,
                           .frequency_penalty = std::nan(""),
                           .logit_bias = {{10, 1}, {3, 101}, {-1, 0}}};
  params.logprobs = 21;
  const absl::Status status = params.Validate(10);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  for (const char* part :
       {"temperature is -1", "top_k is -2", "top_p is 0", "min_p is 1.5", "typical_p is 2",
        "repetition_penalty is 0", "presence_penalty is 2.5", "frequency_penalty is nan",
        "logprobs is 21", "token 10, the vocabulary has 0 to 9", "token -1,",
        "token 3 is 101, must be -100 to 100"}) {
    EXPECT_THAT(std::string(status.message()), HasSubstr(part));
  }
}

TEST(SamplingParamsTest, ValidateAcceptsTheLimitsAndBoundsItsMessage) {
  SamplingParams params = {.temperature = 100,
                           .top_k = INT32_MAX,
                           .top_p = 1e-12,
                           .min_p = 1,
                           .typical_p = 1e-12,
                           .repetition_penalty = 10,
                           .presence_penalty = -2,
                           .frequency_penalty = 2,
                           .logit_bias = {{0, -100}, {9, 100}}};
  params.logprobs = 20;
  EXPECT_TRUE(params.Validate(10).ok()) << params.Validate(10);
  params.logit_bias.clear();
  for (int i = 0; i < 100000; ++i) params.logit_bias[i + 10] = 0;
  EXPECT_LT(params.Validate(10).message().size(), 4096u);
}

}  // namespace
}  // namespace penstock::engine
