// SPDX-License-Identifier: Apache-2.0
#include "engine/score.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "device/cpu_device.h"
#include "engine/fake_step_runner.h"
#include "engine/text_testing.h"
#include "gtest/gtest.h"

namespace penstock::engine {
namespace {

constexpr std::int32_t kVocab = kTextVocab;

const KvSpec kSpec = TextSpec();

std::unique_ptr<KvPool> Pool(Device& device, std::size_t slabs) {
  return *KvPool::Make(device, kSpec,
                       {.pool_bytes = slabs * 4096, .block_tokens = 8, .page_tokens = 8});
}

TEST(ScoreTest, EveryPositionOnceForAnyChunkAndPool) {
  const auto device = *CpuDevice::Make({.threads = 1, .cpus = {}});
  const std::vector<TokenId> text = TextOf(70);
  for (const std::size_t slabs : {12u, 14u, 40u}) {
    for (const std::int32_t rows : {1, 3, 8, 20, 200}) {
      SCOPED_TRACE(absl::StrCat(slabs, " slabs, ", rows, " logit rows"));
      const auto pool = Pool(*device, slabs);
      FakeStepRunner runner(*pool, kVocab, 64, rows);
      FakeModel model(kSpec, kVocab);
      std::int32_t next = 0;
      const absl::Status status = ForEachLogits(
          runner, *pool, text, [&](std::int32_t position, std::span<const float> logits) {
            ASSERT_EQ(position, next++);
            const std::span<const float> want =
                model.Feed({&text[static_cast<std::size_t>(position)], 1});
            ASSERT_TRUE(std::equal(logits.begin(), logits.end(), want.begin(), want.end()));
          });
      ASSERT_TRUE(status.ok()) << status;
      EXPECT_EQ(next, 70);
      EXPECT_EQ(pool->stats().bytes_held, 0u);
    }
  }
}

TEST(ScoreTest, LogProbabilitiesAreThoseOfTheSoftmax) {
  const auto device = *CpuDevice::Make({.threads = 1, .cpus = {}});
  const auto pool = Pool(*device, 40);
  FakeStepRunner runner(*pool, kVocab, 64, 64);
  const std::vector<TokenId> text = TextOf(30);
  const absl::StatusOr<std::vector<double>> scores = ScoreTokens(runner, *pool, text);
  ASSERT_TRUE(scores.ok()) << scores.status();
  ASSERT_EQ(scores->size(), 29u);
  FakeModel model(kSpec, kVocab);
  for (std::size_t i = 0; i < scores->size(); ++i) {
    const std::span<const float> logits = model.Feed({&text[i], 1});
    double sum = 0;
    for (const float logit : logits) sum += std::exp(static_cast<double>(logit));
    const double want = logits[static_cast<std::size_t>(text[i + 1])] - std::log(sum);
    EXPECT_NEAR((*scores)[i], want, 1e-5);
  }
}

TEST(ScoreTest, SaysWhatIsMissing) {
  const auto device = *CpuDevice::Make({.threads = 1, .cpus = {}});
  const auto pool = Pool(*device, 7);
  FakeStepRunner runner(*pool, kVocab, 64, 64);
  const absl::Status status = ScoreTokens(runner, *pool, TextOf(70)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(pool->stats().bytes_held, 0u);
  EXPECT_EQ(ScoreTokens(runner, *pool, TextOf(1)).status().message(),
            "a text to score must have at least 2 tokens, got 1");
  runner.BreakOn(TextOf(20)[13]);
  EXPECT_EQ(ScoreTokens(runner, *pool, TextOf(20)).status().code(), absl::StatusCode::kInternal);
}

}  // namespace
}  // namespace penstock::engine
