// SPDX-License-Identifier: Apache-2.0
#include "kvstore/eviction_density.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

#include "base/seed_testing.h"
#include "kvstore/eviction_testing.h"
#include "kvstore/replay.h"

namespace penstock::kvstore {
namespace {

using Numbers = std::vector<std::uint64_t>;

TEST(ReuseDensityTest, LetsGoFromTheTail) {
  const auto policy = TestPolicy("reuse-density", 100);
  TestRequest(*policy, {1, 2, 3, 4}, TestTime(0));
  TestRequest(*policy, {1, 2, 5}, TestTime(1));
  EXPECT_EQ(TestEvict(*policy, 1, TestTime(2)), (Numbers{4}));
  EXPECT_EQ(TestEvict(*policy, 4, TestTime(3)), (Numbers{3, 5, 2, 1}));
}

TEST(ReuseDensityTest, NoHeadBeforeItsTail) {
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    const RunningSeed running(seed);
    std::mt19937_64 random(seed);
    const std::uint64_t capacity = 10 + random() % 200;
    const auto policy = TestPolicy("reuse-density", capacity, 100);
    std::map<std::uint64_t, std::set<std::uint64_t>> children;  // Held ones.
    std::map<std::uint64_t, std::uint64_t> parents;
    double seconds = 0;
    for (int step = 0; step < 500; ++step) {
      seconds += static_cast<double>(random() % 10000) / 100;
      Numbers chain;
      for (std::uint64_t at = 1 + random() % 6, i = 0; i < 1 + random() % 15; ++i) {
        chain.push_back(at);
        at = at * 8 + random() % 3;
      }
      TestRequest(*policy, chain, TestTime(seconds));
      for (std::size_t i = 1; i < chain.size(); ++i) {
        parents[chain[i]] = chain[i - 1];
        children[chain[i - 1]].insert(chain[i]);
      }
      while (policy->held_bytes() > capacity) {
        const Numbers victims = TestEvict(*policy, 1, TestTime(seconds));
        ASSERT_EQ(victims.size(), 1U);
        ASSERT_TRUE(children[victims[0]].empty()) << "block " << victims[0] << ", step " << step;
        if (parents.contains(victims[0])) children[parents[victims[0]]].erase(victims[0]);
      }
    }
  }
}

// What is deep in a chain costs more to compute again.
TEST(ReuseDensityTest, KeepsWhatCostsMore) {
  for (const std::uint32_t attention_tokens : {0U, 256U}) {
    const auto policy = MakeEvictionPolicy("reuse-density", {.capacity_bytes = 100,
                                                             .block_tokens = 32,
                                                             .attention_tokens = attention_tokens})
                            .value();
    Numbers deep;
    for (std::uint64_t n = 1; n <= 40; ++n) deep.push_back(n);
    TestRequest(*policy, deep, TestTime(0));
    TestRequest(*policy, {100}, TestTime(0));
    EXPECT_EQ(TestEvict(*policy, 1, TestTime(9)), (Numbers{attention_tokens == 0 ? 40U : 100U}));
  }
}

TEST(ReuseDensityTest, APinnedBlockKeepsItsPrefix) {
  const auto policy = TestPolicy("reuse-density", 100);
  TestRequest(*policy, {1, 2, 3, 4}, TestTime(0));
  policy->Pin(TestKey(2));
  EXPECT_EQ(TestEvict(*policy, 4, TestTime(1)), (Numbers{4, 3}));
  policy->Unpin(TestKey(2), TestTime(2));
  EXPECT_EQ(TestEvict(*policy, 4, TestTime(3)), (Numbers{2, 1}));
}

TEST(ReuseDensityTest, WhatHasNoParentGoesFirst) {
  const auto policy = TestPolicy("reuse-density", 100);
  TestRequest(*policy, {1, 2}, TestTime(0));
  TestRequest(*policy, {5}, TestTime(0));
  policy->Put({.key = TestKey(9), .parent = TestKey(8)}, TestTime(100));
  policy->Put({.key = TestKey(3), .parent = TestKey(2)}, TestTime(100));
  EXPECT_EQ(TestEvict(*policy, 1, TestTime(100)), (Numbers{9}));
  // With its parent it is like any other.
  policy->Put({.key = TestKey(9), .parent = TestKey(8)}, TestTime(101));
  policy->Put({.key = TestKey(8)}, TestTime(101));
  EXPECT_EQ(TestEvict(*policy, 1, TestTime(101)), (Numbers{5}));
}

TEST(ReuseDensityTest, RemembersNoMoreThanItMay) {
  for (const std::size_t ghosts_max : {std::size_t{0}, std::size_t{7}, std::size_t{300}}) {
    SCOPED_TRACE(ghosts_max);
    const auto policy = TestPolicy("reuse-density", 20, ghosts_max);
    std::mt19937_64 random(5);
    for (int step = 0; step < 3000; ++step) {
      Numbers chain = {random() % 3};
      while (random() % 12 != 0) chain.push_back(1000 + random() % 5000);
      TestRequest(*policy, chain, TestTime(step));
      if (policy->held_bytes() > 20) {
        TestEvict(*policy, policy->held_bytes() - 20, TestTime(step));
      }
      ASSERT_LE(policy->ghosts(), ghosts_max);
      ASSERT_LE(policy->held_bytes(), 20U);
    }
  }
}

// Conversations come back after a minute, single questions never: LRU, whose cache is full within half
// a minute, finds nothing.
TEST(ReuseDensityTest, LearnsWhatComesBack) {
  std::vector<ReplayRequest> requests;
  std::uint64_t next = 0;
  std::map<int, std::vector<std::uint64_t>> talks;
  for (int second = 0; second < 3000; ++second) {
    std::vector<std::uint64_t> blocks;
    if (second % 4 == 0) {  // 15 conversations at a time, of 12 turns of 2 blocks each.
      std::vector<std::uint64_t>& talk = talks[second / 4 % 15];
      if (talk.size() >= 24) talk.clear();
      talk.push_back(++next);
      talk.push_back(++next);
      blocks = talk;
    } else {
      for (int i = 0; i < 12; ++i) blocks.push_back(++next);
    }
    requests.push_back({.arrival = std::chrono::seconds(second),
                        .prompt_tokens = static_cast<std::int32_t>(blocks.size()) * 512,
                        .blocks = blocks});
  }
  const auto lru = TestPolicy("lru", 300), density = TestPolicy("reuse-density", 300, 100000);
  const double rate_lru = Replay(requests, 512, 300, *lru).token_rate();
  const double rate = Replay(requests, 512, 300, *density).token_rate();
  const auto all = TestPolicy("lru", 300);
  const double rate_all = Replay(requests, 512, 0, *all).token_rate();
  EXPECT_LT(rate_lru, 0.1 * rate_all);
  EXPECT_GT(rate, 0.7 * rate_all);
}

}  // namespace
}  // namespace penstock::kvstore
