// SPDX-License-Identifier: Apache-2.0
// Lookups in the store index.
#include <algorithm>
#include <array>

#include "coordinator/store_index.h"

namespace penstock::coordinator {
namespace {

// A run that is shorter is not worth its own wait.
constexpr std::uint32_t kShortRun = 8;

}  // namespace

// Makes runs of the blocks that it is told of, in their order.
class StoreIndex::Walk {
 public:
  Walk(const StoreIndex& index, std::uint32_t first, Found& found)
      : index_(index), found_(found), next_(first) {}

  // The next block has these holders. False: none of them lives.
  bool Take(Set set) {
    if (set == set_) {
      ++count_;
      return true;
    }
    Flush();
    holders_.clear();
    for (const SetHolder& holder : index_.sets_.of(set)) {
      if (index_.lives_.visible(holder.column)) holders_.push_back(holder);
    }
    if (holders_.empty()) return false;
    set_ = set;
    count_ = 1;
    return true;
  }
  void Skip() {
    Flush();
    ++next_;
  }
  Set set() const { return set_; }  // Of the last block taken.

  void Flush() {
    if (count_ > 0) {
      if (Continues()) {
        Run& run = found_.runs.back();
        run.end += count_;
        for (std::size_t i = 0; i < holders_.size(); ++i) {
          found_.holders[run.holders_first + i].bytes += BytesOf(holders_[i]);
        }
      } else {
        Run run = {next_, next_ + count_, static_cast<std::uint32_t>(found_.holders.size()), 0};
        for (const SetHolder& holder : holders_) {
          found_.holders.push_back(
              {index_.lives_.member(holder.column), holder.tier, holder.codec, BytesOf(holder)});
        }
        run.holders_end = static_cast<std::uint32_t>(found_.holders.size());
        found_.runs.push_back(run);
      }
      next_ += count_;
    }
    count_ = 0;
    set_ = HolderSets::kNobody;
  }

 private:
  std::uint64_t BytesOf(const SetHolder& holder) const {
    return std::uint64_t{SizeOfCode(holder.size)} * count_;
  }
  // Unlike sets may be alike but for bytes, and for lives that have ended.
  bool Continues() const {
    if (found_.runs.empty() || found_.runs.back().end != next_) return false;
    return std::ranges::equal(
        found_.of(found_.runs.back()), holders_, [&](const Holder& a, const SetHolder& b) {
          return a.node == index_.lives_.member(b.column) && a.tier == b.tier && a.codec == b.codec;
        });
  }

  const StoreIndex& index_;
  Found& found_;
  std::uint32_t next_;  // Blocks before it are in `found_`, or skipped.
  Set set_ = HolderSets::kNobody;
  std::uint32_t count_ = 0;         // Blocks with that set, from next_ on.
  std::vector<SetHolder> holders_;  // Of those, the living.
};

StoreIndex::Position StoreIndex::Guess(std::uint64_t mixed) const {
  const Shard& shard = ShardOf(mixed);
  if (shard.used == 0) return kNowhere;
  const std::size_t mask = shard.slots.size() - 1;
  const auto tag = static_cast<std::uint32_t>(mixed);
  for (std::size_t i = tag & mask;; i = (i + 1) & mask) {
    const Slot& slot = shard.slots[i];
    if (slot.at == kNowhere || slot.tag == tag) return slot.at;
  }
}

void StoreIndex::LookAhead(std::span<const CopyName> names, std::size_t i, Ahead& ahead) const {
  ahead.hashed = std::max(ahead.hashed, i);
  ahead.guessed = std::max(ahead.guessed, i);
  for (; ahead.hashed < std::min(i + Ahead::kHash, names.size()); ++ahead.hashed) {
    std::uint64_t& mixed = ahead.mixed[ahead.hashed % Ahead::kHash];
    mixed = Mix(names[ahead.hashed]);
    Prefetch(mixed);
  }
  for (; ahead.guessed < std::min(i + Ahead::kGuess, names.size()); ++ahead.guessed) {
    const Position guess = Guess(ahead.mixed[ahead.guessed % Ahead::kHash]);
    ahead.guesses[ahead.guessed % Ahead::kGuess] = guess;
    if (guess != kNowhere) __builtin_prefetch(&arena_.at(guess));
  }
}

void StoreIndex::Prefetch(std::uint64_t mixed) const {
  const Shard& shard = ShardOf(mixed);
  if (shard.used == 0) return;
  __builtin_prefetch(&shard.slots[static_cast<std::uint32_t>(mixed) & (shard.slots.size() - 1)]);
}

void StoreIndex::Lookup(std::span<const CopyName> names, std::uint32_t first, AtHole at_hole,
                        Found& found) const {
  Walk walk(*this, first, found);
  Ahead ahead;
  std::uint32_t row = kShortRun;  // Blocks that were found one behind another.
  Position at = kNowhere;         // Of the block before.
  for (std::size_t i = first; i < names.size(); ++i) {
    if (at != kNowhere && (at + 1) % BlockArena::kPageBlocks != 0 && arena_.at(at + 1).set != 0 &&
        arena_.at(at + 1).Is(names[i])) {
      ++at;
      ++row;
    } else if (row < kShortRun) {
      LookAhead(names, i, ahead);
      at = ahead.guesses[i % Ahead::kGuess];
      if (at != kNowhere && !arena_.at(at).Is(names[i])) {
        at = Find(names[i], ahead.mixed[i % Ahead::kHash]);
      }
      row = 0;
    } else {
      at = Find(names[i], Mix(names[i]));
      row = 0;
    }
    if (at != kNowhere && walk.Take(arena_.at(at).set)) continue;
    if (at_hole == AtHole::kEnd) break;
    walk.Skip();
  }
  walk.Flush();
}

}  // namespace penstock::coordinator
