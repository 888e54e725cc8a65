// SPDX-License-Identifier: Apache-2.0
#include "engine/given_text.h"

#include <atomic>
#include <cstring>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "device/cpu_device.h"
#include "engine/fake_step_runner.h"
#include "engine/text_testing.h"
#include "gtest/gtest.h"

namespace penstock::engine {
namespace {

constexpr std::int32_t kVocab = kTextVocab;
constexpr std::int32_t kBlockTokens = 8;

const KvSpec kSpec = TextSpec();

class GivenTextTest : public testing::Test {
 protected:
  void Make(std::size_t slabs) {
    pool_ = *KvPool::Make(
        *device_, kSpec,
        {.pool_bytes = slabs * 4096, .block_tokens = kBlockTokens, .page_tokens = kBlockTokens});
    runner_ = std::make_unique<FakeStepRunner>(*pool_, kVocab, 16, 3);
  }
  // Scores `text` from `begin` on behind `given` and compares with what the model says.
  void ExpectScores(GivenText& given, const std::vector<TokenId>& text, std::int32_t begin) {
    FakeModel model(kSpec, kVocab);
    (void)model.Feed(std::span(text).first(static_cast<std::size_t>(begin)));
    const absl::Status status = given.Score(
        std::span(text).subspan(static_cast<std::size_t>(begin)),
        [&](std::int32_t position, std::span<const float> logits) {
          const std::span<const float> want =
              model.Feed({&text[static_cast<std::size_t>(position)], 1});
          ASSERT_TRUE(std::equal(logits.begin(), logits.end(), want.begin(), want.end()))
              << position;
        });
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(given.position(), static_cast<std::int32_t>(text.size()));
  }

  const std::unique_ptr<CpuDevice> device_ = *CpuDevice::Make({.threads = 2, .cpus = {}});
  std::unique_ptr<KvPool> pool_;
  std::unique_ptr<FakeStepRunner> runner_;
};

TEST_F(GivenTextTest, PiecesAreOneText) {
  Make(60);
  const std::vector<TokenId> text = TextOf(70);
  for (const std::int32_t begin : {1, 7, 8, 33, 64}) {
    SCOPED_TRACE(begin);
    GivenText given(*runner_, *pool_);
    const auto head = std::span(text).first(static_cast<std::size_t>(begin));
    ASSERT_TRUE(given.Feed(head.first(head.size() / 2)).ok());
    ASSERT_TRUE(given.Feed(head.subspan(head.size() / 2)).ok());
    EXPECT_EQ(given.position(), begin);
    ExpectScores(given, text, begin);
  }
  EXPECT_EQ(pool_->stats().bytes_held, 0u);
}

TEST_F(GivenTextTest, AtOnceGivesEachRowOnce) {
  Make(60);
  const std::vector<TokenId> text = TextOf(70);
  std::vector<std::atomic<int>> seen(text.size());
  GivenText given(*runner_, *pool_);
  ASSERT_TRUE(given
                  .ScoreAtOnce(text,
                               [&](std::int32_t position, std::span<const float> logits) {
                                 EXPECT_EQ(logits.size(), static_cast<std::size_t>(kVocab));
                                 ++seen[static_cast<std::size_t>(position)];
                               })
                  .ok());
  for (const std::atomic<int>& times : seen) EXPECT_EQ(times, 1);
}

// Both ways to go on behind a text that stays as it is.
TEST_F(GivenTextTest, GoesOnBehindAnothersBlocks) {
  Make(80);
  const std::vector<TokenId> text = TextOf(70);
  GivenText head(*runner_, *pool_);
  ASSERT_TRUE(head.Feed(std::span(text).first(40)).ok());
  for (int round = 0; round < 2; ++round) {
    GivenText shared(*runner_, *pool_);
    shared.ShareFrom(head);
    ExpectScores(shared, text, 40);

    GivenText copied(*runner_, *pool_);
    ASSERT_TRUE(copied.StartAt(40).ok());
    for (std::int32_t g = 0; g < pool_->groups(); ++g) {
      const std::span<const SlabRef> from = head.blocks().slabs(g), to = copied.blocks().slabs(g);
      ASSERT_EQ(from.size(), to.size());
      ASSERT_EQ(head.blocks().first_block(g), copied.blocks().first_block(g));
      for (std::size_t b = 0; b < from.size(); ++b) pool_->Copy(g, from[b], to[b]);
    }
    ExpectScores(copied, text, 40);
  }
  EXPECT_EQ(head.position(), 40);
}

TEST_F(GivenTextTest, SaysWhatIsMissing) {
  Make(8);
  GivenText given(*runner_, *pool_);
  const absl::Status status = given.Feed(TextOf(70));
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(status.message().find("a text of 70 tokens needs"), std::string::npos) << status;
  GivenText other(*runner_, *pool_);
  EXPECT_EQ(other.StartAt(64).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(other.position(), 0);
}

}  // namespace
}  // namespace penstock::engine
