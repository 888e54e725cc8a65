// SPDX-License-Identifier: Apache-2.0
// The tiers of a store node: what goes where, when, and what becomes of it under faults.
#include "kvstore/node/tier_set.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/log.h"
#include "kvstore/node/tier_set_testing.h"

namespace penstock::kvstore {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr std::uint64_t kDisk = std::uint64_t{64} * 32 * 4096;

TestNode::Options OnDisk(bool through = true, std::size_t host_pages = 256) {
  TestNode::Options options = {.host_pages = host_pages, .disk_bytes = kDisk};
  options.tiers.disk_through = through;
  options.tiers.free_share = 0;
  return options;
}

TEST_F(TierSetTest, WriteThroughIsOnDiskBeforeHostMemoryLetsGo) {
  Start(OnDisk());
  Put(0, 3);
  EXPECT_EQ(Where(0), "host");  // On its way.
  loop_.Advance(seconds(1));
  EXPECT_EQ(Where(0), "host+disk");
  EXPECT_EQ(tiers().FlushHost(), 3 * kTestFrameBytes);
  EXPECT_EQ(Where(0), "disk");  // At once: it need not be written again.
  EXPECT_EQ(node_->disk_tier->stats().puts, 3u);
  EXPECT_EQ(tiers().stats(Tier::kHost).evicted, 3u);
}

TEST_F(TierSetTest, WriteBackIsWrittenAsHostMemoryLetsGo) {
  Start(OnDisk(/*through=*/false));
  Put(0, 3);
  loop_.Advance(seconds(1));
  EXPECT_EQ(Where(0), "host");
  EXPECT_EQ(node_->disk_tier->stats().puts, 0u);
  tiers().FlushHost();
  EXPECT_EQ(tiers().leaving(), 3u);
  EXPECT_EQ(Where(0), "host");  // Until it is below.
  loop_.Advance(seconds(1));
  EXPECT_EQ(tiers().leaving(), 0u);
  EXPECT_EQ(Where(0), "disk");
  // And it is not written twice.
  ASSERT_TRUE(Get(0).ok());
  Flush();
  EXPECT_EQ(node_->disk_tier->stats().puts, 3u);
}

TEST_F(TierSetTest, SecondUseAdmitsWhatWasAskedForBefore) {
  TestNode::Options options = OnDisk();
  options.tiers.second_use = true;
  options.tiers.asked_max = 2;
  Start(options);
  EXPECT_FALSE(tiers().Wants(Key(0)));
  EXPECT_TRUE(tiers().Wants(Key(0)));
  tiers().Asked(std::vector<BlockKey>{Key(1)});  // A request's asking counts as well.
  EXPECT_TRUE(tiers().Wants(Key(1)));
  EXPECT_FALSE(tiers().Wants(Key(2)));  // Remembered in place of the oldest.
  EXPECT_FALSE(tiers().Wants(Key(0)));
  Put(1, 2);
  EXPECT_FALSE(tiers().Wants(Key(1)));  // It is there.
}

TEST_F(TierSetTest, GetsOfOneCopyAreOneRead) {
  Start(OnDisk());
  Put(0, 1);
  loop_.Advance(seconds(1));
  Flush();
  std::vector<std::shared_ptr<TestGet>> gets;
  for (int i = 0; i < 5; ++i) {
    gets.push_back(GetBlock(tiers(), Key(0), loop_.Now() + milliseconds(i == 2 ? 0 : 1000)));
  }
  EXPECT_EQ(tiers().promotions(), 1u);
  loop_.Advance(seconds(2));
  EXPECT_EQ(tiers().promotions(), 0u);
  EXPECT_EQ(node_->disk_tier->stats().gets, 1u);
  for (std::size_t i = 0; i < gets.size(); ++i) {
    ASSERT_TRUE(gets[i]->status.has_value());
    if (i == 2) {
      EXPECT_EQ(gets[i]->status->code(), absl::StatusCode::kDeadlineExceeded);  // It alone.
    } else {
      EXPECT_TRUE(gets[i]->status->ok()) << *gets[i]->status;
      EXPECT_EQ(gets[i]->from, Tier::kDisk);
    }
  }
  EXPECT_EQ(tiers().stats(Tier::kDisk).hits, 4u);
  EXPECT_EQ(tiers().stats(Tier::kDisk).bytes_hit, 4u * kTestFrameBytes);
  EXPECT_GT(tiers().stats(Tier::kDisk).bytes_per_s, 0);
}

TEST_F(TierSetTest, WhatComesTooLateIsForTheNextWhoAsks) {
  Start(OnDisk());
  Put(0, 1);
  loop_.Advance(seconds(1));
  Flush();
  node_->disk->faults().latency_max = seconds(3);
  const auto get = GetBlock(tiers(), Key(0), loop_.Now() + Duration(1));
  loop_.Advance(Duration(1));
  EXPECT_EQ(get->status->code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(get->status->ToString(), HasSubstr("the disk tier was too slow"));
  EXPECT_EQ(tiers().stats(Tier::kDisk).late, 1u);
  loop_.Advance(seconds(4));
  EXPECT_TRUE(Get(0).ok());
  EXPECT_EQ(from_, Tier::kHost);
}

TEST_F(TierSetTest, ADiskThatHangsHoldsNobody) {
  Start(OnDisk());
  Put(0, 1);
  loop_.Advance(seconds(1));
  Flush();
  node_->disk->faults().hang = 1;
  EXPECT_EQ(Get(0, seconds(1)).code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(tiers().promotions(), 1u);
  loop_.Advance(seconds(15));  // Its own deadline.
  EXPECT_EQ(tiers().promotions(), 0u);
  node_->disk->faults().hang = 0;
  EXPECT_TRUE(Get(0).ok());
  EXPECT_EQ(from_, Tier::kDisk);
}

TEST_F(TierSetTest, PromotionsAreBounded) {
  TestNode::Options options = OnDisk();
  options.tiers.promotions_max = 2;
  Start(options);
  Put(0, 3);
  loop_.Advance(seconds(1));
  Flush();
  const auto first = GetBlock(tiers(), Key(0), loop_.Now() + seconds(1));
  const auto second = GetBlock(tiers(), Key(1), loop_.Now() + seconds(1));
  const auto third = GetBlock(tiers(), Key(2), loop_.Now() + seconds(1));
  EXPECT_EQ(third->status,
            absl::ResourceExhaustedError("2 copies are being promoted, promotions_max is 2"));
  loop_.Advance(seconds(1));
  EXPECT_TRUE(first->status->ok() && second->status->ok());
  EXPECT_TRUE(Get(2).ok());
}

TEST_F(TierSetTest, AFullDiskIsAMissLater) {
  SetLogLevel(LogLevel::kOff);
  for (const bool through : {true, false}) {
    SCOPED_TRACE(through);
    Start(OnDisk(through));
    node_->disk->faults().bytes_max = 0;  // Of the machine's disk, whatever the tier may have.
    Put(0, 4);
    loop_.Advance(seconds(1));
    EXPECT_EQ(Where(0), "host");
    Flush();
    EXPECT_EQ(tiers().stats(Tier::kDisk).refused, 4u * (through ? 2u : 1u));
    EXPECT_EQ(tiers().copies(), 0u);
    EXPECT_EQ(Get(0).code(), absl::StatusCode::kNotFound);
    EXPECT_EQ(tiers().stats(Tier::kDisk).misses, 1u);
    node_->disk->faults().bytes_max = UINT64_MAX;
    Put(0, 1);
    loop_.Advance(seconds(1));
    Flush();
    EXPECT_TRUE(Get(0).ok());
  }
  SetLogLevel(LogLevel::kWarning);
}

TEST_F(TierSetTest, AFullDiskTierLetsGoOfItsOldest) {
  TestNode::Options options = OnDisk();
  options.disk_bytes = 5 * kSegment;
  Start(options);
  PutSlowly(0, 64);
  Flush();
  const std::size_t there = tiers().copies();
  EXPECT_GT(there, 0u);
  EXPECT_LT(there, 64u);
  EXPECT_GT(tiers().stats(Tier::kDisk).evicted, 0u);
  EXPECT_EQ(node_->disk_tier->stats().blocks, there);
  EXPECT_LE(node_->disk_tier->stats().bytes_live, node_->disk_tier->stats().bytes_live_max);
}

TEST_F(TierSetTest, WhatADiskCannotReadIsDropped) {
  SetLogLevel(LogLevel::kOff);
  Start(OnDisk());
  Put(0, 2);
  loop_.Advance(seconds(1));
  Flush();
  node_->disk->faults().error = 1;
  const absl::Status status = Get(0);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(Where(0), "");
  // Nothing of it is left, there or in host memory.
  EXPECT_EQ(node_->disk_tier->stats().blocks, 1u);
  EXPECT_EQ(node_->host->stats().bytes, 0u);
  Put(2, 3);
  loop_.Advance(seconds(20));
  EXPECT_EQ(Where(2), "host");
  node_->disk->faults().error = 0;
  EXPECT_EQ(Get(0).code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(Get(1).ok());
  Put(0, 1);
  loop_.Advance(seconds(1));
  Flush();
  EXPECT_TRUE(Get(0).ok());
  SetLogLevel(LogLevel::kWarning);
}

TEST_F(TierSetTest, AWriteThatIsLateLeavesNothingOnDisk) {
  SetLogLevel(LogLevel::kOff);
  Start(OnDisk());
  node_->disk->faults().latency_max = seconds(60);
  Put(0, 8);
  loop_.Advance(seconds(11));
  EXPECT_GT(tiers().stats(Tier::kDisk).refused, 0u);
  loop_.Advance(seconds(600));
  std::size_t on_disk = 0;
  for (std::int32_t i = 0; i < 8; ++i) on_disk += Where(i) == "host+disk" ? 1 : 0;
  EXPECT_EQ(node_->disk_tier->stats().blocks, on_disk);
  SetLogLevel(LogLevel::kWarning);
}

TEST_F(TierSetTest, DamageOnDiskIsDroppedAndTold) {
  Start(OnDisk());
  Put(0, 1);
  loop_.Advance(seconds(1));
  Flush();
  // Into the middle of the frame, which is behind two headers.
  node_->disk->Damage(node_->disk->images().begin()->first, 8 * (3 * 4096 + 100));
  EXPECT_EQ(Get(0).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(Where(0), "");
  EXPECT_EQ(tiers().stats(Tier::kDisk).damaged, 1u);
  EXPECT_EQ(node_->events.back().kind, CopyEvent::Kind::kRemoved);
  EXPECT_EQ(node_->events.back().name, NameOf(Key(0)));
  EXPECT_EQ(Get(0).code(), absl::StatusCode::kNotFound);
}

TEST_F(TierSetTest, PinsHoldInEveryTier) {
  TestNode::Options options = OnDisk(/*through=*/true, /*host_pages=*/8 * kTestFramePages);
  options.disk_bytes = 5 * kSegment;
  Start(options);
  EXPECT_FALSE(tiers().Pin(Key(0)));  // It is not there yet.
  Put(0, 2);
  ASSERT_TRUE(tiers().Pin(Key(0)));
  PutSlowly(2, 64);
  Flush();
  EXPECT_EQ(Where(0), "host+disk pinned");
  EXPECT_NE(Where(1).substr(0, 4), "host");
  EXPECT_EQ(tiers().pinned(), 1u);
  // In host memory from now on whatever tier it comes from: unpinned there, pinned on disk.
  const FakeDisk::Images images = node_->disk->images();
  ASSERT_TRUE(tiers().Unpin(Key(0)));
  EXPECT_FALSE(tiers().Unpin(Key(0)));
  Flush();
  ASSERT_EQ(Where(0), "disk");
  ASSERT_TRUE(tiers().Pin(Key(0)));
  ASSERT_TRUE(Get(0).ok());
  Flush();
  EXPECT_EQ(Where(0), "host+disk pinned");
  // Deleting ends it, as does a restart.
  tiers().Delete(Key(0), [](const absl::Status& status) { EXPECT_TRUE(status.ok()) << status; });
  loop_.Advance(seconds(1));
  EXPECT_EQ(Where(0), "");
  EXPECT_EQ(tiers().pinned(), 0u);
  Start(options, images);
  EXPECT_EQ(Where(0), "disk");
}

// ---- Quotas.

std::vector<std::uint64_t> HostBytes(TierSet& tiers) {
  std::vector<std::uint64_t> bytes;
  for (const TierSet::TenantBytes& tenant : tiers.tenants()) bytes.push_back(tenant.host);
  return bytes;
}

TEST_F(TierSetTest, ATenantOverItsQuotaPaysFirst) {
  TestNode::Options options = OnDisk(/*through=*/true, /*host_pages=*/8 * kTestFramePages);
  options.disk_bytes = 0;
  options.tiers.quotas = {{7, 2 * kTestFrameBytes}, {9, 4 * kTestFrameBytes}};
  Start(options);
  const std::vector<Chain> other = TestChains(2, 8);
  const std::size_t room = node_->host->stats().bytes_max / kTestFrameBytes;
  ASSERT_GE(room, 7u);
  // Theirs are the oldest; the other fills what is left.
  for (std::int32_t i = 0; i < 3; ++i) ASSERT_TRUE(PutBlock(tiers(), other, i, 9).ok());
  Put(0, static_cast<std::int32_t>(room) - 3, 7);
  EXPECT_THAT(HostBytes(tiers()), ElementsAre((room - 3) * kTestFrameBytes, 3 * kTestFrameBytes));
  ASSERT_GT(room - 3, 2u);
  // As long as tenant 7 is over, nobody else loses a block, though all of tenant 9's are older.
  for (std::int32_t i = 3; i < static_cast<std::int32_t>(room) - 2; ++i) {
    ASSERT_TRUE(PutBlock(tiers(), other, i, i % 2 == 0 ? 9 : 0).ok());
  }
  EXPECT_EQ(HostBytes(tiers())[0], 2 * kTestFrameBytes);
  for (std::int32_t i = 0; i < static_cast<std::int32_t>(room) - 2; ++i) {
    EXPECT_TRUE(tiers().Where(TestCopyKey(other[static_cast<std::size_t>(i)])).has_value()) << i;
  }
  // Of its own the head is left: a tail without it would be of no use.
  EXPECT_EQ(Where(0), "host");
  EXPECT_EQ(Where(1), "host");
  EXPECT_EQ(Where(2), "");
  tiers().SetQuota(7, std::nullopt);
  EXPECT_EQ(tiers().tenants().size(), 1u);
}

TEST_F(TierSetTest, QuotasHoldOnDiskAndOutliveTheNode) {
  TestNode::Options options = OnDisk();
  options.disk_bytes = 5 * kSegment;
  options.tiers.quotas = {{7, 4 * kTestFrameBytes}};
  Start(options);
  const std::vector<Chain> other = TestChains(2, 4);
  for (std::int32_t i = 0; i < 4; ++i) ASSERT_TRUE(PutBlock(tiers(), other, i, 9).ok());
  Put(0, 12, 7);
  loop_.Advance(seconds(1));
  Flush();
  EXPECT_EQ(tiers().tenants()[0].disk, 12 * kTestFrameBytes);
  // Who they belong to is on disk as well.
  Start(options, node_->disk->images());
  EXPECT_EQ(tiers().tenants()[0].disk, 12 * kTestFrameBytes);
  EXPECT_EQ(tiers().Describe(Key(3))->copy.tenant, 7u);
  // A third fills the disk: tenant 7 pays.
  const std::vector<Chain> third = TestChains(3, 64);
  for (std::int32_t i = 0; i < 64; ++i) {
    ASSERT_TRUE(PutBlock(tiers(), third, i, 0).ok());
    loop_.Advance(milliseconds(100));
    if (tiers().tenants()[0].disk <= 4 * kTestFrameBytes) break;
    for (const Chain& chain : other) {
      ASSERT_TRUE(tiers().Where(TestCopyKey(chain)).has_value()) << i;
    }
  }
  EXPECT_EQ(tiers().tenants()[0].disk, 4 * kTestFrameBytes);
  EXPECT_EQ(tiers().tenants()[0].quota, 4 * kTestFrameBytes);
}

}  // namespace
}  // namespace penstock::kvstore
