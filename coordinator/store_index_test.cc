// SPDX-License-Identifier: Apache-2.0
#include "coordinator/store_index.h"

#include <gtest/gtest.h>
#include <malloc.h>
#include <unistd.h>

#include <fstream>
#include <map>
#include <random>
#include <set>
#include <string>

#include "absl/strings/str_cat.h"

namespace penstock::coordinator {
namespace {

using Kind = CopyEvent::Kind;
using AtHole = StoreIndex::AtHole;

CopyName NameOf(std::uint64_t n) {
  CopyName name;
  std::memcpy(name.bytes.data(), &n, sizeof(n));
  return name;
}

std::vector<CopyName> NamesTo(std::uint64_t n) {
  std::vector<CopyName> names;
  for (std::uint64_t i = 0; i < n; ++i) names.push_back(NameOf(i));
  return names;
}

// Block n of a chain of all numbers.
CopyEvent Stored(std::uint64_t n, Tier tier = Tier::kHost, std::uint32_t bytes = 1024) {
  CopyEvent event = {.name = NameOf(n), .tier = tier, .codec = 1, .bytes = bytes};
  if (n > 0) event.parent = NameOf(n - 1);
  return event;
}
CopyEvent Removed(std::uint64_t n) { return {.kind = Kind::kRemoved, .name = NameOf(n)}; }

// "0-3: 1 host, 2 disk; 5-6: 1 host".
std::string Look(const StoreIndex& index, std::uint64_t blocks, AtHole at_hole = AtHole::kEnd,
                 std::uint32_t first = 0) {
  StoreIndex::Found found;
  index.Lookup(NamesTo(blocks), first, at_hole, found);
  std::string text;
  for (const StoreIndex::Run& run : found.runs) {
    absl::StrAppend(&text, text.empty() ? "" : "; ", run.first, "-", run.end, ":");
    std::map<StoreIndex::Node, Tier> holders;
    for (const StoreIndex::Holder& holder : found.of(run)) holders[holder.node] = holder.tier;
    for (const auto& [node, tier] : holders) {
      absl::StrAppend(&text, node == holders.begin()->first ? " " : ", ", node, " ",
                      std::string(ToString(tier)));
    }
  }
  return text;
}

class StoreIndexTest : public ::testing::Test {
 protected:
  StoreIndexTest() {
    for (StoreIndex::Node node = 0; node < 4; ++node) EXPECT_TRUE(index_.Add(node).ok());
  }
  void Say(StoreIndex::Node node, const std::vector<CopyEvent>& events) {
    EXPECT_EQ(index_.Apply(node, next_[node], events), Applied::kApplied);
    next_[node] += events.size();
  }
  void Store(StoreIndex::Node node, std::uint64_t first, std::uint64_t end,
             Tier tier = Tier::kHost) {
    for (std::uint64_t n = first; n < end; ++n) Say(node, {Stored(n, tier)});
  }

  StoreIndex index_;
  std::map<StoreIndex::Node, std::uint64_t> next_ = {{0, 1}, {1, 1}, {2, 1}, {3, 1}};
};

TEST_F(StoreIndexTest, BlocksWithTheSameHoldersAreOneEntry) {
  Store(0, 0, 1000);
  EXPECT_EQ(Look(index_, 2000), "0-1000: 0 host");
  Store(1, 0, 600);
  EXPECT_EQ(Look(index_, 2000), "0-600: 0 host, 1 host; 600-1000: 0 host");
  EXPECT_EQ(Look(index_, 300), "0-300: 0 host, 1 host");
  EXPECT_EQ(index_.blocks(), 1000u);
  EXPECT_EQ(index_.copies_of(1), 600u);
}

TEST_F(StoreIndexTest, AChangeInTheMiddleSplitsARun) {
  Store(0, 0, 100);
  Say(0, {Stored(50, Tier::kDisk)});
  EXPECT_EQ(Look(index_, 100), "0-50: 0 host; 50-51: 0 disk; 51-100: 0 host");
  Say(0, {Stored(50, Tier::kHost)});
  EXPECT_EQ(Look(index_, 100), "0-100: 0 host");
  Say(0, {Removed(70)});
  EXPECT_EQ(Look(index_, 100), "0-70: 0 host");
  EXPECT_EQ(Look(index_, 100, AtHole::kGoOn), "0-70: 0 host; 71-100: 0 host");
  EXPECT_EQ(Look(index_, 100, AtHole::kEnd, 71), "71-100: 0 host");
  EXPECT_EQ(Look(index_, 100, AtHole::kEnd, 100), "");
}

TEST_F(StoreIndexTest, BranchesAndBlocksWithoutParentsAreFound) {
  Store(0, 0, 10);
  for (std::uint64_t branch = 1; branch < 50; ++branch) {
    for (std::uint64_t n = 0; n < branch; ++n) {
      CopyEvent event = Stored(1000 * branch + n);
      event.parent = n > 0 ? NameOf(1000 * branch + n - 1) : NameOf(branch % 10);
      Say(0, {event});
    }
  }
  for (std::uint64_t branch = 1; branch < 50; ++branch) {
    std::vector<CopyName> names = NamesTo(branch % 10 + 1);
    for (std::uint64_t n = 0; n < 60; ++n) names.push_back(NameOf(1000 * branch + n));
    StoreIndex::Found found;
    index_.Lookup(names, 0, AtHole::kEnd, found);
    ASSERT_EQ(found.runs.size(), 1u);
    EXPECT_EQ(found.runs[0].end, branch % 10 + 1 + branch);
  }
}

TEST_F(StoreIndexTest, BytesAreWithinASixteenth) {
  for (const std::uint32_t bytes : {0u, 1u, 7u, 8u, 9u, 1000u, 720u << 10, 1u << 31, UINT32_MAX}) {
    const double told = SizeOfCode(SizeCode(bytes));
    EXPECT_NEAR(told, bytes, bytes / 16.0) << bytes;
  }
  Say(0, {Stored(0, Tier::kHost, 1 << 20), Stored(1, Tier::kHost, 3 << 20)});
  StoreIndex::Found found;
  index_.Lookup(NamesTo(2), 0, AtHole::kEnd, found);
  ASSERT_EQ(found.runs.size(), 1u) << "bytes alone make no other run";
  EXPECT_NEAR(static_cast<double>(found.holders[0].bytes), 4 << 20, 1 << 18);
}

TEST_F(StoreIndexTest, AHoleDegradesUntilASnapshotHasPassed) {
  Store(0, 0, 3);
  EXPECT_EQ(index_.Apply(0, 2, std::vector{Stored(1)}), Applied::kSeen);
  EXPECT_EQ(index_.Apply(0, 9, std::vector{Stored(3)}), Applied::kGap);
  EXPECT_TRUE(index_.degraded(0));
  EXPECT_EQ(index_.degraded(), 1u);
  EXPECT_EQ(Look(index_, 9), "0-4: 0 host") << "what came after the hole is true";
  EXPECT_EQ(index_.Apply(0, 10, std::vector{CopyEvent{.kind = Kind::kSnapshotBegin}, Stored(0)}),
            Applied::kApplied);
  EXPECT_EQ(Look(index_, 9), "0-4: 0 host") << "the old book is good until the new one is whole";
  EXPECT_EQ(index_.Apply(0, 12, std::vector{CopyEvent{.kind = Kind::kSnapshotEnd}}),
            Applied::kApplied);
  EXPECT_EQ(Look(index_, 9), "0-1: 0 host");
  EXPECT_FALSE(index_.degraded(0));
  EXPECT_EQ(index_.copies_of(0), 1u);
  while (!index_.swept()) index_.Sweep();
  EXPECT_EQ(index_.blocks(), 1u);
}

TEST_F(StoreIndexTest, ADroppedNodeIsGoneAtOnceAndSweptPartByPart) {
  Store(0, 0, 3000);
  Store(1, 0, 100);
  Store(2, 50, 60, Tier::kDisk);
  index_.Drop(0);
  EXPECT_EQ(Look(index_, 3000), "0-50: 1 host; 50-60: 1 host, 2 disk; 60-100: 1 host");
  ASSERT_TRUE(index_.Add(0).ok());
  next_[0] = 1;
  EXPECT_EQ(Look(index_, 200, AtHole::kEnd, 100), "") << "a new life holds nothing of the old one";
  Store(0, 100, 120);
  int calls = 0;
  for (; !index_.swept(); ++calls) index_.Sweep();
  EXPECT_EQ(calls, 256);
  EXPECT_EQ(index_.blocks(), 120u);
  EXPECT_EQ(Look(index_, 3000),
            "0-50: 1 host; 50-60: 1 host, 2 disk; 60-100: 1 host; 100-120: 0 host");
}

TEST(StoreIndexLimitsTest, AreKeptAndCounted) {
  StoreIndex index({.blocks_max = 300, .node_copies_max = 200, .sets_max = 3, .holders_max = 2});
  for (StoreIndex::Node node = 0; node < 3; ++node) ASSERT_TRUE(index.Add(node).ok());
  std::vector<CopyEvent> events;
  for (std::uint64_t n = 0; n < 250; ++n) events.push_back(Stored(n));
  index.Apply(0, 1, events);
  EXPECT_EQ(index.unlisted(), 50u) << "node_copies_max";
  index.Apply(1, 1, events);
  EXPECT_EQ(index.unlisted(), 100u);
  EXPECT_EQ(Look(index, 250), "0-200: 0 host, 1 host");
  index.Apply(2, 1, std::vector{Stored(0)});
  EXPECT_EQ(index.unlisted(), 101u) << "holders_max";
  index.Apply(1, 251, std::vector{Removed(0), Removed(1)});
  index.Apply(2, 2, std::vector{Stored(0)});
  index.Apply(2, 3, std::vector{Stored(1, Tier::kDisk)});
  EXPECT_EQ(index.unlisted(), 102u) << "sets_max";
  EXPECT_EQ(Look(index, 3), "0-1: 0 host, 2 host; 1-2: 0 host; 2-3: 0 host, 1 host");
  for (std::uint64_t n = 0; n < 500; ++n) {
    index.Apply(2, 4 + n, std::vector{Stored(1000 + n)});
  }
  EXPECT_LE(index.blocks(), 300u);
}

// Chains of 64: their last block begins a strip of its own, the worst for memory.
TEST(StoreIndexMemoryTest, TenMillionCopiesTakeAtMost64BytesEach) {
#if defined(PENSTOCK_SANITIZED)
  GTEST_SKIP() << "the allocator is not the real one";
#endif
  constexpr std::uint64_t kCopies = 10'000'000;
  const auto allocated = [] {  // Of the process, in memory.
    std::size_t pages = 0, resident = 0;
    std::ifstream("/proc/self/statm") >> pages >> resident;
    return resident * static_cast<std::size_t>(getpagesize());
  };
  malloc_trim(0);  // What others left is not taken for ours.
  const std::size_t before = allocated();
  StoreIndex index({.node_copies_max = kCopies});
  ASSERT_TRUE(index.Add(0).ok());
  const auto name = [](std::uint64_t n) { return NameOf(n * 0x9e3779b97f4a7c15u); };
  for (std::uint64_t n = 0; n < kCopies; ++n) {
    CopyEvent event = {.name = name(n), .codec = 1, .bytes = 1024};
    if (n % 64 > 0) event.parent = name(n - 1);
    ASSERT_EQ(index.Apply(0, n + 1, {&event, 1}), Applied::kApplied);
  }
  ASSERT_EQ(index.copies_of(0), kCopies);
  const double bytes = static_cast<double>(allocated() - before);
  RecordProperty("bytes_per_copy", absl::StrCat(bytes / kCopies));
  EXPECT_LE(bytes / kCopies, 64.0);
  EXPECT_NEAR(static_cast<double>(index.bytes()), bytes, bytes / 50) << "bytes() tells the truth";
}

// Random events of some nodes against a map: any order, any parents (also those that make no
// sense), holes, snapshots with changes among them, ends of lives, sweeps.
TEST(StoreIndexModelTest, AgreesWithModel) {
  struct Copy {
    Tier tier;
    std::uint8_t codec;
    bool operator==(const Copy&) const = default;
  };
  struct Model {
    std::map<std::uint64_t, Copy> held, snapshot;
    bool in_snapshot = false;
    bool degraded = false;
    std::uint64_t next = 1;
  };
  for (std::uint32_t seed = 0; seed < 120; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed=", seed));
    std::mt19937 random(seed);
    const auto draw = [&](std::uint32_t n) { return static_cast<std::uint32_t>(random() % n); };
    const std::uint32_t nodes = 1 + draw(5);
    const std::uint32_t blocks = 1 + draw(seed % 2 == 0 ? 40 : 700);
    const std::uint32_t removals = draw(60);
    StoreIndex index;
    std::vector<Model> models(nodes);
    for (std::uint32_t n = 0; n < nodes; ++n) ASSERT_TRUE(index.Add(n).ok());
    std::uint32_t walk = 0;
    for (int step = 0; step < 3000; ++step) {
      const std::uint32_t n = draw(nodes);
      Model& model = models[n];
      // Mostly one behind another, as prompts are stored.
      walk = draw(4) == 0 ? draw(blocks) : (walk + 1) % blocks;
      CopyEvent event = Stored(walk, static_cast<Tier>(2 + draw(3)), draw(1 << 30));
      event.codec = static_cast<std::uint8_t>(draw(4) == 0 ? draw(256) : 1);
      if (draw(5) == 0) event.parent.reset();
      if (draw(10) == 0) event.parent = NameOf(draw(blocks + 2));
      const std::uint32_t what = draw(1000);
      if (what < 4) {
        index.Drop(n);
        ASSERT_TRUE(index.Add(n).ok());
        model = Model();
        continue;
      }
      if (what < 60) {
        index.Sweep();
        continue;
      }
      Applied want = Applied::kApplied;
      if (what < 64) {
        model.next += 1 + draw(9);
        model.in_snapshot = false;
        model.degraded = true;
        want = Applied::kGap;
      }
      if (what < 70) {
        event = {.kind = Kind::kCleared};
        const std::uint64_t next = model.next;
        model = Model();
        model.next = next;
      } else if (what < 90) {
        event = {.kind = Kind::kSnapshotBegin};
        model.in_snapshot = true;
        model.snapshot.clear();
      } else if (what < 110) {
        event = {.kind = Kind::kSnapshotEnd};
        if (model.in_snapshot) {
          model.held = std::move(model.snapshot);
          model.snapshot.clear();
          model.in_snapshot = model.degraded = false;
        }
      } else if (what < 110 + removals * 10) {
        event.kind = Kind::kRemoved;
        model.held.erase(walk);
        model.snapshot.erase(walk);
      } else {
        model.held[walk] = {event.tier, event.codec};
        if (model.in_snapshot) model.snapshot[walk] = {event.tier, event.codec};
      }
      ASSERT_EQ(index.Apply(n, model.next++, {&event, 1}), want) << "step " << step;
      ASSERT_EQ(index.degraded(n), model.degraded);
      if (step % 50 != 0) continue;
      const std::uint32_t first = draw(3) == 0 ? draw(blocks) : 0;
      for (const AtHole at_hole : {AtHole::kEnd, AtHole::kGoOn}) {
        StoreIndex::Found found;
        index.Lookup(NamesTo(blocks), first, at_hole, found);
        std::uint32_t block = first;
        bool ended = false;
        for (const StoreIndex::Run& run : found.runs) {
          ASSERT_LE(block, run.first);
          ASSERT_LT(run.first, run.end);
          for (; block < run.end; ++block) {
            std::map<StoreIndex::Node, Copy> told, held;
            if (block >= run.first) {
              for (const auto& h : found.of(run)) told[h.node] = {h.tier, h.codec};
              ASSERT_EQ(told.size(), found.of(run).size());
            }
            for (std::uint32_t i = 0; i < nodes; ++i) {
              const auto at = models[i].held.find(block);
              if (at != models[i].held.end()) held[i] = at->second;
            }
            ASSERT_EQ(told, held) << "block " << block << " step " << step;
            ended |= held.empty();
          }
        }
        ASSERT_FALSE(ended && at_hole == AtHole::kEnd);
        const std::uint32_t end = at_hole == AtHole::kEnd ? std::min(block + 1, blocks) : blocks;
        for (; block < end; ++block) {
          for (const Model& m : models) ASSERT_FALSE(m.held.contains(block)) << block;
        }
      }
      for (std::uint32_t i = 0; i < nodes; ++i) {
        ASSERT_EQ(index.copies_of(i), models[i].held.size()) << "node " << i;
      }
    }
    while (!index.swept()) index.Sweep();
    std::set<std::uint64_t> all;
    for (const Model& model : models) {
      for (const auto& [block, copy] : model.held) all.insert(block);
      for (const auto& [block, copy] : model.snapshot) all.insert(block);
    }
    EXPECT_EQ(index.blocks(), all.size());
  }
}

}  // namespace
}  // namespace penstock::coordinator
