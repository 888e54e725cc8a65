// SPDX-License-Identifier: Apache-2.0
// Which store nodes hold which copies of blocks: the coordinator's copy of the nodes' own books.
//
// Copies have names (base/key.h): of one block, of one group, exact. An index serves all models and
// groups: whoever looks up a chain makes the names of the copies that it can use. Events are
// numbered, and snapshots taken, as lives.h says; a node stored again has moved to another tier.
//
// Blocks lie in memory in the order of their chains (block_arena.h), each with the number of its set
// of holders (holder_sets.h); a table of hashes finds where a chain begins. So a run of blocks with
// the same holders is compared in one sweep and answered as one entry, and a change in its middle
// splits it for free. Where no run is (parents were not told, or came late) each block is looked up,
// with the memory of those to come asked for ahead.
//
// Wrong entries cost time, never correctness: who fetches verifies the block.
//
// Memory: 20 bytes a block, at most twice that where chains branch; 8 a slot, slots at most 3/4
// full; holders once for each set. Bytes of copies are kept to within a sixteenth. What is beyond
// the limits is not listed, and counted.
//
// Owned by the coordinator's loop; not thread-safe. No clock; the same calls give the same answers.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "base/copy_event.h"
#include "base/key.h"
#include "coordinator/block_arena.h"
#include "coordinator/holder_sets.h"
#include "coordinator/lives.h"

namespace penstock::coordinator {

class StoreIndex {
 public:
  using Node = Lives::Member;
  struct Options {
    std::size_t blocks_max = 16u << 20;      // About 1 GiB.
    std::size_t node_copies_max = 8u << 20;  // Those of its dropped lives not counted.
    std::size_t sets_max = 1u << 20;         // Of holders.
    std::size_t holders_max = 64;            // Of a block.
  };
  struct Holder {
    Node node = 0;
    Tier tier = Tier::kHost;
    std::uint8_t codec = 0;
    std::uint64_t bytes = 0;  // Of all blocks of the run, as they travel.
  };
  struct Run {
    std::uint32_t first = 0;
    std::uint32_t end = 0;
    std::uint32_t holders_first = 0;  // In Found::holders; at least one.
    std::uint32_t holders_end = 0;
  };
  // Of a lookup, or several: runs in order, none beside another with the same holders.
  struct Found {
    std::vector<Run> runs = {};
    std::vector<Holder> holders = {};
    std::span<const Holder> of(const Run& run) const {
      return std::span(holders).subspan(run.holders_first, run.holders_end - run.holders_first);
    }
    void clear() {
      runs.clear();
      holders.clear();
    }
  };
  // At a block that nobody has a lookup ends, or goes on: then the runs have a hole.
  enum class AtHole : std::uint8_t { kEnd, kGoOn };

  explicit StoreIndex(const Options& options);
  StoreIndex() : StoreIndex(Options()) {}

  // As Lives::Add. Drop is seen by lookups at once; Sweep takes the copies out of memory.
  absl::Status Add(Node node) { return lives_.Add(node); }
  void Drop(Node node) { lives_.Drop(node); }
  Applied Apply(Node node, std::uint64_t first, std::span<const CopyEvent> events);
  bool degraded(Node node) const { return lives_.degraded(node); }
  std::size_t degraded() const { return lives_.degraded(); }

  // Adds who has which of `names` (of a chain's blocks, first block first) from `first` on.
  void Lookup(std::span<const CopyName> names, std::uint32_t first, AtHole at_hole,
              Found& found) const;

  // Bounded work (1/256 of the blocks), to be called now and then: forgets what was dropped.
  void Sweep();
  bool swept() const { return lives_.swept(); }

  std::size_t blocks() const { return blocks_; }
  std::size_t copies_of(Node node) const { return lives_.held_by(node); }
  std::uint64_t unlisted() const { return unlisted_; }  // Refused by a limit, in all.
  std::size_t bytes() const;                            // Of its memory, but for sets and members.

 private:
  using Column = Lives::Column;
  using Position = BlockArena::Position;
  using Set = HolderSets::Set;
  static constexpr std::size_t kParts = 256;  // Of a sweep.
  static constexpr std::size_t kShards = 64;  // Each grows by itself, in little time.
  static constexpr Position kNowhere = BlockArena::kNowhere;
  class Walk;
  // Of blocks that are looked up one by one: the memory of their slots is asked for so many blocks
  // before it is read, then that of the blocks themselves.
  struct Ahead {
    static constexpr std::size_t kHash = 32;
    static constexpr std::size_t kGuess = 16;
    std::size_t hashed = 0;   // Those before it.
    std::size_t guessed = 0;  // Likewise.
    std::array<std::uint64_t, kHash> mixed = {};
    std::array<Position, kGuess> guesses = {};
  };

  struct Slot {
    std::uint32_t tag = 0;  // The low half of the hash.
    Position at = kNowhere;
  };
  struct Shard {
    std::vector<Slot, HugeAllocator<Slot>> slots;  // Open addressing; a power of two.
    std::size_t used = 0;
  };

  static_assert(kShards == 1 << (64 - 58));
  static std::uint64_t Mix(const CopyName& name);
  Shard& ShardOf(std::uint64_t mixed) { return shards_[mixed >> 58]; }
  const Shard& ShardOf(std::uint64_t mixed) const { return shards_[mixed >> 58]; }
  Position Find(const CopyName& name, std::uint64_t mixed) const;
  Position Guess(std::uint64_t mixed) const;  // As Find, by the tag alone.
  void Prefetch(std::uint64_t mixed) const;
  void LookAhead(std::span<const CopyName> names, std::size_t i, Ahead& ahead) const;
  void Insert(std::uint64_t mixed, Position at);
  void Erase(std::uint64_t mixed, Position at);
  Slot& SlotOf(std::uint64_t mixed, Position at);
  static void Grow(Shard& shard);

  void ApplyOne(Node node, const CopyEvent& event);
  void Store(Column column, const CopyEvent& event);
  void Remove(Column column, const CopyName& name);
  // Its live holders but `column`, in scratch_; dead ones are taken off their columns' counts.
  void Gather(const ArenaBlock& block, Column column);
  void SetHolders(Position at);  // Those in scratch_; without any the block goes.
  void Pack(Position at);
  void SweepPage(std::size_t page);

  const Options options_;
  Lives lives_{kParts};
  HolderSets sets_;
  BlockArena arena_;
  std::vector<Shard> shards_;
  std::size_t blocks_ = 0;
  std::uint64_t unlisted_ = 0;
  std::vector<SetHolder> scratch_;
};

}  // namespace penstock::coordinator
