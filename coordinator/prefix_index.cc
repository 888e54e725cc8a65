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

PrefixIndex::PrefixIndex(const Options& options)
    : options_(options), shards_(kShards), visible_bits_(1), dead_bits_(1) {}

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

absl::Status PrefixIndex::NewColumn(Worker worker, Column& column) {
  if (free_columns_.empty()) {
    if (column_workers_.size() >= kColumnsMax) {
      return absl::ResourceExhaustedError(
          absl::StrCat("the prefix index has columns for ", kColumnsMax, " lives of workers, ",
                       dead_columns_.size(), " of them dropped and not yet swept"));
    }
    free_columns_.push_back(static_cast<Column>(column_workers_.size()));
    column_workers_.push_back(0);
    column_blocks_.push_back(0);
    if (column_workers_.size() > words_ * 64) SetWords(words_ * 2);
  }
  column = free_columns_.back();
  free_columns_.pop_back();
  column_workers_[column] = worker;
  column_blocks_[column] = 0;
  return absl::OkStatus();
}

void PrefixIndex::KillColumn(Column column) {
  Clear(visible_bits_.data(), column);
  if (column_blocks_[column] == 0) {
    free_columns_.push_back(column);
    return;
  }
  Set(dead_bits_.data(), column);
  dead_columns_.push_back({column, kShards});
}

absl::Status PrefixIndex::Add(Worker worker) {
  if (worker >= views_.size()) views_.resize(worker + 1);
  Drop(worker);
  View view = {.added = true};
  if (absl::Status status = NewColumn(worker, view.column); !status.ok()) return status;
  Set(visible_bits_.data(), view.column);
  views_[worker] = view;
  return absl::OkStatus();
}

void PrefixIndex::Drop(Worker worker) {
  if (worker >= views_.size() || !views_[worker].added) return;
  View& view = views_[worker];
  KillColumn(view.column);
  if (view.in_snapshot) KillColumn(view.snapshot);
  SetDegraded(view, false);
  view = View();
}

std::size_t PrefixIndex::blocks_of(Worker worker) const {
  const View& view = views_[worker];
  return view.added ? column_blocks_[view.column] : 0;
}

PrefixIndex::Applied PrefixIndex::Apply(Worker worker, std::uint64_t first,
                                        std::span<const BlockEvent> events) {
  CHECK(worker < views_.size() && views_[worker].added);
  View& view = views_[worker];
  Applied result = Applied::kApplied;
  if (first > view.next) {
    result = Applied::kGap;
    SetDegraded(view, true);
    if (view.in_snapshot) {
      view.in_snapshot = false;
      KillColumn(view.snapshot);
    }
    view.next = first;
  }
  const std::uint64_t seen = view.next - first;
  if (seen >= events.size()) return result == Applied::kGap ? result : Applied::kSeen;
  for (const BlockEvent& event : events.subspan(seen)) ApplyOne(worker, event);
  view.next = first + events.size();
  return result;
}

void PrefixIndex::SetDegraded(View& view, bool degraded) {
  if (degraded && !view.degraded) ++degraded_;
  if (!degraded && view.degraded) --degraded_;
  view.degraded = degraded;
}

void PrefixIndex::ApplyOne(Worker worker, const BlockEvent& event) {
  View& view = views_[worker];
  switch (event.kind) {
    case BlockEvent::Kind::kStored:
      Store(view.column, event.chain, event.ends_prefix);
      if (view.in_snapshot) Store(view.snapshot, event.chain, event.ends_prefix);
      return;
    case BlockEvent::Kind::kRemoved:
      Remove(view.column, event.chain);
      if (view.in_snapshot) Remove(view.snapshot, event.chain);
      return;
    case BlockEvent::Kind::kCleared:
      ApplyOne(worker, {.kind = BlockEvent::Kind::kSnapshotBegin});
      ApplyOne(worker, {.kind = BlockEvent::Kind::kSnapshotEnd});
      return;
    case BlockEvent::Kind::kSnapshotBegin: {
      if (view.in_snapshot) KillColumn(view.snapshot);
      // Without a column it stays as it is, degraded, and a later snapshot helps.
      view.in_snapshot = NewColumn(worker, view.snapshot).ok();
      if (!view.in_snapshot) SetDegraded(view, true);
      return;
    }
    case BlockEvent::Kind::kSnapshotEnd:
      if (!view.in_snapshot) return;
      KillColumn(view.column);
      view.column = view.snapshot;
      Set(visible_bits_.data(), view.column);
      view.in_snapshot = false;
      SetDegraded(view, false);
      return;
  }
}

void PrefixIndex::Store(Column column, const Chain& chain, bool ends_prefix) {
  Slot* const slot =
      column_blocks_[column] < options_.worker_blocks_max ? FindOrInsert(chain) : Find(chain);
  if (slot == nullptr) {
    ++unlisted_;
    return;
  }
  const auto id = static_cast<std::uint16_t>(column | (ends_prefix ? kEnd : 0));
  if (slot->ids[0] != kWide) {
    for (std::uint16_t& held : slot->ids) {
      if (held != kNone && (held & ~kEnd) != column) continue;
      if (held == kNone) ++column_blocks_[column];
      held = id;
      return;
    }
    Widen(*slot);
  }
  std::uint64_t* const held = HeldBits(WideOf(*slot));
  if (!Test(held, column)) ++column_blocks_[column];
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
    --column_blocks_[column];
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
    --column_blocks_[column];
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
  visible_bits_.resize(words);
  dead_bits_.resize(words);
}

void PrefixIndex::Sweep() {
  if (dead_columns_.empty()) return;
  SweepShard(shards_[sweep_next_]);
  sweep_next_ = (sweep_next_ + 1) % kShards;
  std::erase_if(dead_columns_, [&](DeadColumn& dead) {
    if (--dead.shards_left > 0) return false;
    CHECK_EQ(column_blocks_[dead.column], 0u);
    Clear(dead_bits_.data(), dead.column);
    free_columns_.push_back(dead.column);
    return true;
  });
}

void PrefixIndex::SweepInline(Slot& slot) {
  std::size_t kept = 0;
  for (const std::uint16_t id : slot.ids) {
    if (id == kNone) break;
    const auto column = static_cast<Column>(id & ~kEnd);
    if (Test(dead_bits_.data(), column)) {
      --column_blocks_[column];
    } else {
      slot.ids[kept++] = id;
    }
  }
  std::fill(slot.ids.begin() + static_cast<std::ptrdiff_t>(kept), slot.ids.end(), kNone);
}

void PrefixIndex::SweepWide(Slot& slot) {
  std::uint64_t* const held = HeldBits(WideOf(slot));
  for (std::size_t k = 0; k < words_; ++k) {
    for (std::uint64_t bits = held[k] & dead_bits_[k]; bits != 0; bits &= bits - 1) {
      --column_blocks_[k * 64 + static_cast<std::size_t>(std::countr_zero(bits))];
    }
    held[k] &= ~dead_bits_[k];
    held[words_ + k] &= ~dead_bits_[k];
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
  usable.assign(views_.size(), 0);
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
  active_ = visible_bits_;
  current_.assign(words_, 0);
  const auto write = [&](std::size_t k, std::uint64_t bits, std::size_t blocks) {
    for (; bits != 0; bits &= bits - 1) {
      const std::size_t column = k * 64 + static_cast<std::size_t>(std::countr_zero(bits));
      usable[column_workers_[column]] = static_cast<std::uint32_t>(blocks);
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
                                        : usable[column_workers_[column]]});
  }
  return i + 1;
}

// Neighbours mostly have the same holders: then all that is left stays, and its numbers are written
// when that changes.
void PrefixIndex::LookupFew(std::span<const Chain> chains, std::size_t from,
                            std::vector<std::uint32_t>& usable, std::vector<Found>& left) const {
  const auto write = [&](const Found& found) {
    usable[column_workers_[found.column]] = found.usable;
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
