// SPDX-License-Identifier: Apache-2.0
#include "engine/block_table.h"

#include <algorithm>
#include <cstring>
#include <random>

#include "absl/strings/str_cat.h"
#include "device/cpu_device.h"
#include "engine/swap_pool.h"
#include "gtest/gtest.h"

namespace penstock::engine {
namespace {

constexpr std::int32_t kBlockTokens = 8;

KvSpec Spec(const std::vector<std::int32_t>& windows) {
  KvSpec spec;
  for (const std::int32_t window : windows) {
    spec.groups.push_back({.window_tokens = window,
                           .cache_layers = 1,
                           .kv_heads = 1,
                           .k_dim = 8,
                           .v_dim = 8,
                           .dtype = KvDtype::kF16});
  }
  return spec;
}

class BlockTableTest : public testing::Test {
 protected:
  std::unique_ptr<KvPool> Pool(const std::vector<std::int32_t>& windows, std::int32_t slabs) {
    return *KvPool::Make(*device_, Spec(windows),
                         {.pool_bytes = std::size_t{4096} * static_cast<std::size_t>(slabs),
                          .block_tokens = kBlockTokens,
                          .page_tokens = kBlockTokens});
  }

 private:
  const std::unique_ptr<CpuDevice> device_ = *CpuDevice::Make({.threads = 1, .cpus = {}});
};

std::vector<Chain> SomeChains(std::int32_t count) {
  const std::vector<TokenId> tokens(static_cast<std::size_t>(count * kBlockTokens), 7);
  return ChainsOf(tokens, "", kBlockTokens);
}

TEST_F(BlockTableTest, FirstVisibleBlockIsWhereTheWindowBegins) {
  struct Case {
    std::int32_t position, window, want;
  };
  for (const Case& c :
       {Case{1000, 0, 0}, Case{0, 1, 0}, Case{8, 1, 1}, Case{15, 1, 1}, Case{15, 16, 0},
        Case{22, 16, 0}, Case{23, 16, 1}, Case{16, 10, 0}, Case{17, 10, 1}}) {
    SCOPED_TRACE(absl::StrCat("position ", c.position, " window ", c.window));
    EXPECT_EQ(FirstVisibleBlock(c.position, c.window, kBlockTokens), c.want);
    if (c.window == 0) continue;
    const std::int32_t first_seen = std::max(0, c.position - c.window + 1);
    EXPECT_EQ(c.want, first_seen / kBlockTokens);
  }
}

TEST_F(BlockTableTest, BytesToHoldIsTheMostThatGrowingBlockByBlockHolds) {
  for (const std::int32_t window : {0, 1, 2, 7, 8, 9, 10, 16, 17, 40}) {
    SCOPED_TRACE(absl::StrCat("window ", window));
    const auto pool = Pool({window}, 64);
    BlockTable table(*pool);
    std::size_t most = 0;
    for (std::int32_t tokens = 1; tokens <= 200; ++tokens) {
      ASSERT_TRUE(table.Extend((tokens - 1) / kBlockTokens));
      most = std::max(most, pool->stats().bytes_held);
      EXPECT_EQ(BytesToHold(*pool, tokens), most) << tokens << " tokens";
      EXPECT_EQ(table.BytesMissing(tokens), most - pool->stats().bytes_held);
      table.DropInvisible(tokens);
    }
  }
}

TEST_F(BlockTableTest, TokensThatFitIsTheLastThatDoes) {
  const auto pool = Pool({0, 20}, 9);
  // Window blocks: 19 tokens before a block of 8 make 4 at most, so 5 are left to the full group.
  EXPECT_EQ(TokensThatFit(*pool, 1000), 5 * kBlockTokens);
  EXPECT_EQ(TokensThatFit(*pool, 17), 17);
  EXPECT_EQ(TokensThatFit(*Pool({20}, 4), 1 << 30), 1 << 30);
}

TEST_F(BlockTableTest, WritesToASharedBlockGoToACopy) {
  const auto pool = Pool({0}, 3);
  BlockTable first(*pool), second(*pool);
  ASSERT_TRUE(first.Extend(0));
  ASSERT_TRUE(first.Extend(1));
  std::memset(pool->Address(0, first.slabs(0)[1]), 1, 256);
  second.ShareFrom(first);
  EXPECT_EQ(pool->stats().bytes_held, 2u * 4096);
  ASSERT_TRUE(second.MakeOwn(1));
  EXPECT_EQ(first.slabs(0)[0], second.slabs(0)[0]);
  ASSERT_NE(first.slabs(0)[1], second.slabs(0)[1]);
  EXPECT_EQ(
      std::memcmp(pool->Address(0, first.slabs(0)[1]), pool->Address(0, second.slabs(0)[1]), 256),
      0);
  ASSERT_TRUE(first.MakeOwn(1)) << "the last holder copies nothing";
  EXPECT_FALSE(first.MakeOwn(0)) << "the pool is full";
  second.Release();
  EXPECT_TRUE(first.MakeOwn(0));
}

TEST_F(BlockTableTest, TwinsOfASealedBlockAreLetGo) {
  const auto pool = Pool({0, 8}, 16);
  const std::vector<Chain> chains = SomeChains(2);
  BlockTable first(*pool), second(*pool);
  for (BlockTable* table : {&first, &second}) {
    for (std::int32_t b = 0; b < 2; ++b) ASSERT_TRUE(table->Extend(b));
  }
  first.Seal(LossSpaces{}, chains);
  EXPECT_EQ(pool->stats().bytes_held, 8u * 4096);
  second.Seal(LossSpaces{}, chains);
  EXPECT_EQ(pool->stats().bytes_held, 4u * 4096);
  EXPECT_EQ(first.slabs(1)[1], second.slabs(1)[1]);
}

TEST_F(BlockTableTest, SealsForItsTenant) {
  struct Heard final : KvPool::Observer {
    void OnSealed(std::int32_t, const KvPool::SealedBlock& block) override {
      tenants.push_back(block.tenant);
    }
    void OnEvicted(std::int32_t, const KvPool::SealedBlock& block, SlabRef) override {
      tenants.push_back(block.tenant);
    }
    std::vector<std::uint32_t> tenants;
  } heard;
  const auto pool = Pool({0}, 4);
  pool->AddObserver(heard);
  {
    BlockTable table(*pool, 7);
    ASSERT_TRUE(table.Extend(0));
    table.Seal(LossSpaces{}, SomeChains(1));
  }
  pool->DropCached();
  EXPECT_EQ(heard.tenants, (std::vector<std::uint32_t>{7, 7}));
  pool->RemoveObserver(heard);
}

TEST_F(BlockTableTest, SavedBlocksComeBackWithTheirBytesAndNames) {
  const auto pool = Pool({0}, 4);
  SwapPool swap(*pool, 3 * 256);  // 8 tokens * 32 bytes a block.
  const std::vector<Chain> chains = SomeChains(2);
  BlockTable table(*pool);
  for (std::int32_t b = 0; b < 3; ++b) {
    ASSERT_TRUE(table.Extend(b));
    std::memset(pool->Address(0, table.slabs(0)[static_cast<std::size_t>(b)]), b + 1, 256);
  }
  table.Seal(LossSpaces{}, chains);
  std::unique_ptr<SwapPool::Saved> saved = swap.Save(table);
  ASSERT_NE(saved, nullptr);
  EXPECT_EQ(swap.bytes_used(), 768u);
  EXPECT_EQ(swap.Save(table), nullptr) << "the budget is used up";
  table.Release();
  {
    BlockTable other(*pool);  // Takes the memory of the last sealed block, at least.
    for (std::int32_t b = 0; b < 3; ++b) ASSERT_TRUE(other.Extend(b));
    EXPECT_TRUE(pool->Contains(0, {Namespace{}, chains[0]}));
    EXPECT_FALSE(pool->Contains(0, {Namespace{}, chains[1]}));
  }
  swap.Restore(*saved, LossSpaces{}, chains, table);
  saved.reset();
  EXPECT_EQ(swap.bytes_used(), 0u);
  for (std::int32_t b = 0; b < 3; ++b) {
    EXPECT_EQ(pool->Address(0, table.slabs(0)[static_cast<std::size_t>(b)])[255],
              static_cast<std::byte>(b + 1));
  }
  EXPECT_TRUE(pool->Contains(0, {Namespace{}, chains[1]}));
}

// The longest prefix whose blocks are there, found by trying every length.
std::int32_t LongestUsable(const std::vector<std::vector<bool>>& has,
                           const std::vector<std::int32_t>& windows) {
  for (auto n = static_cast<std::int32_t>(has[0].size()); n > 0; --n) {
    bool usable = true;
    for (std::size_t g = 0; g < windows.size(); ++g) {
      for (std::int32_t position = 0; position < n * kBlockTokens; ++position) {
        const bool seen = windows[g] == 0 || position > n * kBlockTokens - windows[g];
        if (seen && !has[g][static_cast<std::size_t>(position / kBlockTokens)]) usable = false;
      }
    }
    if (usable) return n;
  }
  return 0;
}

TEST_F(BlockTableTest, ReusesTheLongestUsablePrefix) {
  const std::vector<Chain> chains = SomeChains(10);
  std::int64_t reused = 0;
  for (std::uint32_t seed = 0; seed < 500; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed=", seed));
    std::mt19937 random(seed);
    std::vector<std::int32_t> windows(1 + random() % 3);
    for (std::int32_t& window : windows) {
      window = random() % 3 == 0 ? 0 : 1 + static_cast<std::int32_t>(random() % 40);
    }
    const auto pool = Pool(windows, 40);
    std::vector<std::vector<bool>> has(windows.size(), std::vector<bool>(chains.size()));
    for (std::size_t g = 0; g < windows.size(); ++g) {
      for (std::size_t b = 0; b < chains.size(); ++b) {
        if (random() % 8 == 0) continue;
        has[g][b] = true;
        const auto group = static_cast<std::int32_t>(g);
        const SlabRef slab = *pool->Allocate(group);
        ASSERT_TRUE(pool->Seal(group, slab, {.key = {Namespace{}, chains[b]}}));
        pool->Release(group, slab);
      }
    }
    BlockTable table(*pool);
    const std::int32_t blocks = table.ReusePrefix(LossSpaces{}, LossClass::kExact, chains);
    ASSERT_EQ(blocks, LongestUsable(has, windows));
    reused += blocks;
    if (blocks < 10) {
      EXPECT_TRUE(table.Extend(blocks)) << "it goes on after the prefix";
    }
  }
  EXPECT_GT(reused, 500);
}

class LineageTest : public BlockTableTest {
 protected:
  // Blocks 0 to 5 of a chain: "e" is there exactly, "3" and "2" as of class kl3, kl2, "E" as exact
  // and kl3.
  std::unique_ptr<KvPool> PoolWith(std::string_view blocks) {
    auto pool = Pool({0}, 40);
    for (std::size_t b = 0; b < blocks.size(); ++b) {
      if (blocks[b] == 'e' || blocks[b] == 'E') Put(*pool, LossClass::kExact, b);
      if (blocks[b] == '3' || blocks[b] == 'E') Put(*pool, LossClass::kKl3, b);
      if (blocks[b] == '2') Put(*pool, LossClass::kKl2, b);
    }
    return pool;
  }
  void Put(KvPool& pool, LossClass loss, std::size_t block) {
    const SlabRef slab = *pool.Allocate(0);
    ASSERT_TRUE(pool.Seal(0, slab, {.key = {spaces_[loss], chains_[block]}}));
    pool.Release(0, slab);
  }

  const LossSpaces spaces_ = MakeLossSpaces({"m", "w", "f16", "", "", "n", ""});
  const std::vector<Chain> chains_ = SomeChains(6);
};

TEST_F(LineageTest, BlocksOfTheLeastLossUpToWhatIsAccepted) {
  struct Case {
    std::string_view blocks;
    LossClass accepts;
    std::int32_t want;
    Lineage lineage;
  };
  constexpr auto kExact = LossClass::kExact;
  constexpr auto kKl3 = LossClass::kKl3;
  constexpr auto kKl2 = LossClass::kKl2;
  for (const Case& c :
       {Case{"eee333", kExact, 3, {}}, Case{"eee333", kKl3, 6, {kKl3, 3}}, Case{"EEE", kKl2, 3, {}},
        Case{"e3e", kKl3, 3, {kKl3, 1}}, Case{"e32e", kKl3, 2, {kKl3, 1}},
        Case{"e32e", kKl2, 4, {kKl2, 1}}, Case{"333", kExact, 0, {}}, Case{"eee", kKl2, 3, {}}}) {
    SCOPED_TRACE(absl::StrCat(std::string(c.blocks), " up to ", std::string(ToString(c.accepts))));
    const auto pool = PoolWith(c.blocks);
    BlockTable table(*pool);
    EXPECT_EQ(table.ReusePrefix(spaces_, c.accepts, chains_), c.want);
    EXPECT_EQ(table.lineage(), c.lineage);
    BlockTable other(*pool);
    other.ShareFrom(table);
    EXPECT_EQ(other.lineage(), c.lineage);
  }
}

TEST_F(LineageTest, WhatIsComputedBehindALossIsFoundByNoExactLookup) {
  const auto pool = PoolWith("e3");
  {
    BlockTable table(*pool);
    ASSERT_EQ(table.ReusePrefix(spaces_, LossClass::kKl3, chains_), 2);
    for (std::int32_t b = 2; b < 4; ++b) ASSERT_TRUE(table.Extend(b));
    table.Seal(spaces_, std::span(chains_).first(4));
  }
  EXPECT_FALSE(pool->Contains(0, {spaces_[LossClass::kExact], chains_[1]}));
  EXPECT_FALSE(pool->Contains(0, {spaces_[LossClass::kExact], chains_[2]}));
  EXPECT_TRUE(pool->Contains(0, {spaces_[LossClass::kKl3], chains_[3]}));
  BlockTable exact(*pool), lossy(*pool);
  EXPECT_EQ(exact.ReusePrefix(spaces_, LossClass::kExact, chains_), 1);
  EXPECT_EQ(lossy.ReusePrefix(spaces_, LossClass::kKl3, chains_), 4);
}

TEST_F(LineageTest, WhatCameFromElsewhereIsOfItsClass) {
  const auto pool = PoolWith("e");
  {
    BlockTable table(*pool);
    ASSERT_EQ(table.ReusePrefix(spaces_, LossClass::kKl2, chains_), 1);
    for (std::int32_t b = 1; b < 4; ++b) ASSERT_TRUE(table.Extend(b));
    table.Join({LossClass::kKl2, 2});
    table.Seal(spaces_, std::span(chains_).first(4));
  }
  EXPECT_TRUE(pool->Contains(0, {spaces_[LossClass::kExact], chains_[1]}));
  EXPECT_FALSE(pool->Contains(0, {spaces_[LossClass::kExact], chains_[2]}));
  EXPECT_TRUE(pool->Contains(0, {spaces_[LossClass::kKl2], chains_[2]}));
}

TEST_F(LineageTest, SavedBlocksComeBackUnderTheirClass) {
  const auto pool = PoolWith("e3");
  SwapPool swap(*pool, 1 << 20);
  BlockTable table(*pool);
  ASSERT_EQ(table.ReusePrefix(spaces_, LossClass::kKl3, chains_), 2);
  ASSERT_TRUE(table.Extend(2));
  table.Seal(spaces_, std::span(chains_).first(3));
  const std::unique_ptr<SwapPool::Saved> saved = swap.Save(table);
  ASSERT_NE(saved, nullptr);
  table.Release();
  pool->DropCached();
  swap.Restore(*saved, spaces_, std::span(chains_).first(3), table);
  EXPECT_TRUE(pool->Contains(0, {spaces_[LossClass::kExact], chains_[0]}));
  EXPECT_TRUE(pool->Contains(0, {spaces_[LossClass::kKl3], chains_[1]}));
  EXPECT_TRUE(pool->Contains(0, {spaces_[LossClass::kKl3], chains_[2]}));
  EXPECT_FALSE(pool->Contains(0, {spaces_[LossClass::kExact], chains_[2]}));
}

}  // namespace
}  // namespace penstock::engine
