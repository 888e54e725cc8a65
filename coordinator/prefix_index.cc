// SPDX-License-Identifier: Apache-2.0
#include "coordinator/prefix_index.h"

#include <algorithm>
#include <bit>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace penstock::coordinator {
namespace {

constexpr std::size_t kSlotsMin = 16;  // Of a shard that has any.

bool Test(const std::uint64_t* bits, std::size_t i) { return (bits[i / 64] >> (i % 64)) & 1; }
void Set(std::uint64_t* bits, std::size_t i) { bits[i / 64] |= std::uint64_t{1} << (i % 64); }
void Clear(std::uint64_t* bits, std::size_t i) { bits[i / 64] &= ~(std::uint64_t{1} << (i % 64)); }

// As ==, but without a call for 16 bytes.
bool Same(const Chain& a, const Chain& b) {
  std::uint64_t x[2];
  std::uint64_t y[2];
  std::memcpy(x, a.bytes.data(), sizeof(x));
  std::memcpy(y, b.bytes.data(), sizeof(y));
  return ((x[0] ^ y[0]) | (x[1] ^ y[1])) == 0;
}

}  // namespace

PrefixIndex::PrefixIndex(const Options& options) : options_(options), shards_(kShards) {}

// Chains are uniform already; mixing keeps tables even where tests count them up.
std::uint64_t PrefixIndex::Mix(const Chain& chain) {
  std::uint64_t halves[2];
  static_assert(sizeof(halves) == sizeof(chain.bytes));
  std::memcpy(halves, chain.bytes.data(), sizeof(halves));
  const std::uint64_t x = (halves[0] ^ std::rotl(halves[1], 32)) * 0x9e3779b97f4a7c15u;
  return x ^ (x >> 32);
}

const PrefixIndex::Slot* PrefixIndex::Find(const Chain& chain, std::uint64_t mixed) const {
  const Shard& shard = shards_[mixed >> 56];
  if (shard.used == 0) return nullptr;
  const std::size_t mask = shard.slots.size() - 1;
  for (std::size_t at = mixed & mask;; at = (at + 1) & mask) {
    const Slot& slot = shard.slots[at];
    if (slot.ids[0] == kNone) return nullptr;
    if (Same(slot.chain, chain)) return &slot;
  }
}

PrefixIndex::Slot* PrefixIndex::Find(const Chain& chain) {
  return const_cast<Slot*>(std::as_const(*this).Find(chain, Mix(chain)));
}

PrefixIndex::Slot* PrefixIndex::FindOrInsert(const Chain& chain) {
  const std::uint64_t mixed = Mix(chain);
  Shard& shard = shards_[mixed >> 56];
  if ((shard.used + 1) * 4 > shard.slots.size() * 3) {
    if (Slot* const slot = Find(chain)) return slot;
    Grow(shard);
  }
  const std::size_t mask = shard.slots.size() - 1;
  std::size_t at = mixed & mask;
  for (; shard.slots[at].ids[0] != kNone; at = (at + 1) & mask) {
    if (Same(shard.slots[at].chain, chain)) return &shard.slots[at];
  }
  if (blocks_ >= options_.blocks_max) return nullptr;
  shard.slots[at].chain = chain;
  ++shard.used;
  ++blocks_;
  return &shard.slots[at];
}

void PrefixIndex::Grow(Shard& shard) {
  Slot free_slot;
  free_slot.ids.fill(kNone);
  std::vector<Slot> old(std::max(kSlotsMin, shard.slots.size() * 2), free_slot);
  old.swap(shard.slots);
  const std::size_t mask = shard.slots.size() - 1;
  for (const Slot& slot : old) {
    if (slot.ids[0] == kNone) continue;
    std::size_t at = Mix(slot.chain) & mask;
    while (shard.slots[at].ids[0] != kNone) at = (at + 1) & mask;
    shard.slots[at] = slot;
  }
}

// Shifts back what follows in the run, so that no probe meets a hole before its slot.
void PrefixIndex::Erase(Shard& shard, std::size_t at) {
  const std::size_t mask = shard.slots.size() - 1;
  --shard.used;
  --blocks_;
  for (std::size_t next = (at + 1) & mask;; next = (next + 1) & mask) {
    Slot& slot = shard.slots[next];
    if (slot.ids[0] == kNone) break;
    const std::size_t home = Mix(slot.chain) & mask;
    if (((next - home) & mask) < ((next - at) & mask)) continue;  // It would lie before its home.
    shard.slots[at] = slot;
    at = next;
  }
  shard.slots[at].ids.fill(kNone);
}

Applied PrefixIndex::Apply(Worker worker, std::uint64_t first, std::span<const BlockEvent> events) {
  const Lives::Begun begun = lives_.Begin(worker, first, events.size());
  for (const BlockEvent& event : events.subspan(begun.skip)) ApplyOne(worker, event);
  return begun.applied;
}

void PrefixIndex::ApplyOne(Worker worker, const BlockEvent& event) {
  switch (event.kind) {
    case BlockEvent::Kind::kStored:
      if (lives_.words() > words_) SetWords(lives_.words());
      lives_.ForColumns(worker,
                        [&](Column column) { Store(column, event.chain, event.ends_prefix); });
      return;
    case BlockEvent::Kind::kRemoved:
      lives_.ForColumns(worker, [&](Column column) { Remove(column, event.chain); });
      return;
    case BlockEvent::Kind::kCleared:
      return lives_.Clear(worker);
    case BlockEvent::Kind::kSnapshotBegin:
      return lives_.BeginSnapshot(worker);
    case BlockEvent::Kind::kSnapshotEnd:
      return lives_.EndSnapshot(worker);
  }
}

void PrefixIndex::Store(Column column, const Chain& chain, bool ends_prefix) {
  Slot* const slot =
      lives_.held(column) < options_.worker_blocks_max ? FindOrInsert(chain) : Find(chain);
  if (slot == nullptr) {
    ++unlisted_;
    return;
  }
  const auto id = static_cast<std::uint16_t>(column | (ends_prefix ? kEnd : 0));
  if (slot->ids[0] != kWide) {
    for (std::uint16_t& held : slot->ids) {
      if (held != kNone && (held & ~kEnd) != column) continue;
      if (held == kNone) ++lives_.held(column);
      held = id;
      return;
    }
    Widen(*slot);
  }
  std::uint64_t* const held = HeldBits(WideOf(*slot));
  if (!Test(held, column)) ++lives_.held(column);
  Set(held, column);
  if (ends_prefix) {
    Set(held + words_, column);
  } else {
    Clear(held + words_, column);
  }
}

void PrefixIndex::Remove(Column column, const Chain& chain) {
  Slot* const slot = Find(chain);
  if (slot == nullptr) return;
  RemoveFrom(*slot, column);
  if (slot->ids[0] != kNone) return;
  Shard& shard = shards_[Mix(chain) >> 56];
  Erase(shard, static_cast<std::size_t>(slot - shard.slots.data()));
}

void PrefixIndex::RemoveFrom(Slot& slot, Column column) {
  if (slot.ids[0] == kWide) {
    std::uint64_t* const held = HeldBits(WideOf(slot));
    if (!Test(held, column)) return;
    --lives_.held(column);
    Clear(held, column);
    Clear(held + words_, column);
    Narrow(slot);
    return;
  }
  for (std::size_t i = 0; i < kInline && slot.ids[i] != kNone; ++i) {
    if ((slot.ids[i] & ~kEnd) != column) continue;
    std::copy(slot.ids.begin() + static_cast<std::ptrdiff_t>(i) + 1, slot.ids.end(),
              slot.ids.begin() + static_cast<std::ptrdiff_t>(i));
    slot.ids.back() = kNone;
    --lives_.held(column);
    return;
  }
}

void PrefixIndex::Widen(Slot& slot) {
  if (free_wide_.empty()) {
    free_wide_.push_back(static_cast<std::uint32_t>(wide_.size() / (2 * words_)));
    wide_.resize(wide_.size() + 2 * words_);
  }
  const std::uint32_t wide = free_wide_.back();
  free_wide_.pop_back();
  std::uint64_t* const held = HeldBits(wide);
  std::fill_n(held, 2 * words_, 0);
  for (const std::uint16_t id : slot.ids) {
    Set(held, id & ~kEnd);
    if (id & kEnd) Set(held + words_, id & ~kEnd);
  }
  slot.ids = {kWide, 0, static_cast<std::uint16_t>(wide), static_cast<std::uint16_t>(wide >> 16)};
}

// Back into the slot once half of it would do: a block at the limit does not go to and fro.
void PrefixIndex::Narrow(Slot& slot) {
  const std::uint32_t wide = WideOf(slot);
  const std::uint64_t* const held = HeldBits(wide);
  std::size_t count = 0;
  for (std::size_t k = 0; k < words_; ++k) {
    count += static_cast<std::size_t>(std::popcount(held[k]));
  }
  if (count > kInline / 2) return;
  slot.ids.fill(kNone);
  std::size_t n = 0;
  for (std::size_t k = 0; k < words_; ++k) {
    for (std::uint64_t bits = held[k]; bits != 0; bits &= bits - 1) {
      const std::size_t column = k * 64 + static_cast<std::size_t>(std::countr_zero(bits));
      slot.ids[n++] = static_cast<std::uint16_t>(column | (Test(held + words_, column) ? kEnd : 0));
    }
  }
  free_wide_.push_back(wide);
}

void PrefixIndex::SetWords(std::size_t words) {
  std::vector<std::uint64_t> wide(wide_.size() / words_ * words);
  for (std::size_t set = 0; set < wide_.size() / words_; ++set) {
    std::copy_n(wide_.data() + set * words_, words_, wide.data() + set * words);
  }
  wide_ = std::move(wide);
  words_ = words;
}

void PrefixIndex::Sweep() {
  if (lives_.swept()) return;
  SweepShard(shards_[lives_.part()]);
  lives_.Swept();
}

void PrefixIndex::SweepInline(Slot& slot) {
  std::size_t kept = 0;
  for (const std::uint16_t id : slot.ids) {
    if (id == kNone) break;
    const auto column = static_cast<Column>(id & ~kEnd);
    if (lives_.dead(column)) {
      --lives_.held(column);
    } else {
      slot.ids[kept++] = id;
    }
  }
  std::fill(slot.ids.begin() + static_cast<std::ptrdiff_t>(kept), slot.ids.end(), kNone);
}

void PrefixIndex::SweepWide(Slot& slot) {
  std::uint64_t* const held = HeldBits(WideOf(slot));
  for (std::size_t k = 0; k < words_; ++k) {
    for (std::uint64_t bits = held[k] & lives_.dead_bits()[k]; bits != 0; bits &= bits - 1) {
      --lives_.held(static_cast<Column>(k * 64 + static_cast<std::size_t>(std::countr_zero(bits))));
    }
    held[k] &= ~lives_.dead_bits()[k];
    held[words_ + k] &= ~lives_.dead_bits()[k];
  }
  Narrow(slot);
}

void PrefixIndex::SweepShard(Shard& shard) {
  for (std::size_t at = 0; at < shard.slots.size();) {
    Slot& slot = shard.slots[at];
    if (slot.ids[0] == kNone) {
      ++at;
      continue;
    }
    slot.ids[0] == kWide ? SweepWide(slot) : SweepInline(slot);
    if (slot.ids[0] != kNone) {
      ++at;
    } else {
      Erase(shard, at);  // The next of its run may be here now.
    }
  }
}

void PrefixIndex::Prefetch(std::uint64_t mixed) const {
  const Shard& shard = shards_[mixed >> 56];
  if (shard.used > 0) __builtin_prefetch(&shard.slots[mixed & (shard.slots.size() - 1)]);
}

// The memory that a block is in is asked for this many blocks ahead, so that their waits overlap.
static constexpr std::size_t kAhead = 24;

void PrefixIndex::Lookup(std::span<const Chain> chains, std::vector<std::uint32_t>& usable) const {
  usable.assign(lives_.members(), 0);
  mixed_.resize(chains.size());
  for (std::size_t i = 0; i < chains.size(); ++i) mixed_[i] = Mix(chains[i]);
  for (std::size_t i = 0; i < std::min(kAhead, chains.size()); ++i) Prefetch(mixed_[i]);
  left_.clear();
  const std::size_t at = LookupWide(chains, usable, left_);
  LookupFew(chains, at, usable, left_);
}

// While every block so far is held by many. `current_` are the columns that can use all of them,
// whose numbers are written when they no longer can: not once per block.
std::size_t PrefixIndex::LookupWide(std::span<const Chain> chains,
                                    std::vector<std::uint32_t>& usable,
                                    std::vector<Found>& left) const {
  active_ = lives_.visible_bits();
  active_.resize(words_);
  current_.assign(words_, 0);
  const auto write = [&](std::size_t k, std::uint64_t bits, std::size_t blocks) {
    for (; bits != 0; bits &= bits - 1) {
      const std::size_t column = k * 64 + static_cast<std::size_t>(std::countr_zero(bits));
      usable[lives_.member(static_cast<Column>(column))] = static_cast<std::uint32_t>(blocks);
    }
  };
  std::size_t i = 0;
  const Slot* slot = nullptr;
  for (; i < chains.size(); ++i) {
    if (i + kAhead < chains.size()) Prefetch(mixed_[i + kAhead]);
    slot = Find(chains[i], mixed_[i]);
    if (slot == nullptr || slot->ids[0] != kWide) break;
    const std::uint64_t* const held = HeldBits(WideOf(*slot));
    std::uint64_t any = 0;
    for (std::size_t k = 0; k < words_; ++k) {
      active_[k] &= held[k];
      any |= active_[k];
      const std::uint64_t ends = active_[k] & held[words_ + k];
      write(k, current_[k] & ~ends, i);
      current_[k] = ends;
    }
    if (any == 0) return chains.size();
  }
  for (std::size_t k = 0; k < words_; ++k) write(k, current_[k], i);
  if (i == chains.size() || slot == nullptr) return chains.size();
  for (const std::uint16_t id : slot->ids) {
    if (id == kNone) break;
    const auto column = static_cast<Column>(id & ~kEnd);
    if (!Test(active_.data(), column)) continue;
    left.push_back({column, (id & kEnd) ? static_cast<std::uint32_t>(i + 1)
                                        : usable[lives_.member(static_cast<Column>(column))]});
  }
  return i + 1;
}

// Neighbours mostly have the same holders: then all that is left stays, and its numbers are written
// when that changes.
void PrefixIndex::LookupFew(std::span<const Chain> chains, std::size_t from,
                            std::vector<std::uint32_t>& usable, std::vector<Found>& left) const {
  const auto write = [&](const Found& found) {
    usable[lives_.member(found.column)] = found.usable;
  };
  const auto holds = [&](const Slot& slot, Found& found, std::size_t i) {
    bool held = false;
    bool ends = false;
    if (slot.ids[0] == kWide) {
      const std::uint64_t* const bits = HeldBits(WideOf(slot));
      held = Test(bits, found.column);
      ends = Test(bits + words_, found.column);
    } else {
      for (const std::uint16_t id : slot.ids) {
        if ((id & ~kEnd) != found.column) continue;
        held = true;
        ends = id & kEnd;
      }
    }
    if (ends) found.usable = static_cast<std::uint32_t>(i + 1);
    return held;
  };
  const Slot* last = nullptr;  // All that is left has it, and can use the prefix that it ends.
  std::size_t i = from;
  const auto settle = [&] {
    if (last == nullptr) return;
    for (Found& found : left) found.usable = static_cast<std::uint32_t>(i);
  };
  for (; i < chains.size() && !left.empty(); ++i) {
    if (i + kAhead < chains.size()) Prefetch(mixed_[i + kAhead]);
    const Slot* const slot = Find(chains[i], mixed_[i]);
    if (slot == nullptr) break;
    if (last != nullptr && slot->ids == last->ids) continue;
    settle();
    last = slot->ids[0] == kWide ? nullptr : slot;
    std::erase_if(left, [&](Found& found) {
      if (holds(*slot, found, i)) {
        if (found.usable != i + 1) last = nullptr;
        return false;
      }
      write(found);
      return true;
    });
  }
  settle();
  for (const Found& found : left) write(found);
}

}  // namespace penstock::coordinator
