// SPDX-License-Identifier: Apache-2.0
#include "engine/block_reporter.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace penstock::engine {

BlockReporter::BlockReporter(KvPool& pool, const LossSpaces& spaces, LossClass most,
                             std::function<void()> changed)
    : pool_(pool),
      spaces_(spaces),
      classes_(static_cast<std::size_t>(most) + 1),
      changed_(std::move(changed)) {
  CHECK_LE(pool.groups(), 32);
  const std::int32_t block_tokens = pool.block_tokens();
  for (std::int32_t g = 0; g < pool.groups(); ++g) {
    const std::int32_t window = pool.layout(g).group.window_tokens;
    if (window == 0) full_groups_ |= 1u << g;
    // After a block the next token sees the window_tokens - 1 before it.
    windows_.push_back(window == 0 ? 0 : (window - 1 + block_tokens - 1) / block_tokens);
  }
  pool_.AddObserver(*this);
}

BlockReporter::~BlockReporter() { pool_.RemoveObserver(*this); }

BlockReporter::Entry& BlockReporter::At(const Chain& chain) {
  std::unique_ptr<Entry>& entry = entries_[chain];
  if (entry == nullptr) entry = std::make_unique<Entry>(Entry{.chain = chain, .children = {}});
  return *entry;
}

std::optional<std::size_t> BlockReporter::ClassOf(const Namespace& space) const {
  const auto end = spaces_.of.begin() + static_cast<std::ptrdiff_t>(classes_);
  const auto at = std::find(spaces_.of.begin(), end, space);
  if (at == end) return std::nullopt;
  return static_cast<std::size_t>(at - spaces_.of.begin());
}

void BlockReporter::OnSealed(std::int32_t group, const KvPool::SealedBlock& block) {
  const std::optional<std::size_t> of = ClassOf(block.key.space);
  if (!of.has_value()) return;
  for (std::size_t c = *of; c < classes_; ++c) {
    const auto up_to = static_cast<LossClass>(c);
    Entry& entry = At(NameUpTo(block.key.chain, up_to));
    if (block.parent.has_value() && entry.parent == nullptr) {
      entry.parent = &At(NameUpTo(*block.parent, up_to));
      entry.parent->children.push_back(&entry);
    }
    entry.copies[*of] |= 1u << group;
    Change(entry, group);
  }
}

void BlockReporter::OnEvicted(std::int32_t group, const KvPool::SealedBlock& block, SlabRef) {
  const std::optional<std::size_t> of = ClassOf(block.key.space);
  if (!of.has_value()) return;
  for (std::size_t c = *of; c < classes_; ++c) {
    const auto it = entries_.find(NameUpTo(block.key.chain, static_cast<LossClass>(c)));
    if (it == entries_.end()) continue;  // Sealed before this reporter was made.
    it->second->copies[*of] &= ~(1u << group);
    Change(*it->second, group);
  }
}

// A block of a window group is seen from behind it, too.
void BlockReporter::Change(Entry& entry, std::int32_t group) {
  const bool was_clean = dirty_.empty();
  MarkDirty(entry, std::max(1, windows_[static_cast<std::size_t>(group)]));
  if (was_clean) changed_();
}

void BlockReporter::MarkDirty(Entry& entry, std::int32_t depth) {
  if (!std::exchange(entry.dirty, true)) dirty_.push_back(&entry);
  if (depth <= 1) return;
  for (Entry* const child : entry.children) MarkDirty(*child, depth - 1);
}

BlockReporter::State BlockReporter::StateOf(const Entry& entry) const {
  const bool held =
      full_groups_ == 0 ? entry.groups() != 0 : (entry.groups() & full_groups_) == full_groups_;
  if (!held) return State::kNone;
  for (std::size_t g = 0; g < windows_.size(); ++g) {
    const Entry* at = &entry;
    for (std::int32_t i = 0; i < windows_[g] && at != nullptr; ++i, at = at->parent) {
      if ((at->groups() & 1u << g) == 0) return State::kHeld;
    }
  }
  return State::kEnds;
}

std::vector<BlockEvent> BlockReporter::Take() {
  std::vector<BlockEvent> changes;
  for (Entry* const entry : std::exchange(dirty_, {})) {
    entry->dirty = false;
    const State state = StateOf(*entry);
    if (state != entry->told) {
      changes.push_back(
          {.kind = state == State::kNone ? BlockEvent::Kind::kRemoved : BlockEvent::Kind::kStored,
           .ends_prefix = state == State::kEnds,
           .chain = entry->chain});
      entry->told = state;
    }
    EraseIfUnused(entry);
  }
  return changes;
}

// Those that no group has and no child stands on, up to the first that is needed.
void BlockReporter::EraseIfUnused(Entry* entry) {
  while (entry != nullptr && entry->groups() == 0 && entry->children.empty() && !entry->dirty &&
         entry->told == State::kNone) {
    Entry* const parent = entry->parent;
    if (parent != nullptr) std::erase(parent->children, entry);
    // A key of its own: erasing by one that dies with its entry would read it afterwards.
    const Chain chain = entry->chain;
    entries_.erase(chain);
    entry = parent;
  }
}

std::vector<BlockEvent> BlockReporter::TakeSnapshot() {
  std::vector<BlockEvent> changes = Take();
  changes.push_back({.kind = BlockEvent::Kind::kSnapshotBegin});
  for (const auto& [chain, entry] : entries_) {
    if (entry->told == State::kNone) continue;
    changes.push_back({.kind = BlockEvent::Kind::kStored,
                       .ends_prefix = entry->told == State::kEnds,
                       .chain = chain});
  }
  changes.push_back({.kind = BlockEvent::Kind::kSnapshotEnd});
  return changes;
}

}  // namespace penstock::engine
