// SPDX-License-Identifier: Apache-2.0
// The table, and what events do to it; lookups are in store_lookup.cc.
#include "coordinator/store_index.h"

#include <algorithm>
#include <bit>

#include "base/check.h"

namespace penstock::coordinator {
namespace {

constexpr std::size_t kSlotsMin = 16;  // Of a shard that has any.

}  // namespace

// Room for all blocks, and as many positions again in strips that are not full.
StoreIndex::StoreIndex(const Options& options)
    : options_(options),
      arena_(options.blocks_max / (BlockArena::kPageBlocks / 2) + 1),
      shards_(kShards) {}

// Names are uniform where nobody lies; mixing keeps tables even where tests count them up.
std::uint64_t StoreIndex::Mix(const CopyName& name) {
  std::uint64_t halves[2];
  std::memcpy(halves, name.bytes.data(), sizeof(halves));
  const std::uint64_t x = (halves[0] ^ std::rotl(halves[1], 32)) * 0x9e3779b97f4a7c15u;
  return x ^ (x >> 32);
}

StoreIndex::Position StoreIndex::Find(const CopyName& name, std::uint64_t mixed) const {
  const Shard& shard = ShardOf(mixed);
  if (shard.used == 0) return kNowhere;
  const std::size_t mask = shard.slots.size() - 1;
  const auto tag = static_cast<std::uint32_t>(mixed);
  for (std::size_t i = tag & mask;; i = (i + 1) & mask) {
    const Slot& slot = shard.slots[i];
    if (slot.at == kNowhere) return kNowhere;
    if (slot.tag == tag && arena_.at(slot.at).Is(name)) return slot.at;
  }
}

StoreIndex::Slot& StoreIndex::SlotOf(std::uint64_t mixed, Position at) {
  Shard& shard = ShardOf(mixed);
  const std::size_t mask = shard.slots.size() - 1;
  std::size_t i = static_cast<std::uint32_t>(mixed) & mask;
  while (shard.slots[i].at != at) i = (i + 1) & mask;
  return shard.slots[i];
}

void StoreIndex::Insert(std::uint64_t mixed, Position at) {
  Shard& shard = ShardOf(mixed);
  if ((shard.used + 1) * 4 > shard.slots.size() * 3) Grow(shard);
  const std::size_t mask = shard.slots.size() - 1;
  const auto tag = static_cast<std::uint32_t>(mixed);
  std::size_t i = tag & mask;
  while (shard.slots[i].at != kNowhere) i = (i + 1) & mask;
  shard.slots[i] = {tag, at};
  ++shard.used;
  ++blocks_;
}

void StoreIndex::Grow(Shard& shard) {
  std::vector<Slot, HugeAllocator<Slot>> old(std::max(kSlotsMin, shard.slots.size() * 2));
  old.swap(shard.slots);
  const std::size_t mask = shard.slots.size() - 1;
  for (const Slot& slot : old) {
    if (slot.at == kNowhere) continue;
    std::size_t i = slot.tag & mask;
    while (shard.slots[i].at != kNowhere) i = (i + 1) & mask;
    shard.slots[i] = slot;
  }
}

// Shifts back what follows in the row, so that no probe meets a hole before its slot.
void StoreIndex::Erase(std::uint64_t mixed, Position at) {
  Shard& shard = ShardOf(mixed);
  const std::size_t mask = shard.slots.size() - 1;
  --shard.used;
  --blocks_;
  auto hole = static_cast<std::size_t>(&SlotOf(mixed, at) - shard.slots.data());
  for (std::size_t next = (hole + 1) & mask;; next = (next + 1) & mask) {
    const Slot slot = shard.slots[next];
    if (slot.at == kNowhere) break;
    if (((next - slot.tag) & mask) < ((next - hole) & mask)) continue;  // Before its home.
    shard.slots[hole] = slot;
    hole = next;
  }
  shard.slots[hole] = Slot();
}

std::size_t StoreIndex::bytes() const {
  std::size_t bytes = arena_.bytes() + shards_.capacity() * sizeof(Shard);
  for (const Shard& shard : shards_) bytes += shard.slots.capacity() * sizeof(Slot);
  return bytes;
}

Applied StoreIndex::Apply(Node node, std::uint64_t first, std::span<const CopyEvent> events) {
  const Lives::Begun begun = lives_.Begin(node, first, events.size());
  for (const CopyEvent& event : events.subspan(begun.skip)) ApplyOne(node, event);
  return begun.applied;
}

void StoreIndex::ApplyOne(Node node, const CopyEvent& event) {
  switch (event.kind) {
    case CopyEvent::Kind::kStored:
      return lives_.ForColumns(node, [&](Column column) { Store(column, event); });
    case CopyEvent::Kind::kRemoved:
      return lives_.ForColumns(node, [&](Column column) { Remove(column, event.name); });
    case CopyEvent::Kind::kCleared:
      return lives_.Clear(node);
    case CopyEvent::Kind::kSnapshotBegin:
      return lives_.BeginSnapshot(node);
    case CopyEvent::Kind::kSnapshotEnd:
      return lives_.EndSnapshot(node);
  }
}

void StoreIndex::Gather(const ArenaBlock& block, Column column) {
  scratch_.clear();
  for (const SetHolder& holder : sets_.of(block.set)) {
    if (lives_.dead(holder.column)) {
      --lives_.held(holder.column);
    } else if (holder.column != column) {
      scratch_.push_back(holder);
    }
  }
}

void StoreIndex::SetHolders(Position at) {
  ArenaBlock& block = arena_.at(at);
  const CopyName name = block.copy_name();
  block.set = sets_.Replace(block.set, scratch_);
  if (block.set != HolderSets::kNobody) return;
  Erase(Mix(name), at);
  arena_.Free(at);
}

void StoreIndex::Store(Column column, const CopyEvent& event) {
  const SetHolder holder = {column, event.tier, event.codec, SizeCode(event.bytes)};
  const bool room = lives_.held(column) < options_.node_copies_max;
  const std::uint64_t mixed = Mix(event.name);
  Position at = Find(event.name, mixed);
  const std::span<const SetHolder> before =
      at == kNowhere ? std::span<const SetHolder>() : sets_.of(arena_.at(at).set);
  if (at == kNowhere) {
    scratch_.clear();
  } else {
    if (std::ranges::find(before, holder) != before.end()) return;
    Gather(arena_.at(at), column);
  }
  const bool held =
      std::ranges::any_of(before, [&](const SetHolder& other) { return other.column == column; });
  scratch_.insert(std::ranges::upper_bound(scratch_, column, {}, &SetHolder::column), holder);
  const bool listed = (held || (room && scratch_.size() <= options_.holders_max)) &&
                      (sets_.size() < options_.sets_max || sets_.Has(scratch_));
  if (!listed) {
    ++unlisted_;
    if (at == kNowhere) return;
    std::erase(scratch_, holder);
    if (held) --lives_.held(column);
    return SetHolders(at);
  }
  if (at == kNowhere) {
    if (blocks_ < options_.blocks_max) {
      at = arena_.Place(event.parent.has_value() ? Find(*event.parent, Mix(*event.parent))
                                                 : kNowhere);
    }
    if (at == kNowhere) {
      ++unlisted_;
      return;
    }
    std::memcpy(arena_.at(at).name, event.name.bytes.data(), sizeof(ArenaBlock::name));
    Insert(mixed, at);
  }
  if (!held) ++lives_.held(column);
  SetHolders(at);
}

void StoreIndex::Remove(Column column, const CopyName& name) {
  const Position at = Find(name, Mix(name));
  if (at == kNowhere) return;
  const std::span<const SetHolder> holders = sets_.of(arena_.at(at).set);
  const auto held = std::ranges::find(holders, column, &SetHolder::column);
  if (held == holders.end()) return;
  Gather(arena_.at(at), column);
  --lives_.held(column);
  const bool last = scratch_.empty();
  SetHolders(at);
  // Not what is still to be swept: it must not get to where that was done.
  if (last && lives_.swept()) Pack(at);
}

void StoreIndex::Pack(Position at) {
  arena_.Pack(at, [this](Position from, Position to) {
    SlotOf(Mix(arena_.at(to).copy_name()), from).at = to;
  });
}

void StoreIndex::Sweep() {
  if (lives_.swept()) return;
  for (std::size_t page = lives_.part(); page < arena_.pages(); page += kParts) SweepPage(page);
  lives_.Swept();
}

void StoreIndex::SweepPage(std::size_t page) {
  const Position base = static_cast<Position>(page * BlockArena::kPageBlocks);
  const auto dead = [&](const SetHolder& holder) { return lives_.dead(holder.column); };
  bool freed = false;
  for (std::uint64_t live = arena_.live(page); live != 0; live &= live - 1) {
    const Position at = base + static_cast<Position>(std::countr_zero(live));
    if (std::ranges::none_of(sets_.of(arena_.at(at).set), dead)) continue;
    Gather(arena_.at(at), Lives::kColumnsMax);
    freed |= scratch_.empty();
    SetHolders(at);
  }
  if (!freed) return;
  for (std::uint64_t live = arena_.live(page); live != 0; live &= live - 1) {
    const Position at = base + static_cast<Position>(std::countr_zero(live));
    if ((arena_.live(page) >> (at - base) & 1) != 0) Pack(at);
  }
}

}  // namespace penstock::coordinator
