// SPDX-License-Identifier: Apache-2.0
// A store node and a worker together: what is kept comes back, bit by bit, or not at all.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "base/log.h"
#include "base/seed_testing.h"
#include "kvstore/client/store_fixture.h"

namespace penstock::kvstore {
namespace {

#if defined(PENSTOCK_SANITIZED)
constexpr std::uint64_t kSeeds = 40;
#else
constexpr std::uint64_t kSeeds = 300;
#endif

TEST_F(StoreTest, WhatIsKeptComesBackInAnyFrameAndPage) {
  for (const CodecId codec : {CodecId::kRaw, CodecId::kPlanes, CodecId::kPlanesZstd}) {
    for (const std::int32_t page_tokens : {8, 4, 1}) {
      for (const std::int32_t groups : {1, 2}) {
        for (const bool secret : {false, true}) {
          SCOPED_TRACE(testing::Message() << std::string(ToString(codec)) << " pages of "
                                          << page_tokens << ", groups " << groups);
          const std::vector<std::byte> key = secret ? SecretOf(1) : std::vector<std::byte>();
          Start({.server = {.secret = key}},
                {.page_tokens = page_tokens, .groups = groups, .forms = {{codec}}, .secret = key});
          const std::vector<Chain> chains = TestChains(1, 9);
          worker_->Compute(chains);
          Settle();
          EXPECT_EQ(worker_->keeper().stats().taken, 9u * static_cast<unsigned>(groups));
          EXPECT_EQ(Fetch(chains), 9);
          ASSERT_EQ(last_.spans.size(), static_cast<std::size_t>(groups));
          EXPECT_EQ(last_.spans[0].tier, Tier::kHost);
          EXPECT_EQ(last_.spans[0].codec, codec);
          EXPECT_EQ(last_.spans[0].blocks, 9);
          // Of a window group, those of the last two blocks alone.
          if (groups == 2) {
            EXPECT_EQ(last_.spans[1].blocks, 2);
          }
          TearDown();
        }
      }
    }
  }
}

TEST_F(StoreTest, CopiesWithALossComeToWhoAsksForTheirClassAlone) {
  Start({}, {.forms = {{}, {CodecId::kAnsFine, LossClass::kKl3}}});
  const std::vector<Chain> chains = TestChains(1, 9);
  worker_->Compute(chains);
  Settle();
  EXPECT_EQ(worker_->keeper().stats().taken, 18u);
  EXPECT_EQ(Fetch(chains), 9);
  EXPECT_EQ(last_.spans[0].codec, CodecId::kRaw);
  EXPECT_EQ(last_.lineage, Lineage());
  const auto of_class = [&](LossClass loss) {
    const auto fetched = worker_->Fetch(
        chains, kNode, seconds(10),
        {{.store = TestWorker::AddressOf(kNode), .first_block = 0, .end_block = 9, .loss = loss}});
    loop_.Advance(seconds(11));
    last_ = *fetched->outcome;
    return last_.end_block;
  };
  EXPECT_EQ(of_class(LossClass::kKl3), 9);
  EXPECT_EQ(last_.spans[0].codec, CodecId::kAnsFine);
  EXPECT_LT(last_.spans[0].bytes, last_.spans[0].block_bytes);
  EXPECT_EQ(last_.lineage, (Lineage{LossClass::kKl3, 0}));
  EXPECT_EQ(of_class(LossClass::kKl2), 0);
  EXPECT_EQ(last_.lineage, Lineage());
}

TEST_F(StoreTest, WhatAttendedToALossIsNoExactCopyByAnyCodec) {
  Start({}, {.forms = {{}, {CodecId::kAnsFine, LossClass::kKl3}}});
  const std::vector<Chain> chains = TestChains(1, 9);
  worker_->Compute(chains, 0, LossClass::kKl3);
  Settle();
  // Both forms make copies of that class: one is enough.
  EXPECT_EQ(worker_->keeper().stats().taken, 9u);
  EXPECT_EQ(Fetch(chains), 0);
  EXPECT_TRUE(node_->tiers->Describe({CopySpaceOf(kTestSpaces, 0, LossClass::kKl3), chains[4]})
                  .has_value());
}

TEST_F(StoreTest, APrefixThatIsThereEndsWhereItEnds) {
  Start({});
  const std::vector<Chain> chains = TestChains(1, 12);
  worker_->Compute({chains.begin(), chains.begin() + 5});
  Settle();
  EXPECT_EQ(Fetch(chains), 5);
  EXPECT_EQ(last_.status.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Fetch(TestChains(2, 3)), 0);
}

std::vector<std::int32_t> BlocksOf(const TestWorker::Fetched& fetched) {
  std::vector<std::int32_t> blocks;
  for (const auto& [group, block] : fetched.there) blocks.push_back(block);
  std::ranges::sort(blocks);
  return blocks;
}

TEST_F(StoreTest, GoesBackwardsUntilItMeetsWhoComesFromTheFront) {
  Start({}, {.faults = transfer::FaultPlan{.delay_read = 1, .delay_max = milliseconds(1)}});
  const std::vector<Chain> chains = TestChains(1, 60);
  worker_->Compute(chains);
  Settle();
  const auto fetched = worker_->Fetch(chains, kNode, seconds(10), {}, true);
  while (fetched->there.size() < 10) loop_.Advance(milliseconds(1));
  EXPECT_GE(BlocksOf(*fetched).front(), 60 - 10 - 2 * 16);
  ASSERT_FALSE(fetched->outcome.has_value());
  worker_->fetcher().Want(fetched->id, 20);
  worker_->fetcher().Want(fetched->id, 40);
  loop_.Advance(seconds(1));
  ASSERT_TRUE(fetched->outcome.has_value());
  EXPECT_EQ(fetched->outcome->status, absl::OkStatus());
  EXPECT_EQ(fetched->outcome->end_block, 60);
  const std::vector<std::int32_t> blocks = BlocksOf(*fetched);
  EXPECT_EQ(blocks.end() - std::ranges::lower_bound(blocks, 40), 20);
  EXPECT_LT(blocks.size(), 40u);
  EXPECT_EQ(fetched->outcome->spans[0].blocks, static_cast<std::int32_t>(blocks.size()));
  worker_->Check(*fetched, chains);
}

TEST_F(StoreTest, GoingBackwardsAllThatComesIsGood) {
  Start({});
  const std::vector<Chain> chains = TestChains(1, 9);
  const std::vector<Chain> head(chains.begin(), chains.begin() + 3);
  worker_->Compute(head);
  worker_->Compute(chains, 5);  // Nobody has 3 and 4.
  Settle();
  const auto fetched =
      worker_->Fetch(chains, kNode, seconds(1),
                     {{.store = TestWorker::AddressOf(kNode), .first_block = 0, .end_block = 3},
                      {.store = TestWorker::AddressOf(kNode), .first_block = 3, .end_block = 9}},
                     true);
  loop_.Advance(seconds(2));
  ASSERT_TRUE(fetched->outcome.has_value());
  EXPECT_EQ(fetched->outcome->end_block, 0);
  EXPECT_EQ(fetched->outcome->status.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(BlocksOf(*fetched), (std::vector<std::int32_t>{0, 1, 2, 5, 6, 7, 8}));
  worker_->Check(*fetched, chains);
}

TEST_F(StoreTest, ComesFromDiskOnceHostMemoryLetGo) {
  Start({.disk_bytes = 64 * 32 * 4096});
  const std::vector<Chain> chains = TestChains(1, 20);
  worker_->Compute(chains);
  Settle();
  node_->tiers->FlushHost();
  loop_.Advance(seconds(1));
  EXPECT_EQ(node_->host->stats().copies, 0u);
  EXPECT_EQ(Fetch(chains), 20);
  EXPECT_EQ(last_.spans[0].tier, Tier::kDisk);
  EXPECT_GT(last_.spans[0].tier_wait, Duration());
  // It was promoted.
  EXPECT_EQ(Fetch(chains), 20);
  EXPECT_EQ(last_.spans[0].tier, Tier::kHost);
  EXPECT_EQ(node_->tiers->stats(Tier::kDisk).hits, 20u);
  EXPECT_EQ(node_->tiers->stats(Tier::kHost).hits, 20u);
}

TEST_F(StoreTest, WriteBackReachesTheDiskAsHostMemoryLetsGo) {
  TestNode::Options options = {.host_pages = 64, .disk_bytes = 64 * 32 * 4096};
  options.tiers.disk_through = false;
  options.tiers.free_share = 0.25;
  Start(options);
  for (int c = 0; c < 6; ++c) {
    worker_->Compute(TestChains(c, 8));
    Settle();
  }
  EXPECT_GT(node_->tiers->stats(Tier::kHost).evicted, 0u);
  for (int c = 0; c < 6; ++c) EXPECT_EQ(Fetch(TestChains(c, 8)), 8) << c;
}

TEST_F(StoreTest, OnSecondUseTakesWhatWasAskedForBefore) {
  TestNode::Options options;
  options.tiers.second_use = true;
  Start(options);
  const std::vector<Chain> chains = TestChains(1, 4);
  worker_->Compute(chains);
  Settle();
  EXPECT_EQ(worker_->keeper().stats().taken, 0u);
  worker_->Compute(chains);
  Settle();
  EXPECT_EQ(worker_->keeper().stats().taken, 4u);
}

TEST_F(StoreTest, WhatLeavesThePoolIsDemoted) {
  Start({});
  const std::vector<Chain> chains = TestChains(1, 3);
  node_->tiers->Asked({});
  worker_->keeper().SetStore(std::nullopt);  // Nothing is kept as it is sealed.
  worker_->Compute(chains);
  worker_->keeper().SetStore(TestWorker::AddressOf(kNode));
  loop_.RunUntilIdle();
  worker_->Drop(chains, true);
  Settle();
  EXPECT_EQ(Fetch(chains), 3);
  // Known to be kept: nothing is encoded again.
  worker_->Compute(chains);
  worker_->Drop(chains, true);
  EXPECT_TRUE(worker_->keeper().idle());
}

TEST_F(StoreTest, AFrameOfAnotherClusterIsRefused) {
  Start({.server = {.secret = SecretOf(1)}}, {.secret = SecretOf(2)});
  worker_->Compute(TestChains(1, 3));
  Settle();
  EXPECT_EQ(worker_->keeper().stats().taken, 0u);
  EXPECT_EQ(worker_->keeper().stats().refused, 3u);
  EXPECT_EQ(node_->host->stats().copies, 0u);
  EXPECT_EQ(node_->host->stats().bytes, 0u);
}

TEST_F(StoreTest, ASlowDiskIsLeftAtTheDeadline) {
  Start({.disk_bytes = 64 * 32 * 4096});
  const std::vector<Chain> chains = TestChains(1, 8);
  worker_->Compute(chains);
  Settle();
  node_->tiers->FlushHost();
  loop_.Advance(seconds(1));
  node_->disk->faults().hang = 1;
  const MonoTime begun = loop_.Now();
  const auto fetched = worker_->Fetch(chains, kNode, milliseconds(50));
  loop_.Advance(milliseconds(51));
  ASSERT_TRUE(fetched->outcome.has_value());
  EXPECT_EQ(fetched->outcome->end_block, 0);
  EXPECT_TRUE(absl::IsDeadlineExceeded(fetched->outcome->status)) << fetched->outcome->status;
  EXPECT_LE(loop_.Now() - begun, milliseconds(51));
}

TEST_F(StoreTest, DamageIsAMiss) {
  Start({.disk_bytes = 64 * 32 * 4096});
  const std::vector<Chain> chains = TestChains(1, 6);
  worker_->Compute(chains);
  Settle();
  // In memory: found by who reads it.
  const BlockKey key = {CopySpace(kTestSpace, 0, "exact"), chains[3]};
  node_->host->Bytes(*node_->host->PlaceOf(key), 8192)[5000] ^= std::byte{1};
  EXPECT_EQ(Fetch(chains), 3);
  EXPECT_EQ(last_.status.code(), absl::StatusCode::kDataLoss);
  // On disk: found on the way out.
  node_->tiers->FlushHost();
  loop_.Advance(seconds(1));
  for (const auto& [segment, image] : node_->disk->images()) {
    for (std::size_t bit = 0; bit < 8 * image.bytes.size(); bit += 8 * 4096) {
      node_->disk->Damage(segment, bit + 77);
    }
  }
  EXPECT_EQ(Fetch(chains), 0);
  EXPECT_GT(node_->tiers->stats(Tier::kDisk).damaged, 0u);
}

TEST_F(StoreTest, ANodeThatDiesIsAMiss) {
  Start({});
  const std::vector<Chain> chains = TestChains(1, 9);
  worker_->Compute(chains);
  Settle();
  const auto fetched = worker_->Fetch(chains, kNode);
  while (!fetched->outcome.has_value() && loop_.RunUntilIdle(1) > 0) {
    if (node_->server->stats().copies_told > 4) {
      worker_->SetNode(kNode, nullptr);
      node_->server = std::make_unique<StoreServer>(loop_, *node_->tiers, node_->turns,
                                                    transfer::SegmentId{1}, StoreServer::Options());
      break;
    }
  }
  loop_.Advance(seconds(1));
  worker_->Check(*fetched, chains);
  EXPECT_LT(fetched->outcome->end_block, 9);
  EXPECT_EQ(Fetch(chains), 0);  // Nobody is there.
  worker_->SetNode(kNode, node_.get());
  EXPECT_EQ(Fetch(chains), 9);
}

TEST_F(StoreTest, TwoNodesServeTheirRuns) {
  Start({});
  TestNode other(loop_, 2, {});
  worker_->SetNode("store-2", &other);
  const std::vector<Chain> chains = TestChains(1, 10);
  worker_->Compute({chains.begin(), chains.begin() + 6});
  Settle();
  worker_->keeper().SetStore(TestWorker::AddressOf("store-2"));
  worker_->Compute(chains, 6);
  Settle();
  const auto fetched = worker_->Fetch(
      chains, "", seconds(1),
      {{.store = TestWorker::AddressOf(kNode), .first_block = 0, .end_block = 6},
       {.store = TestWorker::AddressOf("store-2"), .first_block = 6, .end_block = 10}});
  loop_.Advance(seconds(2));
  worker_->Check(*fetched, chains);
  EXPECT_EQ(fetched->outcome->end_block, 10);
  EXPECT_TRUE(fetched->outcome->status.ok());
  worker_.reset();
  loop_.RunUntilIdle();
  worker_ = std::make_unique<TestWorker>(loop_, TestWorker::Options());
}

TEST_F(StoreTest, ADiskOfAnEarlierLifeIsKnownAsItIsRead) {
  const TestNode::Options options = {.disk_bytes = 64 * 32 * 4096,
                                     .server = {.secret = SecretOf(1)}};
  Start(options, {.forms = {{CodecId::kPlanes}}, .secret = SecretOf(1)});
  const std::vector<Chain> chains = TestChains(1, 4);
  worker_->Compute(chains);
  Settle();
  FakeDisk::Images images = node_->disk->LosePower();
  const auto again = [&](int secret) {
    worker_->SetNode(kNode, nullptr);
    TestNode::Options other = options;
    other.server.secret = SecretOf(secret);
    node_ = std::make_unique<TestNode>(loop_, 2, other, images);
    worker_->SetNode(kNode, node_.get());
  };
  again(1);
  ASSERT_EQ(node_->tiers->copies(), 4u);
  EXPECT_EQ(node_->tiers->List()[0].copy.codec, 0);  // Nobody has read it yet.
  EXPECT_EQ(Fetch(chains), 4);
  node_->tiers->FlushHost();
  loop_.Advance(seconds(1));
  std::uint32_t tokens_before = 0;
  for (std::size_t i = 0; i < chains.size(); ++i) {
    const auto listed = node_->tiers->Describe({CopySpace(kTestSpace, 0, "exact"), chains[i]});
    ASSERT_TRUE(listed.has_value());
    EXPECT_TRUE(listed->disk);
    EXPECT_EQ(listed->copy.codec, static_cast<std::uint8_t>(CodecId::kPlanes));
    EXPECT_EQ(listed->copy.tokens_before, tokens_before);
    tokens_before += 8;
  }
  // Of another cluster: of no use to this one.
  again(2);
  EXPECT_EQ(Fetch(chains), 0);
  EXPECT_EQ(last_.status.code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(node_->tiers->copies(), 0u);
}

// Whoever planned it did not know what the worker's pool has lost, or has by now.
TEST_F(StoreTest, NothingIsGoodBehindAHole) {
  Start({});
  const std::vector<Chain> chains = TestChains(1, 10);
  worker_->Compute(chains);
  Settle();
  struct Case {
    const char* name;
    std::vector<std::pair<std::int32_t, std::int32_t>> sources;
    std::int32_t good;
  };
  for (const Case& c : {Case{"begins behind the first missing one", {{4, 10}}, 10},
                        Case{"a hole between", {{0, 3}, {5, 10}}, 3},
                        Case{"one within another", {{0, 8}, {2, 5}, {8, 10}}, 10},
                        Case{"two of the same", {{0, 6}, {0, 6}, {6, 9}}, 9}}) {
    SCOPED_TRACE(c.name);
    std::vector<Fetcher::Source> sources;
    for (const auto& [first, end] : c.sources) {
      sources.push_back(
          {.store = TestWorker::AddressOf(kNode), .first_block = first, .end_block = end});
    }
    const auto fetched = worker_->Fetch(chains, "", seconds(1), std::move(sources));
    loop_.Advance(seconds(20));
    worker_->Check(*fetched, chains);
    EXPECT_EQ(fetched->outcome->end_block, c.good);
  }
  // What only the tail of is kept is of no use to who lacks the head.
  const std::vector<Chain> other = TestChains(2, 6);
  worker_->Compute(other, 3);
  Settle();
  const auto fetched =
      worker_->Fetch(other, "", seconds(1),
                     {{.store = TestWorker::AddressOf(kNode), .first_block = 3, .end_block = 6}});
  loop_.Advance(seconds(2));
  worker_->Check(*fetched, other);
  EXPECT_EQ(fetched->outcome->end_block, 0);
}

// Exact reuse after any faults: what comes back is what was put, whatever happened in between.
TEST_F(StoreTest, NothingWrongComesBackUnderFaults) {
  SetLogLevel(LogLevel::kError);
  std::int64_t good = 0;
  std::int64_t mapped = 0;
  std::int64_t there = 0;
  for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
    const RunningSeed running(seed);
    std::mt19937_64 random(seed);
    const auto draw = [&](std::uint64_t n) { return random() % n; };
    VirtualLoop loop;
    TestNode::Options options = {.host_pages = 40 + draw(100),
                                 .disk_bytes = draw(4) == 0 ? 0 : (5 + draw(12)) * 32 * 4096,
                                 .policy = draw(2) == 0 ? "lru" : "reuse-density",
                                 .lease = milliseconds(20 + draw(2000))};
    options.tiers.disk_through = draw(2) == 0;
    options.tiers.free_share = static_cast<double>(draw(3)) / 8;
    transfer::FaultPlan faults = {.seed = seed};
    if (draw(2) == 0) {
      faults.delay_message = 0.1;
      faults.delay_read = 0.1;
      faults.corrupt_read = 0.02;
      faults.corrupt_message = 0.01;
      faults.disconnect = 0.005;
    }
    auto node = std::make_unique<TestNode>(loop, seed, options);
    std::vector<std::shared_ptr<TestMemory>> memories = {node->memory};  // Mapped ones stay.
    TestWorker worker(loop, {.page_tokens = draw(2) == 0 ? 8 : 2,
                             .groups = 1 + static_cast<std::int32_t>(draw(2)),
                             .forms = {{draw(2) == 0 ? CodecId::kRaw : CodecId::kPlanes}},
                             .faults = faults,
                             .map = draw(2) == 0,
                             .mapped = {.renew_at = static_cast<double>(1 + draw(8)) / 4}});
    worker.SetNode(kNode, node.get());
    worker.keeper().SetStore(TestWorker::AddressOf(kNode));
    std::vector<std::pair<std::shared_ptr<TestWorker::Fetched>, std::vector<Chain>>> fetches;
    for (int step = 0; step < 60; ++step) {
      const std::vector<Chain> chains =
          TestChains(static_cast<int>(draw(6)), 1 + static_cast<std::int32_t>(draw(10)));
      switch (draw(9)) {
        case 0:
        case 1:
        case 2:
          worker.Compute(chains);
          break;
        case 3:
          worker.Drop(chains, draw(2) == 0);
          break;
        case 4:
        case 5:
        case 6:
          fetches.emplace_back(
              worker.Fetch(chains, kNode, milliseconds(1 + draw(500)), {}, draw(3) == 0), chains);
          break;
        case 7:
          node->tiers->FlushHost();
          break;
        case 8:
          if (draw(6) == 0) {  // The node loses power.
            FakeDisk::Images images;
            if (node->disk != nullptr) images = node->disk->LosePower();
            node = std::make_unique<TestNode>(loop, seed + 1000, options, std::move(images));
            memories.push_back(node->memory);
            worker.SetNode(kNode, node.get());
          } else if (node->disk != nullptr && draw(3) == 0) {
            const auto& images = node->disk->images();
            if (!images.empty()) {
              node->disk->Damage(images.begin()->first,
                                 draw(8 * images.begin()->second.bytes.size()));
            }
          } else if (node->disk != nullptr) {
            node->disk->faults().error = draw(2) == 0 ? 0.1 : 0;
            node->disk->faults().hang = draw(4) == 0 ? 0.05 : 0;
          }
          break;
      }
      loop.Advance(milliseconds(draw(100)));
      node->host->Expire(loop.Now());
      if (!fetches.empty() && fetches.back().first->backwards && draw(3) == 0) {
        worker.fetcher().Want(fetches.back().first->id, static_cast<std::int32_t>(draw(10)));
      }
      // What is read where it is may change at any time, but not unnoticed; and is let go of some time.
      for (const auto& [fetched, of] : fetches) {
        if (!fetched->outcome.has_value() || fetched->outcome->mapped.empty()) continue;
        worker.Check(*fetched, of);
        for (const Fetcher::Mapped& m : fetched->outcome->mapped) mapped += m.at->Changed() ? 0 : 1;
        if (draw(4) != 0) continue;
        for (const Fetcher::Mapped& m : fetched->outcome->mapped) {
          fetched->outcome->end_block = std::min(fetched->outcome->end_block, m.block);
        }
        fetched->outcome->mapped.clear();
      }
    }
    loop.Advance(seconds(15));
    for (const auto& [fetched, chains] : fetches) {
      worker.Check(*fetched, chains);
      ASSERT_TRUE(fetched->outcome.has_value());
      good += fetched->backwards ? 0 : fetched->outcome->end_block;
      there += static_cast<std::int64_t>(fetched->there.size());
    }
    EXPECT_EQ(worker.fetcher().fetches(), 0u);
    EXPECT_EQ(worker.held(), 0);
    fetches.clear();
    loop.Advance(seconds(1));
    EXPECT_EQ(worker.fetcher().mapped().stats().copies, 0u);
    EXPECT_EQ(worker.fetcher().mapped().stats().bytes, 0u);
    if (HasFailure()) return;
    worker.SetNode(kNode, nullptr);
    node.reset();
    loop.Advance(seconds(5));
  }
  EXPECT_GT(good, static_cast<std::int64_t>(10 * kSeeds));  // And much of it does come back.
  EXPECT_GT(mapped, static_cast<std::int64_t>(kSeeds));
  EXPECT_GT(there, static_cast<std::int64_t>(5 * kSeeds));
}

}  // namespace
}  // namespace penstock::kvstore
