// SPDX-License-Identifier: Apache-2.0
#include "coordinator/prefix_index.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

#include "absl/strings/str_cat.h"

namespace penstock::coordinator {
namespace {

using Kind = BlockEvent::Kind;
using Applied = PrefixIndex::Applied;

Chain ChainOf(std::uint64_t n) {
  Chain chain;
  std::memcpy(chain.bytes.data(), &n, sizeof(n));
  return chain;
}

std::vector<Chain> ChainsTo(std::uint64_t n) {
  std::vector<Chain> chains;
  for (std::uint64_t i = 0; i < n; ++i) chains.push_back(ChainOf(i));
  return chains;
}

BlockEvent Stored(std::uint64_t n, bool ends_prefix = true) {
  return {Kind::kStored, ends_prefix, ChainOf(n)};
}
BlockEvent Removed(std::uint64_t n) { return {Kind::kRemoved, true, ChainOf(n)}; }

std::uint32_t Usable(const PrefixIndex& index, PrefixIndex::Worker worker, std::uint64_t blocks) {
  std::vector<std::uint32_t> usable;
  index.Lookup(ChainsTo(blocks), usable);
  return usable.at(worker);
}

TEST(PrefixIndexTest, ARunEndsAtTheFirstBlockThatIsMissing) {
  PrefixIndex index;
  ASSERT_TRUE(index.Add(0).ok());
  ASSERT_TRUE(index.Add(1).ok());
  const BlockEvent zero[] = {Stored(0), Stored(1), Stored(3)};
  const BlockEvent one[] = {Stored(1), Stored(2)};
  EXPECT_EQ(index.Apply(0, 1, zero), Applied::kApplied);
  EXPECT_EQ(index.Apply(1, 1, one), Applied::kApplied);
  EXPECT_EQ(Usable(index, 0, 4), 2u);
  EXPECT_EQ(Usable(index, 1, 4), 0u);
  EXPECT_EQ(Usable(index, 0, 1), 1u);
  EXPECT_EQ(Usable(index, 0, 0), 0u);
  EXPECT_EQ(index.blocks(), 4u);
}

// Full groups hold blocks 0 to 5, a window group of two blocks those of 4 and 5 only.
TEST(PrefixIndexTest, AWindowedPrefixIsUsableOnlyWhereItEnds) {
  PrefixIndex index;
  ASSERT_TRUE(index.Add(0).ok());
  std::vector<BlockEvent> events;
  for (std::uint64_t i = 0; i < 6; ++i) events.push_back(Stored(i, i == 5));
  index.Apply(0, 1, events);
  EXPECT_EQ(Usable(index, 0, 6), 6u);
  EXPECT_EQ(Usable(index, 0, 9), 6u);
  EXPECT_EQ(Usable(index, 0, 5), 0u);
  const BlockEvent gone[] = {Stored(5, false), Stored(2, true)};
  index.Apply(0, 7, gone);
  EXPECT_EQ(Usable(index, 0, 6), 3u);
}

TEST(PrefixIndexTest, WhatWasSeenIsSkippedAndAHoleDegrades) {
  PrefixIndex index;
  ASSERT_TRUE(index.Add(0).ok());
  const BlockEvent first[] = {Stored(0), Stored(1)};
  const BlockEvent again[] = {Stored(0), Stored(1), Removed(1)};
  const BlockEvent late[] = {Stored(1)};
  EXPECT_EQ(index.Apply(0, 1, first), Applied::kApplied);
  EXPECT_EQ(index.Apply(0, 1, first), Applied::kSeen);
  EXPECT_EQ(index.Apply(0, 1, again), Applied::kApplied);
  EXPECT_EQ(Usable(index, 0, 2), 1u);
  EXPECT_EQ(index.Apply(0, 2, late), Applied::kSeen) << "number 2 came before its removal";
  EXPECT_EQ(Usable(index, 0, 2), 1u);
  EXPECT_FALSE(index.degraded(0));
  EXPECT_EQ(index.Apply(0, 5, late), Applied::kGap);
  EXPECT_TRUE(index.degraded(0));
  EXPECT_EQ(Usable(index, 0, 2), 2u) << "what came after the hole is true";
}

TEST(PrefixIndexTest, ASnapshotReplacesAllAtItsEnd) {
  PrefixIndex index;
  ASSERT_TRUE(index.Add(0).ok());
  const BlockEvent before[] = {Stored(0), Stored(1), Stored(2)};
  index.Apply(0, 3, before);
  ASSERT_TRUE(index.degraded(0));
  const BlockEvent begin[] = {{.kind = Kind::kSnapshotBegin}, Stored(1), Stored(0)};
  const BlockEvent change[] = {Removed(1)};
  const BlockEvent end[] = {{.kind = Kind::kSnapshotEnd}};
  index.Apply(0, 6, begin);
  EXPECT_EQ(Usable(index, 0, 3), 3u) << "the old book is good until the new one is whole";
  index.Apply(0, 9, change);
  EXPECT_EQ(index.Apply(0, 10, end), Applied::kApplied);
  EXPECT_FALSE(index.degraded(0));
  EXPECT_EQ(Usable(index, 0, 3), 1u);
  EXPECT_EQ(index.blocks_of(0), 1u);
}

TEST(PrefixIndexTest, ASnapshotWithAHoleIsNone) {
  PrefixIndex index;
  ASSERT_TRUE(index.Add(0).ok());
  const BlockEvent begin[] = {{.kind = Kind::kSnapshotBegin}, Stored(0)};
  const BlockEvent end[] = {{.kind = Kind::kSnapshotEnd}};
  index.Apply(0, 1, begin);
  EXPECT_EQ(index.Apply(0, 4, end), Applied::kGap);
  EXPECT_TRUE(index.degraded(0));
  EXPECT_EQ(Usable(index, 0, 1), 1u);
  const BlockEvent cleared[] = {{.kind = Kind::kCleared}};
  index.Apply(0, 5, cleared);
  EXPECT_FALSE(index.degraded(0)) << "nothing is held, that is sure";
  EXPECT_EQ(Usable(index, 0, 1), 0u);
}

TEST(PrefixIndexTest, ADroppedWorkerIsGoneAtOnceAndSweptBitByBit) {
  PrefixIndex index;
  for (PrefixIndex::Worker w = 0; w < 20; ++w) {
    ASSERT_TRUE(index.Add(w).ok());
    const BlockEvent events[] = {Stored(0), Stored(1 + w)};
    index.Apply(w, 1, events);
  }
  for (PrefixIndex::Worker w = 1; w < 20; ++w) index.Drop(w);
  EXPECT_EQ(Usable(index, 5, 1), 0u);
  ASSERT_TRUE(index.Add(5).ok());
  EXPECT_EQ(Usable(index, 5, 1), 0u) << "a new life holds nothing of the old one";
  int calls = 0;
  for (; !index.swept(); ++calls) index.Sweep();
  EXPECT_EQ(calls, 256);
  EXPECT_EQ(index.blocks(), 2u);
  EXPECT_EQ(Usable(index, 0, 2), 2u);
}

TEST(PrefixIndexTest, LimitsAreKeptAndCounted) {
  PrefixIndex index({.blocks_max = 3, .worker_blocks_max = 2});
  ASSERT_TRUE(index.Add(0).ok());
  ASSERT_TRUE(index.Add(1).ok());
  const BlockEvent events[] = {Stored(0), Stored(1), Stored(2)};
  index.Apply(0, 1, events);
  EXPECT_EQ(index.unlisted(), 1u);
  EXPECT_EQ(Usable(index, 0, 3), 2u);
  const BlockEvent others[] = {Stored(5), Stored(6)};
  index.Apply(1, 1, others);
  EXPECT_EQ(index.blocks(), 3u);
  EXPECT_EQ(index.unlisted(), 2u);
}

// Random events of many workers against a map; chains are few, so that blocks go from inline to
// wide sets and back, and lives end while others are being swept.
TEST(PrefixIndexTest, AgreesWithModel) {
  struct Model {
    std::map<std::uint64_t, bool> held;  // Block -> ends a prefix.
    std::uint64_t next = 1;
  };
  for (std::uint32_t seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed=", seed));
    std::mt19937 random(seed);
    const auto draw = [&](std::uint32_t n) { return static_cast<std::uint32_t>(random() % n); };
    const std::uint32_t workers = 1 + draw(seed % 3 == 0 ? 200 : 12);
    const std::uint32_t blocks = 1 + draw(seed % 2 == 0 ? 10 : 300);
    PrefixIndex index;
    std::vector<Model> models(workers);
    for (std::uint32_t w = 0; w < workers; ++w) ASSERT_TRUE(index.Add(w).ok());
    for (int step = 0; step < 3000; ++step) {
      const std::uint32_t w = draw(workers);
      Model& model = models[w];
      BlockEvent event = Stored(draw(blocks), draw(4) != 0);
      const std::uint32_t what = draw(100);
      if (what == 0) {
        index.Drop(w);
        ASSERT_TRUE(index.Add(w).ok());
        model = Model();
        continue;
      }
      if (what < 5) {
        index.Sweep();
        continue;
      }
      std::uint64_t block = 0;
      std::memcpy(&block, event.chain.bytes.data(), sizeof(block));
      if (what == 5) {
        event = {.kind = Kind::kCleared};
        model.held.clear();
      } else if (what < 30) {
        event.kind = Kind::kRemoved;
        model.held.erase(block);
      } else {
        model.held[block] = event.ends_prefix;
      }
      ASSERT_EQ(index.Apply(w, model.next++, {&event, 1}), Applied::kApplied);
      if (step % 50 != 0) continue;
      std::vector<std::uint32_t> usable;
      index.Lookup(ChainsTo(blocks), usable);
      for (std::uint32_t i = 0; i < workers; ++i) {
        std::uint32_t want = 0;
        for (std::uint32_t b = 0; b < blocks && models[i].held.contains(b); ++b) {
          if (models[i].held[b]) want = b + 1;
        }
        ASSERT_EQ(usable[i], want) << "worker " << i << " step " << step;
        ASSERT_EQ(index.blocks_of(i), models[i].held.size()) << "worker " << i;
      }
    }
    while (!index.swept()) index.Sweep();
    std::set<std::uint64_t> all;
    for (const Model& model : models) {
      for (const auto& [block, ends] : model.held) all.insert(block);
    }
    EXPECT_EQ(index.blocks(), all.size());
  }
}

}  // namespace
}  // namespace penstock::coordinator
