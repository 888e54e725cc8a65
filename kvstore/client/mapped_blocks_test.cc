// SPDX-License-Identifier: Apache-2.0
// Copies that are read where they are: there as long as they are held, and never changed unnoticed.
#include "kvstore/client/mapped_blocks.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "kvstore/client/store_fixture.h"

namespace penstock::kvstore {
namespace {

class MappedBlocksTest : public StoreTest {};

TEST_F(MappedBlocksTest, AMappedHitIsNotCopiedAndStaysWhileItIsHeld) {
  Start({}, {.groups = 2, .map = true});
  const std::vector<Chain> chains = TestChains(1, 9);
  worker_->Compute(chains);
  Settle();
  const auto fetched = worker_->Fetch(chains, kNode);
  loop_.Advance(seconds(60));  // Many leases long.
  node_->host->Expire(loop_.Now());
  ASSERT_TRUE(fetched->outcome.has_value());
  EXPECT_EQ(fetched->outcome->end_block, 9);
  std::vector<Fetcher::Mapped>& mapped = fetched->outcome->mapped;
  ASSERT_EQ(mapped.size(), 11u);  // Of the window group, two.
  for (const Fetcher::Span& span : fetched->outcome->spans) {
    EXPECT_EQ(span.blocks_mapped, span.blocks);
    EXPECT_EQ(span.bytes_mapped, span.bytes);
  }
  for (const auto& group : fetched->slabs) {
    for (const Bytes& slab : group) EXPECT_EQ(slab, Bytes(slab.size()));
  }
  EXPECT_EQ(node_->server->finds(), 0u);
  EXPECT_EQ(node_->server->kept(), 11u);
  EXPECT_EQ(node_->host->stats().leases, 11u);
  // Found no more, but there: for as long as they are held.
  node_->tiers->FlushHost();
  worker_->Compute(TestChains(2, 9));
  loop_.Advance(seconds(60));
  worker_->Check(*fetched, chains);
  for (const Fetcher::Mapped& block : mapped) EXPECT_FALSE(block.at->Changed());
  mapped.erase(mapped.begin() + 3, mapped.begin() + 7);
  loop_.Advance(milliseconds(1));
  EXPECT_EQ(node_->host->stats().leases, 7u);
  EXPECT_EQ(worker_->fetcher().mapped().stats().copies, 7u);
  mapped.clear();
  loop_.Advance(milliseconds(1));
  EXPECT_EQ(node_->host->stats().leases, 0u);
}

// From the back, as for who computes from the front: what is not wanted any more is given back.
TEST_F(MappedBlocksTest, GoesBackwardsUntilItMeetsWhoComesFromTheFront) {
  Start(
      {.server = {.kept_share = 1}},
      {.faults = transfer::FaultPlan{.delay_read = 1, .delay_max = milliseconds(1)}, .map = true});
  const std::vector<Chain> chains = TestChains(1, 60);
  worker_->Compute(chains);
  Settle();
  const auto fetched = worker_->Fetch(chains, kNode, seconds(10), {}, true);
  while (fetched->there.size() < 10) loop_.Advance(milliseconds(1));
  ASSERT_FALSE(fetched->outcome.has_value());
  worker_->fetcher().Want(fetched->id, 40);
  loop_.Advance(seconds(1));
  ASSERT_TRUE(fetched->outcome.has_value());
  EXPECT_EQ(fetched->outcome->status, absl::OkStatus());
  const std::size_t there = fetched->there.size();
  EXPECT_GE(there, 20u);
  EXPECT_LT(there, 60u);
  EXPECT_EQ(fetched->mapped.size(), there);
  EXPECT_GE(fetched->outcome->mapped.size(), 20u);
  for (const Fetcher::Mapped& block : fetched->outcome->mapped) {
    EXPECT_EQ(fetched->mapped.at({block.group, block.block}), block.at);
  }
  loop_.Advance(seconds(60));  // Many leases long.
  node_->host->Expire(loop_.Now());
  worker_->Check(*fetched, chains);
  for (const Fetcher::Mapped& block : fetched->outcome->mapped) EXPECT_FALSE(block.at->Changed());
  fetched->mapped.clear();
  fetched->outcome->mapped.clear();
  loop_.Advance(milliseconds(1));
  EXPECT_EQ(node_->host->stats().leases, 0u);
  EXPECT_EQ(worker_->fetcher().mapped().stats().copies, 0u);
  EXPECT_EQ(node_->server->kept(), 0u);
}

// What came behind a read that failed is good, but its node was not asked to keep it.
TEST_F(MappedBlocksTest, GoingBackwardsAllIsHeldThatTheNodeKeeps) {
  Start(
      {.server = {.kept_share = 1}},
      {.faults = transfer::FaultPlan{.delay_read = 1, .delay_max = milliseconds(1)}, .map = true});
  const std::vector<Chain> chains = TestChains(1, 9);
  worker_->Compute(chains);
  Settle();
  const BlockKey key = {CopySpace(kTestSpace, 0, "exact"), chains[6]};
  node_->host->Bytes(*node_->host->PlaceOf(key), 8192)[5000] ^= std::byte{1};
  const auto fetched = worker_->Fetch(chains, kNode, seconds(10), {}, true);
  loop_.Advance(seconds(1));
  ASSERT_TRUE(fetched->outcome.has_value());
  EXPECT_EQ(fetched->outcome->status.code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(fetched->outcome->end_block, 0);
  std::vector<std::int32_t> held;
  for (const Fetcher::Mapped& block : fetched->outcome->mapped) held.push_back(block.block);
  EXPECT_EQ(held, (std::vector<std::int32_t>{8, 7}));
  EXPECT_GT(fetched->mapped.size(), held.size());
  EXPECT_EQ(node_->server->kept(), held.size());
  worker_->Check(*fetched, chains);
  node_->tiers->FlushHost();
  loop_.Advance(seconds(60));  // Many leases long.
  node_->host->Expire(loop_.Now());
  for (const auto& [name, block] : fetched->mapped) {
    EXPECT_EQ(block->Changed(), name.second < 6) << "block " << name.second;
  }
}

TEST_F(MappedBlocksTest, WhatLiesOtherwiseOrBeyondTheShareIsCopied) {
  const std::vector<Chain> chains = TestChains(1, 100);
  struct Case {
    const char* name;
    std::int32_t page_tokens;
    CodecId codec;
    double share;
    std::size_t mapped;
  };
  // A block's frame is two pages of 256.
  for (const Case& c :
       {Case{"smaller pages", 4, CodecId::kRaw, 1, 0}, Case{"encoded", 8, CodecId::kPlanes, 1, 0},
        Case{"none wanted", 8, CodecId::kRaw, 0, 0}, Case{"a quarter", 8, CodecId::kRaw, 0.25, 32},
        Case{"all", 8, CodecId::kRaw, 1, 100}}) {
    SCOPED_TRACE(c.name);
    Start({.server = {.kept_share = c.share}},
          {.page_tokens = c.page_tokens, .forms = {{c.codec}}, .map = true});
    worker_->Compute(chains);
    Settle();
    EXPECT_EQ(Fetch(chains), 100);
    EXPECT_EQ(last_.mapped.size(), c.mapped);
    EXPECT_EQ(node_->host->stats().leases, c.mapped);
    TearDown();
  }
}

TEST_F(MappedBlocksTest, IsRenewedInTimeHoweverShortLeasesAre) {
  for (const Duration lease : {Duration(milliseconds(3)), Duration(seconds(60))}) {
    Start({.lease = lease}, {.map = true});
    const std::vector<Chain> chains = TestChains(1, 5);
    worker_->Compute(chains);
    Settle();
    const auto fetched = worker_->Fetch(chains, kNode);
    loop_.Advance(10 * lease + milliseconds(10));
    node_->host->Expire(loop_.Now());
    ASSERT_EQ(fetched->outcome->mapped.size(), 5u);
    for (const Fetcher::Mapped& block : fetched->outcome->mapped) {
      EXPECT_FALSE(block.at->Changed());
    }
    EXPECT_EQ(node_->host->stats().leases, 5u);
    EXPECT_EQ(worker_->fetcher().mapped().stats().lost, 0u);
    fetched->outcome->mapped.clear();
    TearDown();
  }
}

// A worker that was stopped for longer than its leases last: their room is used again.
TEST_F(MappedBlocksTest, WhatIsNotRenewedChangesAndIsToldToBeLost) {
  Start({.host_pages = 40, .lease = seconds(5), .server = {.kept_share = 1}},
        {.map = true, .mapped = {.renew_at = 4}});
  const std::vector<Chain> chains = TestChains(1, 9);
  worker_->Compute(chains);
  Settle();
  const auto fetched = worker_->Fetch(chains, kNode);
  loop_.Advance(seconds(4));
  ASSERT_EQ(fetched->outcome->mapped.size(), 9u);
  const auto changed = [&] {
    return std::ranges::count_if(fetched->outcome->mapped,
                                 [](const Fetcher::Mapped& m) { return m.at->Changed(); });
  };
  worker_->Compute(TestChains(2, 16));
  loop_.Advance(milliseconds(500));
  EXPECT_EQ(changed(), 0);  // Its room is not to be had yet.
  loop_.Advance(seconds(5));
  node_->host->Expire(loop_.Now());
  worker_->Compute(TestChains(3, 16));
  loop_.Advance(seconds(1));
  EXPECT_GT(changed(), 0);
  worker_->Check(*fetched, chains);
  loop_.Advance(seconds(30));
  EXPECT_EQ(changed(), 9);
  EXPECT_EQ(worker_->fetcher().mapped().stats().lost, 9u);
  fetched->outcome->mapped.clear();
}

TEST_F(MappedBlocksTest, WithTheNodeGoesWhatIsMappedThere) {
  Start({}, {.map = true});
  const std::vector<Chain> chains = TestChains(1, 5);
  worker_->Compute(chains);
  Settle();
  const auto fetched = worker_->Fetch(chains, kNode);
  loop_.Advance(seconds(1));
  ASSERT_EQ(fetched->outcome->mapped.size(), 5u);
  const std::shared_ptr<TestMemory> memory = node_->memory;
  worker_->SetNode(kNode, nullptr);
  node_.reset();
  for (const Fetcher::Mapped& block : fetched->outcome->mapped) EXPECT_TRUE(block.at->Changed());
  worker_->Check(*fetched, chains);
  // They may outlive the worker's side, too.
  worker_.reset();
  fetched->outcome->mapped.clear();
}

}  // namespace
}  // namespace penstock::kvstore
