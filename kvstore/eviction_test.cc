// SPDX-License-Identifier: Apache-2.0
// Published policies against plain versions of them, and what holds for every policy.
#include "kvstore/eviction.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <list>
#include <map>
#include <random>
#include <set>
#include <string>

#include "base/seed_testing.h"
#include "kvstore/eviction_testing.h"

namespace penstock::kvstore {
namespace {

using Numbers = std::vector<std::uint64_t>;

// Blocks of one byte, by number; what a policy does is spelled out with lists.
class PlainPolicy {
 public:
  virtual ~PlainPolicy() = default;
  virtual void Use(std::uint64_t n) = 0;
  virtual void Put(std::uint64_t n) = 0;
  virtual std::uint64_t Evict() = 0;
};

class PlainLru : public PlainPolicy {
 public:
  void Use(std::uint64_t n) override {
    order_.remove(n);
    order_.push_back(n);
  }
  void Put(std::uint64_t n) override { order_.push_back(n); }
  std::uint64_t Evict() override {
    const std::uint64_t n = order_.front();
    order_.pop_front();
    return n;
  }

 private:
  std::list<std::uint64_t> order_;
};

class PlainS3Fifo : public PlainPolicy {
 public:
  explicit PlainS3Fifo(std::size_t capacity)
      : small_max_(capacity / 10), ghosts_max_(capacity - capacity / 10) {}
  void Use(std::uint64_t n) override { uses_[n] = std::min(uses_[n] + 1, 3); }
  void Put(std::uint64_t n) override {
    uses_[n] = 0;
    const auto ghost = std::ranges::find(ghosts_, n);
    (ghost == ghosts_.end() ? small_ : main_).push_back(n);
    if (ghost != ghosts_.end()) ghosts_.erase(ghost);
  }
  std::uint64_t Evict() override {
    while (true) {
      if (!small_.empty() && (small_.size() >= small_max_ || main_.empty())) {
        const std::uint64_t n = small_.front();
        small_.pop_front();
        if (uses_[n] > 1) {
          uses_[n] = 0;
          main_.push_back(n);
          continue;
        }
        ghosts_.push_back(n);
        if (ghosts_.size() > ghosts_max_) ghosts_.pop_front();
        return n;
      }
      const std::uint64_t n = main_.front();
      main_.pop_front();
      if (uses_[n] == 0) return n;
      --uses_[n];
      main_.push_back(n);
    }
  }

 private:
  const std::size_t small_max_, ghosts_max_;
  std::list<std::uint64_t> small_, main_, ghosts_;
  std::map<std::uint64_t, int> uses_;
};

class PlainGreedyDual : public PlainPolicy {
 public:
  void Use(std::uint64_t n) override { Count(n); }
  void Put(std::uint64_t n) override {
    blocks_[n] = {};
    Count(n);
  }
  std::uint64_t Evict() override {
    const auto lowest = std::ranges::min_element(blocks_, {}, [](const auto& block) {
      return std::pair(block.second.value, block.second.when);
    });
    const std::uint64_t n = lowest->first;
    age_ = lowest->second.value;
    blocks_.erase(lowest);
    return n;
  }

 private:
  struct Block {
    int uses = 0, value = 0, when = 0;
  };
  void Count(std::uint64_t n) {
    Block& block = blocks_[n];
    block.value = age_ + ++block.uses;
    block.when = ++clock_;
  }
  std::map<std::uint64_t, Block> blocks_;
  int age_ = 0, clock_ = 0;
};

std::unique_ptr<PlainPolicy> Plain(std::string_view name, std::size_t capacity) {
  if (name == "lru") return std::make_unique<PlainLru>();
  if (name == "s3-fifo") return std::make_unique<PlainS3Fifo>(capacity);
  return std::make_unique<PlainGreedyDual>();
}

class PlainTest : public testing::TestWithParam<const char*> {};

TEST_P(PlainTest, SameVictims) {
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    const RunningSeed running(seed);
    std::mt19937_64 random(seed);
    const std::size_t capacity = 1 + random() % 40;
    const auto policy = TestPolicy(GetParam(), capacity);
    const auto plain = Plain(GetParam(), capacity);
    for (int step = 0; step < 2000; ++step) {
      // Some are popular; requests of one block each, as the plain ones know no chains.
      const std::uint64_t n = random() % 3 == 0 ? random() % 10 : random() % (3 * capacity);
      const bool held = policy->Holds(TestKey(n));
      TestRequest(*policy, {n}, TestTime(step));
      held ? plain->Use(n) : plain->Put(n);
      while (policy->held_bytes() > capacity) {
        const Numbers victims = TestEvict(*policy, 1, TestTime(step));
        ASSERT_EQ(victims, Numbers{plain->Evict()}) << "step " << step;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, PlainTest, testing::Values("lru", "s3-fifo", "hybrid"),
                         [](const auto& test) {
                           std::string name = test.param;
                           std::erase(name, '-');
                           return name;
                         });

class EvictionTest : public testing::TestWithParam<std::string_view> {};

// Random chains, some of them shared, from random tenants.
struct Traffic {
  explicit Traffic(std::uint64_t seed) : random(seed) {}
  Numbers Chain(std::uint32_t tenant) {
    Numbers chain;
    std::uint64_t at = tenant;
    const std::size_t length = 1 + random() % 12;
    for (std::size_t i = 0; i < length; ++i) {
      at = at * 7 + 1 + (random() % 4 == 0 ? random() % 5 : 0);
      chain.push_back(at * 4 + tenant);
    }
    return chain;
  }
  std::mt19937_64 random;
};

TEST_P(EvictionTest, KeepsItsPromises) {
  for (std::uint64_t seed = 0; seed < 30; ++seed) {
    const RunningSeed running(seed);
    Traffic traffic(seed);
    const std::uint64_t capacity = 20 + traffic.random() % 60;
    const auto policy = TestPolicy(GetParam(), capacity, 50);
    const auto twin = TestPolicy(GetParam(), capacity, 50);
    std::map<std::uint64_t, std::uint32_t> held;  // Tenant of each block.
    std::set<std::uint64_t> pinned;
    const std::uint64_t quota = capacity / 4;
    for (EvictionPolicy* each : {policy.get(), twin.get()}) each->SetQuota(1, quota);
    double seconds = 0;
    for (int step = 0; step < 600; ++step) {
      seconds += static_cast<double>(traffic.random() % 1000) / 100;
      const MonoTime now = TestTime(seconds);
      const auto tenant = static_cast<std::uint32_t>(traffic.random() % 3);
      const Numbers chain = traffic.Chain(tenant);
      for (EvictionPolicy* each : {policy.get(), twin.get()})
        TestRequest(*each, chain, now, tenant);
      for (const std::uint64_t n : chain) held[n] = tenant;
      if (traffic.random() % 8 == 0 && pinned.size() < capacity / 4) {
        pinned.insert(chain.front());
        for (EvictionPolicy* each : {policy.get(), twin.get()}) {
          ASSERT_TRUE(each->Pin(TestKey(chain.front())));
        }
      }
      if (traffic.random() % 16 == 0 && !pinned.empty()) {
        const std::uint64_t n = *pinned.begin();
        pinned.erase(n);
        for (EvictionPolicy* each : {policy.get(), twin.get()}) {
          ASSERT_TRUE(each->Unpin(TestKey(n), now));
        }
      }
      if (traffic.random() % 16 == 0) {
        const std::uint64_t n = chain.back();
        held.erase(n);
        pinned.erase(n);
        for (EvictionPolicy* each : {policy.get(), twin.get()}) each->Remove(TestKey(n), now);
      }
      const std::uint64_t over =
          policy->held_bytes() > capacity ? policy->held_bytes() - capacity : 0;
      std::uint64_t of_limited = policy->tenant_bytes(1);
      const Numbers victims = TestEvict(*policy, over, now);
      ASSERT_EQ(victims, TestEvict(*twin, over, now));
      for (const std::uint64_t n : victims) {
        ASSERT_TRUE(held.contains(n)) << n;
        ASSERT_FALSE(pinned.contains(n)) << n;
        if (of_limited > quota) {
          // Unless all it has is pinned, it pays first.
          const bool could = std::ranges::any_of(
              held, [&](const auto& e) { return e.second == 1 && !pinned.contains(e.first); });
          ASSERT_TRUE(held[n] == 1 || !could) << n;
        }
        of_limited -= held[n] == 1 ? 1 : 0;
        held.erase(n);
      }
      ASSERT_EQ(policy->held_blocks(), held.size());
      ASSERT_EQ(policy->held_bytes(), held.size());
      ASSERT_LE(policy->ghosts(), 50U);
      for (const auto& [n, of] : held) ASSERT_TRUE(policy->Holds(TestKey(n)));
    }
  }
}

TEST_P(EvictionTest, CountsBytesAndStopsAtPinnedOnes) {
  const auto policy = TestPolicy(GetParam(), 100);
  for (std::uint64_t n = 0; n < 4; ++n) {
    policy->Put({.key = TestKey(n), .bytes = 30, .tenant = 7}, TestTime(1));
  }
  EXPECT_EQ(policy->held_bytes(), 120U);
  EXPECT_EQ(policy->tenant_bytes(7), 120U);
  EXPECT_EQ(TestEvict(*policy, 31, TestTime(2)).size(), 2U);
  EXPECT_EQ(policy->held_bytes(), 60U);
  for (std::uint64_t n = 0; n < 4; ++n) policy->Pin(TestKey(n));
  std::vector<BlockKey> victims;
  EXPECT_EQ(policy->Evict(1, TestTime(3), victims), 0U);
  EXPECT_TRUE(victims.empty());
  for (std::uint64_t n = 0; n < 4; ++n) policy->Unpin(TestKey(n), TestTime(4));
  EXPECT_EQ(policy->Evict(1000, TestTime(4), victims), 60U);
  EXPECT_EQ(policy->tenant_bytes(7), 0U);
}

TEST_P(EvictionTest, NothingOfUnknownBlocks) {
  const auto policy = TestPolicy(GetParam(), 10);
  EXPECT_FALSE(policy->Use(TestKey(1), TestTime(0)));
  EXPECT_FALSE(policy->Pin(TestKey(1)));
  EXPECT_FALSE(policy->Unpin(TestKey(1), TestTime(0)));
  policy->Remove(TestKey(1), TestTime(0));
  EXPECT_TRUE(TestEvict(*policy, 5, TestTime(0)).empty());
}

INSTANTIATE_TEST_SUITE_P(All, EvictionTest,
                         testing::ValuesIn(EvictionPolicyNames().begin(),
                                           EvictionPolicyNames().end()),
                         [](const auto& test) {
                           std::string name(test.param);
                           std::erase(name, '-');
                           return name;
                         });

// Every lease and hold is a pin: those that end before room is made change no victim.
TEST(EvictionPolicyTest, APinIsNoUseToS3Fifo) {
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    const RunningSeed running(seed);
    Traffic traffic(seed);
    const std::uint64_t capacity = 20 + traffic.random() % 60;
    const auto policy = TestPolicy("s3-fifo", capacity, 50);
    const auto twin = TestPolicy("s3-fifo", capacity, 50);
    for (int step = 0; step < 300; ++step) {
      const MonoTime now = TestTime(step);
      const Numbers chain = traffic.Chain(0);
      for (EvictionPolicy* each : {policy.get(), twin.get()}) TestRequest(*each, chain, now);
      for (const std::uint64_t n : chain) {
        if (traffic.random() % 2 == 0) policy->Pin(TestKey(n));
      }
      for (const std::uint64_t n : chain) policy->Unpin(TestKey(n), now);
      const std::uint64_t over =
          policy->held_bytes() > capacity ? policy->held_bytes() - capacity : 0;
      ASSERT_EQ(TestEvict(*policy, over, now), TestEvict(*twin, over, now));
    }
  }
}

// One whose turn came while it was pinned is the next victim, and no block of the main queue.
TEST(EvictionPolicyTest, S3FifoUnpinsToWhereItWas) {
  const auto policy = TestPolicy("s3-fifo", 10);
  for (std::uint64_t n = 0; n < 10; ++n) policy->Put({.key = TestKey(n)}, TestTime(1));
  policy->Pin(TestKey(0));
  EXPECT_EQ(TestEvict(*policy, 2, TestTime(2)), Numbers({1, 2}));
  policy->Unpin(TestKey(0), TestTime(3));
  EXPECT_EQ(TestEvict(*policy, 3, TestTime(4)), Numbers({0, 3, 4}));
}

TEST(EvictionPolicyTest, NamesWhatIsWrong) {
  const auto unknown = MakeEvictionPolicy("mru", {.capacity_bytes = 1});
  EXPECT_EQ(unknown.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(unknown.status().message().find("mru"), absl::string_view::npos);
  EXPECT_NE(unknown.status().message().find("s3-fifo"), absl::string_view::npos);
  EXPECT_FALSE(MakeEvictionPolicy("lru", {}).ok());
}

}  // namespace
}  // namespace penstock::kvstore
