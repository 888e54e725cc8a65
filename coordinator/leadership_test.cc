// SPDX-License-Identifier: Apache-2.0
#include "coordinator/leadership.h"

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <set>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/seed_testing.h"
#include "base/virtual_loop.h"
#include "coordinator/fake_etcd.h"

namespace penstock::coordinator {
namespace {

using namespace std::chrono_literals;

// One coordinator: a loop of its own, so that it can stand still while others go on.
class Node {
 public:
  Node(FakeStore& store, MonoTime now, int number)
      : loop_(now), etcd(loop_, store), address(absl::StrCat("host-", number, ":1")) {
    leadership = std::make_unique<Leadership>(
        loop_, etcd, Leadership::Options{.key = "/p/leader", .name = "n", .address = address},
        Leadership::Events{.on_won = [this](std::int64_t revision) { won.push_back(revision); },
                           .on_lost = [this] { ++lost; },
                           .followed = [this] { return followed; },
                           .on_store = [this](const absl::Status& why) { store_ok = why.ok(); }});
  }
  void AdvanceTo(MonoTime now) { loop_.AdvanceTo(now); }
  VirtualLoop& loop() { return loop_; }

 private:
  VirtualLoop loop_;

 public:
  FakeEtcd etcd;
  const std::string address;
  bool followed = true;
  bool store_ok = true;
  std::vector<std::int64_t> won;
  int lost = 0;
  bool stopped = false;
  std::unique_ptr<Leadership> leadership;
};

class LeadershipTest : public ::testing::Test {
 protected:
  Node& Add() {
    nodes_.push_back(std::make_unique<Node>(store_, now_, static_cast<int>(nodes_.size())));
    return *nodes_.back();
  }
  void Advance(Duration by) {
    for (const MonoTime end = now_ + by; now_ < end;) {
      now_ += 10ms;
      store_.AdvanceTo(now_);
      for (const auto& node : nodes_) {
        if (!node->stopped) node->AdvanceTo(now_);
      }
    }
  }

  MonoTime now_ = MonoTime(1h);
  FakeStore store_;
  std::vector<std::unique_ptr<Node>> nodes_;
};

TEST_F(LeadershipTest, OneLeadsAndAnotherFollowsIt) {
  Node& a = Add();
  Advance(1s);
  Node& b = Add();
  Advance(1s);
  EXPECT_TRUE(a.leadership->leading());
  EXPECT_TRUE(a.leadership->confirmed());
  EXPECT_EQ(a.leadership->leader(), "");
  EXPECT_FALSE(b.leadership->leading());
  EXPECT_EQ(b.leadership->leader(), a.address);
  Advance(60s);
  EXPECT_EQ(a.won.size(), 1u);
  EXPECT_EQ(b.won.size(), 0u);
  a.leadership.reset();  // It is gone without a word.
  Advance(3s + 600ms);
  EXPECT_TRUE(b.leadership->leading());
  EXPECT_GT(b.won[0], a.won[0]);
}

TEST_F(LeadershipTest, WhoResignsIsFollowedAtOnce) {
  Node& a = Add();
  Advance(1s);
  Node& b = Add();
  bool done = false;
  a.leadership->Resign([&] { done = true; });
  EXPECT_FALSE(a.leadership->leading());
  Advance(600ms);
  EXPECT_TRUE(done);
  EXPECT_TRUE(b.leadership->leading());
  Advance(10s);
  EXPECT_FALSE(a.leadership->leading());
  EXPECT_EQ(a.lost, 0) << "no events";
}

TEST_F(LeadershipTest, AnOutageOfTheStoreStopsNobody) {
  Node& a = Add();
  Advance(1s);
  Node& b = Add();
  Advance(1s);
  for (const auto& node : nodes_) node->etcd.away = true;
  Advance(60s);
  EXPECT_TRUE(a.leadership->leading());
  EXPECT_FALSE(a.leadership->confirmed());
  EXPECT_FALSE(a.store_ok);
  EXPECT_GT(a.leadership->errors(), 10u);
  for (const auto& node : nodes_) node->etcd.away = false;
  Advance(2s);
  // Its lease has ended meanwhile (a store that was down would have kept it): whoever leads now, it
  // is one, in a new term.
  EXPECT_EQ(a.leadership->confirmed() + b.leadership->confirmed(), 1);
  EXPECT_EQ(a.leadership->leading() + b.leadership->leading(), 1);
  EXPECT_EQ(a.won.size() + b.won.size(), 2u);
  EXPECT_TRUE(a.store_ok);
}

TEST_F(LeadershipTest, ALeaderWithoutStoreAndWorkersGivesUp) {
  Node& a = Add();
  Advance(1s);
  a.etcd.away = true;
  a.followed = false;
  Advance(10s);
  EXPECT_TRUE(a.leadership->leading()) << "they may come back";
  Advance(6s);
  EXPECT_FALSE(a.leadership->leading());
  EXPECT_EQ(a.lost, 1);
}

TEST_F(LeadershipTest, AStoppedLeaderLearnsOfTheNext) {
  Node& a = Add();
  Advance(1s);
  Node& b = Add();
  a.stopped = true;
  Advance(5s);
  EXPECT_TRUE(b.leadership->leading());
  a.stopped = false;
  Advance(1s);
  EXPECT_FALSE(a.leadership->leading());
  EXPECT_EQ(a.lost, 1);
  EXPECT_EQ(a.leadership->leader(), b.address);
}

TEST_F(LeadershipTest, AStoreThatLostEverythingBeginsANewTerm) {
  Node& a = Add();
  Advance(1s);
  store_.LoseEverything();
  Advance(2s);
  EXPECT_TRUE(a.leadership->confirmed());
  EXPECT_EQ(a.won.size(), 2u);
  EXPECT_EQ(a.lost, 0);
}

TEST_F(LeadershipTest, ALostAnswerIsNoLostCampaign) {
  Node& a = Add();
  Advance(1s);
  store_.LoseEverything();
  a.etcd.answers_lost = true;
  Advance(4s);  // By now the key may be written, and nobody was told.
  a.etcd.answers_lost = false;
  Advance(5s);
  EXPECT_TRUE(a.leadership->confirmed());
  EXPECT_EQ(a.lost, 0);
}

TEST_F(LeadershipTest, AValueThatMakesNoSenseIsNoAddress) {
  for (const std::string value : {"", "{", "[1]", "{\"address\":7}", "{\"address\":\"a b\"}"}) {
    store_.Put("/p/leader", value);
    Node& a = Add();
    Advance(1s);
    EXPECT_FALSE(a.leadership->leading());
    EXPECT_EQ(a.leadership->leader(), "");
  }
}

// Whatever the lines do: no two leaderships are confirmed at once, terms grow, and once all is well
// again there is one leader that everybody names.
TEST_F(LeadershipTest, AtMostOneIsConfirmed) {
  for (int seed = 0; seed < 200; ++seed) {
    const RunningSeed running(seed);
    nodes_.clear();
    store_ = FakeStore();
    std::mt19937_64 random(static_cast<std::uint64_t>(seed));
    const auto roll = [&](std::uint64_t sides) { return random() % sides == 0; };
    for (int i = 0; i < 3; ++i) Add();
    std::set<std::int64_t> terms;
    std::size_t wins = 0;
    for (int step = 0; step < 300; ++step) {
      Node& node = *nodes_[random() % nodes_.size()];
      if (roll(8)) node.etcd.away = !node.etcd.away;
      if (roll(8)) node.etcd.answers_lost = !node.etcd.answers_lost;
      if (roll(8)) node.stopped = !node.stopped;
      if (roll(8)) node.followed = !node.followed;
      if (roll(40)) store_.Restart();
      Advance(std::chrono::milliseconds(10 + random() % 400));
      int confirmed = 0;
      for (const auto& one : nodes_) {
        // One that stands still believes what it did then, and does nothing; it looks at its clock
        // when it goes on.
        if (!one->stopped) confirmed += one->leadership->confirmed() ? 1 : 0;
        for (; one->won.size() > 0; one->won.pop_back()) {
          ++wins;
          EXPECT_TRUE(terms.insert(one->won.back()).second);
        }
      }
      ASSERT_LE(confirmed, 1);
    }
    for (const auto& node : nodes_) {
      node->etcd.away = node->etcd.answers_lost = node->stopped = false;
    }
    Advance(15s);
    const Node* leader = nullptr;
    for (const auto& node : nodes_) {
      if (!node->leadership->leading()) continue;
      EXPECT_EQ(leader, nullptr);
      leader = node.get();
    }
    ASSERT_NE(leader, nullptr);
    EXPECT_TRUE(leader->leadership->confirmed());
    for (const auto& node : nodes_) {
      EXPECT_EQ(node->leadership->leader(), node.get() == leader ? "" : leader->address);
    }
    EXPECT_GT(wins, 0u);
  }
}

}  // namespace
}  // namespace penstock::coordinator
