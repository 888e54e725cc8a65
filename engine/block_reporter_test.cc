// SPDX-License-Identifier: Apache-2.0
#include "engine/block_reporter.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

#include "absl/strings/str_cat.h"
#include "device/cpu_device.h"
#include "engine/block_table.h"

namespace penstock::engine {
namespace {

constexpr std::int32_t kBlockTokens = 4;

class BlockReporterTest : public ::testing::Test {
 protected:
  // Windows in tokens, 0 for a full group.
  void Make(const std::vector<std::int32_t>& windows, std::size_t blocks) {
    KvSpec spec;
    for (std::size_t g = 0; g < windows.size(); ++g) {
      spec.groups.push_back({.window_tokens = windows[g],
                             .cache_layers = 1,
                             .kv_heads = 1,
                             .k_dim = 8,
                             .v_dim = 8,
                             .dtype = KvDtype::kF32});
    }
    KvPool::Options options;
    options.block_tokens = kBlockTokens;
    options.page_tokens = kBlockTokens;
    options.pool_bytes = blocks * 4096 * windows.size();
    pool_ = *KvPool::Make(*device_, spec, options);
    reporter_ = std::make_unique<BlockReporter>(*pool_, spaces_, most_, [this] { ++calls_; });
  }
  std::vector<Chain> Chains(const std::vector<TokenId>& tokens) {
    return ChainsOf(tokens, "", kBlockTokens);
  }
  // A sequence that came, was computed and left.
  bool Run(const std::vector<Chain>& chains, const Lineage& lineage = {}) {
    BlockTable table(*pool_);
    const std::int32_t reused = table.ReusePrefix(spaces_, lineage.loss, chains);
    table.Join(lineage);
    for (auto b = reused; b < static_cast<std::int32_t>(chains.size()); ++b) {
      if (!table.Extend(b)) return false;
      table.Seal(spaces_, std::span(chains).first(static_cast<std::size_t>(b) + 1));
      table.DropInvisible((b + 1) * kBlockTokens);
    }
    return true;
  }
  void Apply(const std::vector<BlockEvent>& changes) {
    for (const BlockEvent& change : changes) {
      if (change.kind == BlockEvent::Kind::kStored) {
        told_[change.chain] = change.ends_prefix;
      } else {
        EXPECT_EQ(told_.erase(change.chain), 1u) << "removed twice";
      }
    }
  }
  // As the coordinator's index reads it.
  std::int32_t Usable(const std::vector<Chain>& chains, LossClass up_to) {
    std::int32_t usable = 0;
    for (std::size_t i = 0; i < chains.size(); ++i) {
      const auto told = told_.find(NameUpTo(chains[i], up_to));
      if (told == told_.end()) break;
      if (told->second) usable = static_cast<std::int32_t>(i) + 1;
    }
    return usable;
  }

  const std::unique_ptr<CpuDevice> device_ = *CpuDevice::Make({.threads = 1, .cpus = {}});
  const LossSpaces spaces_ = MakeLossSpaces({});
  LossClass most_ = LossClass::kExact;
  std::unique_ptr<KvPool> pool_;
  std::unique_ptr<BlockReporter> reporter_;
  std::map<Chain, bool> told_;
  int calls_ = 0;
};

TEST_F(BlockReporterTest, ChangesGatherUntilTaken) {
  Make({0}, 8);
  const std::vector<Chain> chains = Chains(std::vector<TokenId>(12, 7));
  ASSERT_TRUE(Run(chains));
  EXPECT_EQ(calls_, 1);
  const std::vector<BlockEvent> changes = reporter_->Take();
  ASSERT_EQ(changes.size(), 3u);
  EXPECT_EQ(changes[2], (BlockEvent{BlockEvent::Kind::kStored, true, chains[2]}));
  EXPECT_TRUE(reporter_->Take().empty());
  pool_->DropCached();
  ASSERT_TRUE(Run(chains));
  EXPECT_EQ(calls_, 2);
  EXPECT_TRUE(reporter_->Take().empty()) << "they came back before anybody was told";
  pool_->DropCached();
  EXPECT_EQ(reporter_->Take().size(), 3u);
}

TEST_F(BlockReporterTest, OtherNamespacesAreNotReported) {
  Make({0}, 8);
  BlockTable table(*pool_);
  ASSERT_TRUE(table.Extend(0));
  NamespaceFields other;
  other.model = "other";
  table.Seal(MakeLossSpaces(other), Chains(std::vector<TokenId>(4, 7)));
  EXPECT_EQ(calls_, 0);
  EXPECT_TRUE(reporter_->Take().empty());
}

// What is told is what ReusePrefix finds, whatever came and went, and whatever the windows are.
TEST_F(BlockReporterTest, AgreesWithReusePrefix) {
  const std::vector<std::vector<std::int32_t>> shapes = {{0}, {0, 9}, {5, 0, 13}, {0, 0}};
  for (unsigned seed = 0; seed < 40; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed=", seed));
    std::mt19937 rng(seed);
    reporter_.reset();
    told_.clear();
    most_ = static_cast<LossClass>(seed % kLossClasses);
    Make(shapes[seed % shapes.size()], 12 + rng() % 10);
    std::vector<std::vector<Chain>> prompts;
    for (int i = 0; i < 8; ++i) {
      // Few tokens: many prompts begin alike.
      std::vector<TokenId> tokens(4 + rng() % 30);
      for (TokenId& token : tokens) token = static_cast<TokenId>(rng() % 8 == 0);
      prompts.push_back(Chains(tokens));
    }
    for (int i = 0; i < 60; ++i) {
      const auto loss = static_cast<LossClass>(rng() % (static_cast<unsigned>(most_) + 1));
      Run(prompts[rng() % prompts.size()],
          loss == LossClass::kExact ? Lineage()
                                    : Lineage{loss, static_cast<std::int32_t>(rng() % 6)});
      if (rng() % 3 != 0) continue;
      if (rng() % 4 == 0) {
        std::vector<BlockEvent> snapshot = reporter_->TakeSnapshot();
        const auto begin =
            std::ranges::find(snapshot, BlockEvent::Kind::kSnapshotBegin, &BlockEvent::kind);
        ASSERT_NE(begin, snapshot.end());
        EXPECT_EQ(snapshot.back().kind, BlockEvent::Kind::kSnapshotEnd);
        Apply({snapshot.begin(), begin});
        const std::map<Chain, bool> before = std::exchange(told_, {});
        Apply({begin + 1, snapshot.end() - 1});
        EXPECT_EQ(told_, before);
      } else {
        Apply(reporter_->Take());
      }
      for (const std::vector<Chain>& chains : prompts) {
        for (std::size_t c = 0; c <= static_cast<std::size_t>(most_); ++c) {
          const auto accepts = static_cast<LossClass>(c);
          BlockTable table(*pool_);
          EXPECT_EQ(Usable(chains, accepts), table.ReusePrefix(spaces_, accepts, chains));
        }
      }
      // Finding blocks makes no difference.
      EXPECT_TRUE(reporter_->Take().empty());
    }
  }
}

}  // namespace
}  // namespace penstock::engine
