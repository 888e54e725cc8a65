// SPDX-License-Identifier: Apache-2.0
#include "coordinator/replication.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "coordinator/worker.h"

namespace penstock::coordinator {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

const MonoTime kStart = MonoTime(seconds(100));

std::vector<Chain> Chains(std::uint8_t first, std::uint8_t end) {
  std::vector<Chain> chains;
  for (std::uint8_t n = first; n < end; ++n) chains.emplace_back().bytes[0] = n;
  return chains;
}

TEST(RateMeterTest, SaysWhatCameOfLate) {
  RateMeter meter;
  EXPECT_EQ(meter.PerS(kStart), 0);
  for (int i = 0; i < 1000; ++i) meter.Add(100, kStart + milliseconds(100 * i));
  const MonoTime end = kStart + seconds(100);
  EXPECT_NEAR(meter.PerS(end), 1000, 20);
  EXPECT_NEAR(meter.PerS(end + seconds(5)), 1000 / 2.718, 10);
  EXPECT_LT(meter.PerS(end + seconds(60)), 1);
}

TEST(ReplicationTest, ANodeIsHotThatGivesMoreThanAShare) {
  Replication replication({.hot_share = 0.5});
  EXPECT_FALSE(replication.IsHot(500, 1000));
  EXPECT_TRUE(replication.IsHot(501, 1000));
  EXPECT_FALSE(Replication({.on = false}).IsHot(501, 1000));
}

TEST(ReplicationTest, BlocksAreHotThatComeAgainWithinAWindow) {
  Replication replication({.fetches_min = 3, .window = seconds(10)});
  const auto prompt = Chains(0, 8);
  auto other = Chains(0, 4);  // The same system prompt, then its own.
  for (const Chain& chain : Chains(100, 104)) other.push_back(chain);
  EXPECT_TRUE(replication.Count(prompt, kStart).empty());
  EXPECT_TRUE(replication.Count(other, kStart).empty());
  const Replication::Range hot = replication.Count(other, kStart + seconds(1));
  EXPECT_EQ(hot.first, 0u);
  EXPECT_EQ(hot.end, 4u) << "what is shared";
  ASSERT_TRUE(replication.Ask(std::span(other).first(4), 100, kStart + seconds(1)));
  EXPECT_EQ(replication.Count(other, kStart + seconds(2)).first, 4u) << "the rest has become hot";
  EXPECT_EQ(replication.Count(other, kStart + seconds(2)).end, 8u);
  EXPECT_TRUE(replication.Count(prompt, kStart + seconds(11)).empty()) << "another window";
}

TEST(ReplicationTest, BytesAndBlocksAreBounded) {
  Replication replication({.fetches_min = 1, .bytes_per_s = 1000, .blocks_max = 6});
  const auto all = Chains(0, 10);
  EXPECT_EQ(replication.Count(all, kStart).end, 6u);
  EXPECT_TRUE(replication.Ask(std::span(all).first(1), 800, kStart));
  EXPECT_FALSE(replication.Ask(std::span(all).subspan(1, 1), 800, kStart + milliseconds(500)));
  EXPECT_TRUE(replication.Ask(std::span(all).subspan(1, 1), 800, kStart + milliseconds(600)));
  EXPECT_FALSE(replication.Ask(std::span(all).subspan(2, 1), 5000, kStart + milliseconds(1000)));
  EXPECT_TRUE(replication.Ask(std::span(all).subspan(2, 1), 5000, kStart + seconds(3)))
      << "larger than a second's";
  EXPECT_EQ(replication.Count(all, kStart + seconds(3)).first, 3u);
}

}  // namespace
}  // namespace penstock::coordinator
