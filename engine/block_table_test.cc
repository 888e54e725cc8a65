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
  first.Seal(Namespace{}, chains);
  EXPECT_EQ(pool->stats().bytes_held, 8u * 4096);
  second.Seal(Namespace{}, chains);
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
    table.Seal(Namespace{}, SomeChains(1));
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
  table.Seal(Namespace{}, chains);
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
  swap.Restore(*saved, Namespace{}, chains, table);
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
    const std::int32_t blocks = table.ReusePrefix(Namespace{}, chains);
    ASSERT_EQ(blocks, LongestUsable(has, windows));
    reused += blocks;
    if (blocks < 10) {
      EXPECT_TRUE(table.Extend(blocks)) << "it goes on after the prefix";
    }
  }
  EXPECT_GT(reused, 500);
}

}  // namespace
}  // namespace penstock::engine
