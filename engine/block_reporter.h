// SPDX-License-Identifier: Apache-2.0
// What the rest of a cluster may know of a pool: which blocks it holds, and after which of them a
// prefix could be reused (as BlockTable::ReusePrefix finds it). Changes gather until they are
// taken, so that what comes and goes in between is never told.
//
// Of a deployment with copies that have a loss it tells the same again for each class that requests
// may accept, under other names (NameUpTo): there a copy of any class up to that one counts.
//
// A block is held when every full group has it (in a pool of window groups alone: when any has). It
// ends a prefix when, besides, each window group has the blocks that the next token would see.
//
// Owned by the engine's thread, as the pool is.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "base/block_event.h"
#include "base/key.h"
#include "base/loss_class.h"
#include "engine/kv_pool.h"

namespace penstock::engine {

class BlockReporter final : public KvPool::Observer {
 public:
  // Observes `pool`, which outlives it. `changed` is called when there is something to take, once
  // until it was taken. Blocks of classes beyond `most` and of other namespaces are not reported,
  // and none that were sealed before. At most 32 groups (CHECKed).
  BlockReporter(KvPool& pool, const LossSpaces& spaces, LossClass most,
                std::function<void()> changed);
  ~BlockReporter() override;

  // What changed since the last call.
  std::vector<BlockEvent> Take();
  // What changed since the last call, and then all that is held, between begin and end.
  std::vector<BlockEvent> TakeSnapshot();

 private:
  enum class State : std::uint8_t { kNone, kHeld, kEnds };
  struct Entry {
    Chain chain;
    Entry* parent = nullptr;  // Null: a first block, or, while no group has it, not known.
    std::vector<Entry*> children;
    // By the class of a copy, a bit for each group that has one.
    std::array<std::uint32_t, kLossClasses> copies = {};
    State told = State::kNone;
    bool dirty = false;

    std::uint32_t groups() const {
      std::uint32_t any = 0;
      for (const std::uint32_t bits : copies) any |= bits;
      return any;
    }
  };

  void OnSealed(std::int32_t group, const KvPool::SealedBlock& block) override;
  void OnEvicted(std::int32_t group, const KvPool::SealedBlock& block, SlabRef slab) override;
  std::optional<std::size_t> ClassOf(const Namespace& space) const;
  Entry& At(const Chain& chain);
  void Change(Entry& entry, std::int32_t group);
  void MarkDirty(Entry& entry, std::int32_t depth);
  State StateOf(const Entry& entry) const;
  void EraseIfUnused(Entry* entry);

  KvPool& pool_;
  const LossSpaces spaces_;
  const std::size_t classes_;
  const std::function<void()> changed_;
  std::uint32_t full_groups_ = 0;  // Bits.
  std::vector<std::int32_t>
      windows_;  // By group: blocks that the next token sees; 0 for full ones.
  absl::flat_hash_map<Chain, std::unique_ptr<Entry>> entries_;
  std::vector<Entry*> dirty_;
};

}  // namespace penstock::engine
