// SPDX-License-Identifier: Apache-2.0
#include "kvstore/node/replicator.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/log.h"
#include "kvstore/client/store_testing.h"
#include "transfer/inproc_link.h"

namespace penstock::kvstore {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

const std::vector<std::byte> kSecret(32, std::byte{5});

// Node "a" has a chain; "b" gets copies from it.
class ReplicatorTest : public testing::Test {
 protected:
  ReplicatorTest() { SetLogLevel(LogLevel::kOff); }
  ~ReplicatorTest() override { SetLogLevel(LogLevel::kWarning); }

  void Start(std::int32_t blocks, std::vector<std::byte> secret_of_b = kSecret,
             Replicator::Options options = {}) {
    a_ = std::make_unique<TestNode>(loop_, 1, TestNode::Options{.server = {.secret = kSecret}});
    b_ = std::make_unique<TestNode>(
        loop_, 2, TestNode::Options{.disk_bytes = kDiskBytes, .server = {.secret = secret_of_b}});
    worker_ = std::make_unique<TestWorker>(loop_, TestWorker::Options{.secret = kSecret});
    worker_->SetNode("a", a_.get());
    worker_->SetNode("b", b_.get());
    worker_->keeper().SetStore(TestWorker::AddressOf("a"));
    chains_ = TestChains(1, blocks);
    worker_->Compute(chains_);
    loop_.Advance(seconds(1));
    ASSERT_EQ(a_->host->stats().copies, chains_.size());
    links_ = std::make_unique<StoreLinks>(
        [this](const transfer::Peer& peer, const std::string&, StoreLinks::Connected done) {
          Connect(peer, std::move(done));
        });
    options.secret = std::move(secret_of_b);
    replicator_ =
        std::make_unique<Replicator>(loop_, *b_->tiers, *links_, b_->turns, std::move(options));
  }
  void Connect(const transfer::Peer& peer, const StoreLinks::Connected& done) {
    if (a_ == nullptr) {
      loop_.Post([done] { done(absl::UnavailableError("nobody there")); });
      return;
    }
    auto [mine, theirs] = transfer::MakeInprocLinks(loop_, b_->segments, a_->segments);
    a_->server->AddPeer(
        std::make_unique<transfer::Channel>(loop_, transfer::Peer{"b", 1}, std::move(theirs)));
    auto channel = std::make_shared<std::unique_ptr<transfer::Channel>>(
        std::make_unique<transfer::Channel>(loop_, peer, std::move(mine)));
    loop_.Post([done, channel] { done(std::move(*channel)); });
  }
  Replicator::Order Of(std::size_t first, std::size_t end, Duration within = seconds(1)) const {
    Replicator::Order order{.from = TestWorker::AddressOf("a"),
                            .space = TestCopyKey(chains_[0]).space,
                            .chains = {chains_.begin() + static_cast<std::ptrdiff_t>(first),
                                       chains_.begin() + static_cast<std::ptrdiff_t>(end)},
                            .tenant = 3,
                            .deadline = loop_.Now() + within};
    if (first > 0) order.parent = chains_[first - 1];
    return order;
  }
  void TearDown() override {
    replicator_.reset();
    links_.reset();
    worker_.reset();
    loop_.Advance(seconds(60));
    for (TestNode* node : {a_.get(), b_.get()}) {
      if (node == nullptr) continue;
      EXPECT_EQ(node->server->finds(), 0u);
      EXPECT_EQ(node->host->stats().leases, 0u);
      EXPECT_EQ(node->host->stats().leaving, 0u);
      const transfer::LinkQueue* const queue = node->turns.queue("local");
      EXPECT_TRUE(queue == nullptr || queue->under_way().moves == 0);
    }
    b_.reset();
    a_.reset();
  }

  static constexpr std::uint64_t kDiskBytes = 64 * 32 * 4096;
  VirtualLoop loop_;
  std::unique_ptr<TestNode> a_;
  std::unique_ptr<TestNode> b_;
  std::unique_ptr<TestWorker> worker_;
  std::unique_ptr<StoreLinks> links_;
  std::unique_ptr<Replicator> replicator_;
  std::vector<Chain> chains_;
};

TEST_F(ReplicatorTest, FramesComeAsTheyAreAndAreFoundLikeAnyOther) {
  Start(80);  // More than a node tells of at a time.
  replicator_->Copy(Of(0, 80));
  loop_.Advance(seconds(1));
  EXPECT_TRUE(replicator_->idle());
  EXPECT_EQ(replicator_->stats().copied, 80u);
  EXPECT_EQ(replicator_->stats().passed_over, 0u);
  ASSERT_EQ(b_->host->stats().copies, 80u);
  for (std::size_t i = 0; i < chains_.size(); ++i) {
    const BlockKey key = TestCopyKey(chains_[i]);
    const HostTier::Copy& theirs = *a_->host->Peek(key);
    const HostTier::Copy& ours = *b_->host->Peek(key);
    EXPECT_EQ(ours.bytes, theirs.bytes);
    EXPECT_EQ(ours.codec, theirs.codec);
    EXPECT_EQ(ours.tokens_before, theirs.tokens_before);
    EXPECT_EQ(ours.parent, theirs.parent);
    EXPECT_EQ(ours.tenant, 3u);
    const auto bytes = [&](TestNode& node) {
      const auto span = node.host->Bytes(*node.host->PlaceOf(key), ours.bytes);
      return Bytes(span.begin(), span.end());
    };
    EXPECT_TRUE(bytes(*a_) == bytes(*b_));
    EXPECT_EQ(b_->tiers->Describe(key)->disk, true) << "it goes on to disk as all do";
  }
  EXPECT_EQ(b_->events.front().kind, CopyEvent::Kind::kStored);
  const auto fetched = worker_->Fetch(chains_, "b");
  loop_.Advance(seconds(11));
  worker_->Check(*fetched, chains_);
  EXPECT_EQ(fetched->outcome->end_block, 80);
}

TEST_F(ReplicatorTest, WhatIsHereIsNotReadAgainAndAHoleThereEndsIt) {
  Start(12);
  replicator_->Copy(Of(4, 6));
  loop_.Advance(seconds(1));
  EXPECT_EQ(replicator_->stats().copied, 2u);
  a_->tiers->Delete(TestCopyKey(chains_[9]), [](const absl::Status&) {});
  replicator_->Copy(Of(0, 12));
  loop_.Advance(seconds(1));
  EXPECT_TRUE(replicator_->idle());
  EXPECT_EQ(replicator_->stats().copied, 9u) << "0..8";
  EXPECT_EQ(replicator_->stats().passed_over, 5u) << "2 were here, 3 did not come";
}

TEST_F(ReplicatorTest, FramesOfAnotherClusterAreRefused) {
  Start(4, std::vector<std::byte>(32, std::byte{6}));
  replicator_->Copy(Of(0, 4));
  loop_.Advance(seconds(2));
  EXPECT_TRUE(replicator_->idle());
  EXPECT_EQ(replicator_->stats().copied, 0u);
  EXPECT_EQ(replicator_->stats().refused, 1u);
  EXPECT_EQ(b_->host->stats().bytes, 0u);
}

TEST_F(ReplicatorTest, GivesWayAndEndsByItsDeadline) {
  Start(8);
  transfer::LinkTurns::Turn busy =
      b_->turns.Ask("local", transfer::MoveClass::kFetch, std::uint64_t{1} << 30,
                    loop_.Now() + seconds(9), nullptr);
  ASSERT_TRUE(busy.begun());
  replicator_->Copy(Of(0, 8, milliseconds(100)));
  loop_.Advance(milliseconds(50));
  EXPECT_EQ(b_->turns.queue("local")->waiting(transfer::MoveClass::kReplication), 8u);
  EXPECT_EQ(b_->host->stats().bytes, 0u) << "no room is taken before its turn";
  loop_.Advance(milliseconds(60));
  EXPECT_TRUE(replicator_->idle());
  EXPECT_EQ(replicator_->stats().passed_over, 8u);
  EXPECT_EQ(a_->host->stats().leases, 0u);
  busy.End();
  replicator_->Copy(Of(0, 8));
  loop_.Advance(seconds(1));
  EXPECT_EQ(replicator_->stats().copied, 8u);
}

TEST_F(ReplicatorTest, OrdersAreBounded) {
  Start(8, kSecret, {.orders_max = 2, .finds_max = 1});
  for (std::size_t i = 0; i < 5; ++i) replicator_->Copy(Of(i, i + 1));
  EXPECT_EQ(replicator_->stats().passed_over, 2u);
  loop_.Advance(seconds(1));
  EXPECT_EQ(replicator_->stats().copied, 3u);
}

// At every point of the way: the other node dies, or this one's part ends.
TEST_F(ReplicatorTest, WhoDiesAmidItLeavesNothing) {
  for (int steps = 0; steps < 60; ++steps) {
    for (const bool they : {true, false}) {
      SCOPED_TRACE(testing::Message() << steps << (they ? " they die" : " we end"));
      Start(8);
      replicator_->Copy(Of(0, 8));
      for (int i = 0; i < steps; ++i) loop_.RunUntilIdle(1);
      if (they) {
        worker_->SetNode("a", nullptr);
        a_.reset();
        loop_.Advance(seconds(2));
        EXPECT_TRUE(replicator_->idle());
        EXPECT_EQ(b_->host->stats().copies * 2 * HostTier::kPageBytes, b_->host->stats().bytes);
      }
      TearDown();
    }
  }
}

}  // namespace
}  // namespace penstock::kvstore
