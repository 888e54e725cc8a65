// SPDX-License-Identifier: Apache-2.0
#include "kvstore/node/prefetcher.h"

#include <gtest/gtest.h>

#include "kvstore/client/store_testing.h"

namespace penstock::kvstore {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

class PrefetcherTest : public testing::Test {
 protected:
  // A node whose copies of a chain are on disk alone.
  void Start(std::int32_t blocks) {
    node_ = std::make_unique<TestNode>(
        loop_, 1, TestNode::Options{.disk_bytes = 64 * 32 * 4096, .disk_link = disk_link_});
    worker_ = std::make_unique<TestWorker>(loop_, TestWorker::Options());
    worker_->SetNode("store", node_.get());
    worker_->keeper().SetStore(TestWorker::AddressOf("store"));
    chains_ = TestChains(1, blocks);
    worker_->Compute(chains_);
    loop_.Advance(seconds(1));
    node_->tiers->FlushHost();
    loop_.Advance(seconds(1));
    ASSERT_EQ(node_->host->stats().copies, 0u);
    for (const Chain& chain : chains_) keys_.push_back(TestCopyKey(chain));
    prefetcher_ = std::make_unique<Prefetcher>(loop_, *node_->tiers, options_);
  }
  void TearDown() override {
    prefetcher_.reset();
    worker_.reset();
    loop_.Advance(seconds(60));
    node_.reset();
  }

  VirtualLoop loop_;
  Prefetcher::Options options_;
  transfer::LinkQueue::Options disk_link_;
  std::unique_ptr<TestNode> node_;
  std::unique_ptr<TestWorker> worker_;
  std::unique_ptr<Prefetcher> prefetcher_;
  std::vector<Chain> chains_;
  std::vector<BlockKey> keys_;
};

TEST_F(PrefetcherTest, WhatIsOnDiskIsInMemoryWhenItIsAskedFor) {
  Start(20);
  prefetcher_->Want(keys_, loop_.Now() + seconds(1));
  EXPECT_EQ(prefetcher_->reading(), options_.reads_max);
  loop_.Advance(seconds(1));
  EXPECT_EQ(prefetcher_->stats().brought, 20u);
  EXPECT_EQ(prefetcher_->waiting() + prefetcher_->reading(), 0u);
  EXPECT_EQ(node_->host->stats().copies, 20u);
  EXPECT_EQ(node_->host->stats().leases, 0u);
  const auto fetched = worker_->Fetch(chains_, "store");
  loop_.Advance(seconds(11));
  worker_->Check(*fetched, chains_);
  EXPECT_EQ(fetched->outcome->end_block, 20);
  EXPECT_EQ(fetched->outcome->spans[0].tier, Tier::kHost);
}

TEST_F(PrefetcherTest, WhatIsInMemoryOrNowhereCostsNothing) {
  Start(4);
  prefetcher_->Want(keys_, loop_.Now() + seconds(1));
  loop_.Advance(seconds(1));
  const std::uint64_t hits = node_->tiers->stats(Tier::kHost).hits;
  std::vector<BlockKey> others = keys_;
  for (const Chain& chain : TestChains(2, 4)) others.push_back(TestCopyKey(chain));
  prefetcher_->Want(others, loop_.Now() + seconds(1));
  EXPECT_EQ(prefetcher_->waiting() + prefetcher_->reading(), 0u);
  EXPECT_EQ(node_->tiers->stats(Tier::kHost).hits, hits);
  EXPECT_EQ(prefetcher_->stats().brought, 4u);
}

TEST_F(PrefetcherTest, GetsOfOthersGoFirst) {
  disk_link_.moves_max = 2;  // One read at a time.
  disk_link_.oldest_every = 1000;
  Start(12);
  prefetcher_->Want(std::span(keys_).first(6), loop_.Now() + seconds(1));
  EXPECT_EQ(prefetcher_->reading(), 6u);
  // Asked for later, 3 of them of what is to be prefetched.
  int got = 0;
  std::uint64_t brought_then = 0;
  for (std::size_t i = 3; i < 9; ++i) {
    node_->tiers->Get(keys_[i], loop_.Now() + seconds(1), [&](const absl::StatusOr<TierSet::Got>&) {
      ++got;
      brought_then = prefetcher_->stats().brought;
    });
  }
  EXPECT_EQ(node_->turns.queue("disk")->waiting(transfer::MoveClass::kFetch), 6u);
  EXPECT_EQ(node_->turns.queue("disk")->waiting(transfer::MoveClass::kPrefetch), 2u);
  loop_.Advance(seconds(1));
  EXPECT_EQ(got, 6);
  EXPECT_EQ(brought_then, 4u) << "the one that was read, and those that were asked for, too";
  EXPECT_EQ(prefetcher_->stats().brought, 6u);
}

TEST_F(PrefetcherTest, WhatIsTooLateOrTooMuchIsPassedOver) {
  options_.queue_max = 8;
  options_.reads_max = 2;
  Start(16);
  prefetcher_->Want(keys_, loop_.Now());
  EXPECT_EQ(prefetcher_->stats().passed_over, 16u);
  EXPECT_EQ(prefetcher_->reading(), 0u);
  prefetcher_->Want(std::span(keys_).first(4), loop_.Now() + seconds(1));
  loop_.Advance(seconds(1));
  EXPECT_EQ(prefetcher_->stats().brought, 4u);
}

TEST_F(PrefetcherTest, MayGoWhileItReads) {
  Start(8);
  prefetcher_->Want(keys_, loop_.Now() + seconds(1));
  ASSERT_GT(prefetcher_->reading(), 0u);
  prefetcher_.reset();
  loop_.Advance(seconds(1));
  EXPECT_GT(node_->host->stats().copies, 0u) << "what was begun ends";
}

}  // namespace
}  // namespace penstock::kvstore
