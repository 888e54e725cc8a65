// SPDX-License-Identifier: Apache-2.0
// Which worker holds which leading blocks: the coordinator's copy of the workers' own books.
//
// What a worker reports. Per block one bit beside "held": `ends_prefix`, the prefix that ends with
// this block can be used there, which is so when every full group holds all its blocks and every
// window group holds those of the last w tokens. The worker knows its groups, so the index need
// not: a prefix of i blocks is usable when all i are held and the last one ends a prefix. Without
// window groups every held block does. When a window block goes, the worker reports the blocks
// whose prefixes it ended once more, as stored with the bit off.
//
// Events are numbered, and snapshots taken, as lives.h says.
//
// Wrong entries cost time, never correctness: the worker itself says what it really reuses.
//
// Memory: 32 bytes a slot, slots at most 3/4 full, up to 8 holders inside; more holders are two
// bits per worker. Blocks beyond the limits are not listed, and counted.
//
// Owned by the coordinator's loop; not thread-safe. No clock; the same calls give the same answers.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "base/block_event.h"
#include "base/key.h"
#include "coordinator/lives.h"

namespace penstock::coordinator {

class PrefixIndex {
 public:
  using Worker = Lives::Member;
  struct Options {
    std::size_t blocks_max = 8u << 20;
    std::size_t worker_blocks_max = 4u << 20;
  };
  using Applied = coordinator::Applied;

  explicit PrefixIndex(const Options& options);
  PrefixIndex() : PrefixIndex(Options()) {}

  // A worker's new life: it holds nothing, and its next event has number 1. RESOURCE_EXHAUSTED with
  // both numbers when dropped lives take all columns: Sweep, then try again.
  absl::Status Add(Worker worker) { return lives_.Add(worker); }
  // Its blocks are gone for Lookup at once; Sweep takes them out of memory. Unknown: ignored.
  void Drop(Worker worker) { lives_.Drop(worker); }

  // Events number `first` to first + events.size() - 1 of a worker that was added.
  Applied Apply(Worker worker, std::uint64_t first, std::span<const BlockEvent> events);
  bool degraded(Worker worker) const { return lives_.degraded(worker); }
  std::size_t degraded() const { return lives_.degraded(); }  // How many are.

  // usable[w] = how many leading `chains` worker w can use; 0 for those without. Resized to all
  // workers ever added. Ends at the first block that nobody has.
  void Lookup(std::span<const Chain> chains, std::vector<std::uint32_t>& usable) const;

  // Bounded work (1/256 of the table), to be called now and then: forgets what was dropped.
  void Sweep();
  bool swept() const { return lives_.swept(); }

  std::size_t blocks() const { return blocks_; }
  std::size_t blocks_of(Worker worker) const { return lives_.held_by(worker); }
  std::uint64_t unlisted() const { return unlisted_; }  // Refused by a limit, in all.

 private:
  // A bit of wide sets, an id in slots.
  using Column = Lives::Column;
  static constexpr std::size_t kShards = 256;
  static constexpr std::size_t kInline = 8;
  static constexpr std::uint16_t kEnd = 0x8000;  // Of an id: it ends a prefix.
  static constexpr std::uint16_t kNone = 0xffff;
  static constexpr std::uint16_t kWide = 0xfffe;  // ids[0]; ids[2], ids[3]: which set.
  static_assert(Lives::kColumnsMax < 0x7ffe);

  struct Slot {
    Chain chain;
    // Holders first, then kNone. A slot without a holder is free.
    std::array<std::uint16_t, kInline> ids;
  };
  struct Shard {
    std::vector<Slot> slots;  // Open addressing; a power of two.
    std::size_t used = 0;
  };
  struct Found {  // Where a lookup stands while few workers are left.
    Column column;
    std::uint32_t usable;
  };

  static std::uint64_t Mix(const Chain& chain);
  const Slot* Find(const Chain& chain, std::uint64_t mixed) const;
  Slot* Find(const Chain& chain);
  Slot* FindOrInsert(const Chain& chain);
  void Erase(Shard& shard, std::size_t at);
  void Grow(Shard& shard);

  void ApplyOne(Worker worker, const BlockEvent& event);
  void Store(Column column, const Chain& chain, bool ends_prefix);
  void Remove(Column column, const Chain& chain);
  void RemoveFrom(Slot& slot, Column column);
  void SweepShard(Shard& shard);
  void SweepInline(Slot& slot);
  void SweepWide(Slot& slot);

  // Wide sets: held bits, then ends bits.
  std::uint32_t WideOf(const Slot& slot) const {
    return slot.ids[2] | static_cast<std::uint32_t>(slot.ids[3]) << 16;
  }
  std::uint64_t* HeldBits(std::uint32_t wide) { return wide_.data() + wide * 2 * words_; }
  const std::uint64_t* HeldBits(std::uint32_t wide) const {
    return wide_.data() + wide * 2 * words_;
  }
  void Widen(Slot& slot);
  void Narrow(Slot& slot);
  void SetWords(std::size_t words);

  // Parts of Lookup; each returns the block that it stopped at.
  std::size_t LookupWide(std::span<const Chain> chains, std::vector<std::uint32_t>& usable,
                         std::vector<Found>& left) const;
  void LookupFew(std::span<const Chain> chains, std::size_t from,
                 std::vector<std::uint32_t>& usable, std::vector<Found>& left) const;
  void Prefetch(std::uint64_t mixed) const;

  const Options options_;
  Lives lives_{kShards};
  std::vector<Shard> shards_;
  std::size_t blocks_ = 0;
  std::uint64_t unlisted_ = 0;

  std::size_t words_ = 1;  // 64-bit words of one set of columns.
  std::vector<std::uint64_t> wide_;
  std::vector<std::uint32_t> free_wide_;
  // Scratch of Lookup, kept for its memory.
  mutable std::vector<std::uint64_t> active_, current_, mixed_;
  mutable std::vector<Found> left_;
};

}  // namespace penstock::coordinator
