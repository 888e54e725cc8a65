// SPDX-License-Identifier: Apache-2.0
#include "kvstore/replay.h"

#include <gtest/gtest.h>

#include <map>

#include "kvstore/eviction_testing.h"
#include "kvstore/replay_trace.h"

namespace penstock::kvstore {
namespace {

ReplayRequest Request(int second, std::int32_t tokens, std::vector<std::uint64_t> blocks) {
  return {.arrival = std::chrono::seconds(second), .prompt_tokens = tokens, .blocks = blocks};
}

// Blocks of 10 tokens. What each request finds, in blocks, was worked out by hand.
const std::vector<ReplayRequest>& HandMade() {
  static const std::vector<ReplayRequest> requests = {
      Request(0, 30, {1, 2, 3}),  // Nothing.
      Request(1, 25, {1, 2, 4}),  // 1 2: 20 tokens.
      Request(2, 25, {1, 2, 4}),  // All: 25 tokens, not 30.
      Request(3, 20, {5, 6}),     // Nothing.
      Request(4, 30, {1, 2, 3}),  // All: 30, if nothing was evicted.
  };
  return requests;
}

TEST(ReplayTest, NothingEvicted) {
  const auto lru = TestPolicy("lru", 1);
  const ReplayResult result = Replay(HandMade(), 10, 0, *lru);
  EXPECT_EQ(result.requests, 5U);
  EXPECT_EQ(result.prompt_tokens, 130U);
  EXPECT_EQ(result.hit_tokens, 75U);
  EXPECT_EQ(result.evicted_blocks, 0U);
  EXPECT_DOUBLE_EQ(result.token_rate(), 75.0 / 130);
  EXPECT_DOUBLE_EQ(result.request_rate(), (0.8 + 1 + 1) / 5);
}

// Four blocks. After the third request, oldest first: 3 1 2 4. 5 evicts 3, 6 evicts 1; then 1 is
// missing, so nothing is found, though 2 is there: 1 evicts 2, 2 evicts 4, 3 evicts 5.
TEST(ReplayTest, LruOfFourBlocks) {
  const auto lru = TestPolicy("lru", 4);
  const ReplayResult result = Replay(HandMade(), 10, 4, *lru);
  EXPECT_EQ(result.hit_tokens, 45U);
  EXPECT_EQ(result.evicted_blocks, 5U);
  for (const std::uint64_t id : {1, 2, 3, 6}) {
    const std::vector<ReplayRequest> one = {Request(5, 10, {id})};
    EXPECT_EQ(Replay(one, 10, 4, *lru).hit_tokens, 10U) << id;
  }
}

TEST(ReplayTest, NoRequestsNoRates) {
  const auto lru = TestPolicy("lru", 4);
  const ReplayResult result = Replay({}, 10, 4, *lru);
  EXPECT_EQ(result.token_rate(), 0);
  EXPECT_EQ(result.request_rate(), 0);
}

TEST(MadeTraceTest, SameSeedSameTrace) {
  const MadeTraceOptions options = {.seed = 5, .seconds = 200};
  const auto one = MakeChatsAndDocuments(options), two = MakeChatsAndDocuments(options);
  ASSERT_EQ(one.size(), two.size());
  for (std::size_t i = 0; i < one.size(); ++i) {
    EXPECT_EQ(one[i].request.blocks, two[i].request.blocks);
    EXPECT_EQ(one[i].request.arrival, two[i].request.arrival);
  }
  const auto other = MakeChatsAndDocuments({.seed = 6, .seconds = 200});
  EXPECT_NE(one.front().request.prompt_tokens, other.front().request.prompt_tokens);
}

TEST(MadeTraceTest, IsWellFormed) {
  const auto made = MakeChatsAndDocuments({.seed = 9, .seconds = 1000});
  // Of 3.3 a second, less the turns that would come after the end.
  EXPECT_GT(made.size(), 2000U);
  EXPECT_LT(made.size(), 3500U);
  std::map<std::uint64_t, std::uint64_t> before;  // The only block before each.
  Duration last{};
  std::size_t blocks = 0;
  for (const MadeRequest& each : made) {
    const ReplayRequest& request = each.request;
    EXPECT_GE(request.arrival, last);
    last = request.arrival;
    ASSERT_EQ(static_cast<std::int32_t>(request.blocks.size()),
              (request.prompt_tokens + kMadeBlockTokens - 1) / kMadeBlockTokens);
    blocks += request.blocks.size();
    for (std::size_t i = 0; i < request.blocks.size(); ++i) {
      const std::uint64_t parent = i == 0 ? UINT64_MAX : request.blocks[i - 1];
      EXPECT_EQ(before.emplace(request.blocks[i], parent).first->second, parent);
    }
  }
  // Much is shared, much is not.
  EXPECT_LT(before.size(), blocks * 3 / 4);
  EXPECT_GT(before.size(), blocks / 10);
}

}  // namespace
}  // namespace penstock::kvstore
