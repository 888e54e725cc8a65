// SPDX-License-Identifier: Apache-2.0
// SmolLM2 against numbers from an independent float64 reference (tests/golden/smollm2.json).
#include <algorithm>
#include <cmath>
#include <fstream>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/sampling.h"
#include "nlohmann/json.hpp"
#include "tests/forward_harness.h"

namespace penstock::tests {
namespace {

struct Bounds {
  double logprob;  // Largest difference of a top-20 log-probability after the prompt.
  double margin;   // Every token whose reference margin is at least this must agree.
};

double Logprob(const std::vector<float>& logits, std::size_t token) {
  return static_cast<double>(logits[token]) - kernels::LogSumExp(logits);
}

// Feeds the reference's own continuation, so that one early tie does not hide what follows.
void ExpectAgreement(const ForwardHarness::Options& options, const Bounds& bounds) {
  const std::string path = CachedModel("SmolLM2-135M-Instruct.Q4_1.gguf");
  if (path.empty()) GTEST_SKIP() << "no model file; penstock model get smollm2 fetches it";
  auto harness = ForwardHarness::Make(path, options);
  ASSERT_TRUE(harness.ok()) << harness.status();
  std::ifstream file(PENSTOCK_SOURCE_DIR "/tests/golden/smollm2.json");
  const nlohmann::json golden = nlohmann::json::parse(file);
  double worst = 0;
  int compared = 0;
  int differed = 0;
  for (const nlohmann::json& prompt : golden["prompts"]) {
    SCOPED_TRACE(prompt["name"].get<std::string>());
    const auto ids = prompt["ids"].get<std::vector<TokenId>>();
    const auto greedy = prompt["greedy"].get<std::vector<TokenId>>();
    const auto margins = prompt["greedy_margin"].get<std::vector<double>>();
    ForwardHarness::Sequence s = (*harness)->NewSequence();
    std::vector<std::vector<float>> logits = (*harness)->Run({{&s, ids, 1}});
    for (const nlohmann::json& top : prompt["next_top20"]) {
      const double difference =
          std::abs(Logprob(logits[0], top[0].get<std::size_t>()) - top[1].get<double>());
      worst = std::max(worst, difference);
      EXPECT_LE(difference, bounds.logprob) << "token " << top[0];
    }
    for (std::size_t i = 0; i < greedy.size(); ++i) {
      const TokenId best = kernels::ArgMax(logits[0]).index;
      ++compared;
      differed += best != greedy[i];
      if (margins[i] >= bounds.margin) {
        EXPECT_EQ(best, greedy[i]) << "step " << i << ", margin " << margins[i];
      }
      logits = (*harness)->Run({{&s, {greedy[i]}, 1}});
    }
    (*harness)->Free(s);
  }
  std::printf("worst log-probability difference %.2e; %d of %d greedy tokens differ\n", worst,
              differed, compared);
}

TEST(GoldenTest, FloatActivationsAndKvMatchTheReference) {
  ExpectAgreement({.threads = 2, .float_activations = true, .kv_dtype = KvDtype::kF32},
                  {.logprob = 2e-3, .margin = 0.01});
}

TEST(GoldenTest, DefaultsAgreeWhereTheMarginIsClear) {
  ExpectAgreement({.threads = 2}, {.logprob = 1.0, .margin = 0.35});
}

// Models of every architecture with random weights, against Hugging Face transformers
// (tests/make_tiny_models.py).
class TinyModelTest : public testing::TestWithParam<const char*> {};

TEST_P(TinyModelTest, LogitsMatchTransformers) {
  const std::string folder = std::string(PENSTOCK_SOURCE_DIR "/tests/golden/tiny/") + GetParam();
  auto harness =
      ForwardHarness::Make(folder, {.float_activations = true, .kv_dtype = KvDtype::kF32});
  ASSERT_TRUE(harness.ok()) << harness.status();
  std::ifstream file(folder + "/logits.json");
  const nlohmann::json golden = nlohmann::json::parse(file);
  const auto tokens = golden["tokens"].get<std::vector<TokenId>>();
  const auto want = golden["logits"].get<std::vector<std::vector<double>>>();
  ForwardHarness::Sequence s = (*harness)->NewSequence();
  const auto rows = static_cast<std::int32_t>(want.size());
  const std::vector<std::vector<float>> logits = (*harness)->Run({{&s, tokens, rows}});
  ASSERT_EQ(logits.size(), want.size());
  for (std::size_t r = 0; r < want.size(); ++r) {
    ASSERT_EQ(logits[r].size(), want[r].size());
    for (std::size_t i = 0; i < want[r].size(); ++i) {
      ASSERT_NEAR(logits[r][i], want[r][i], 2e-4 * std::max(1.0, std::abs(want[r][i])))
          << "row " << r << ", id " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Architectures, TinyModelTest,
                         testing::Values("llama2", "llama3", "mistral", "qwen2", "qwen3", "gemma3"),
                         [](const auto& test) { return std::string(test.param); });

}  // namespace
}  // namespace penstock::tests
