// SPDX-License-Identifier: Apache-2.0
// The blocks that hold one sequence's KV, in every group of the pool: growing at the end, shared
// with other sequences, copied before a shared one is written, let go where no later token can see
// them.
//
// Owned by its sequence, used by the engine's loop alone. The pool must outlive it. Blocks are
// counted from the sequence's beginning, the same in all groups.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/key.h"
#include "base/loss_class.h"
#include "engine/kv_pool.h"
#include "engine/step_runner.h"

namespace penstock::engine {

// The first block with a token that a query at `position` sees; window_tokens as in KvGroup.
inline std::int32_t FirstVisibleBlock(std::int32_t position, std::int32_t window_tokens,
                                      std::int32_t block_tokens) {
  if (window_tokens == 0 || position < window_tokens) return 0;
  return (position - window_tokens + 1) / block_tokens;
}

// Bytes of slabs that an otherwise empty pool must have for one sequence of so many tokens, when
// it grows by no more than a block at a time.
std::size_t BytesToHold(const KvPool& pool, std::int32_t tokens);
// The most tokens, up to `tokens_max`, for which BytesToHold fits in the pool's budget.
std::int32_t TokensThatFit(const KvPool& pool, std::int32_t tokens_max);

class BlockTable {
 public:
  // `tenant`: whose blocks it seals.
  explicit BlockTable(KvPool& pool, std::uint32_t tenant = 0);
  ~BlockTable() { Release(); }
  BlockTable(const BlockTable&) = delete;
  BlockTable& operator=(const BlockTable&) = delete;

  // Makes sure that every group has `block`: one it already has, or the next. False when the pool
  // had no memory for it; groups that got theirs keep it, so the call can be repeated.
  bool Extend(std::int32_t block);
  // Makes sure that no other sequence holds `block`, and that it may be written, by copying it
  // where one does, or where it is mapped. False as above.
  bool MakeOwn(std::int32_t block);

  // Holds all blocks of `other`, too. This table must be empty.
  void ShareFrom(const BlockTable& other);
  // Takes the longest usable prefix that the pool has, in whole blocks: chains[i] names block i. A
  // prefix is usable when full groups have all of its blocks and window groups those that the next
  // token sees. Of each block the copy of the least loss, up to `accepts`; the lineage is that of
  // what was taken. Returns its blocks. This table must be empty.
  std::int32_t ReusePrefix(const LossSpaces& spaces, LossClass accepts,
                           std::span<const Chain> chains);
  // The end of the run of blocks that the pool has behind the first `blocks`, as far as it is
  // usable there: `blocks` itself where none is.
  std::int32_t UsableEnd(const LossSpaces& spaces, LossClass accepts, std::span<const Chain> chains,
                         std::int32_t blocks) const;
  // Takes that run, behind the first `blocks`, which this table has, sealed; it lets go of what it
  // has beyond. Returns the run's end.
  std::int32_t ReuseMore(const LossSpaces& spaces, LossClass accepts, std::span<const Chain> chains,
                         std::int32_t blocks);
  // Makes the blocks up to chains.size(), which are full, findable, as of the lineage. Where the
  // pool has a block of that name already, it is held in place of this sequence's own.
  void Seal(const LossSpaces& spaces, std::span<const Chain> chains);
  // The same of one block of `group` alone, whichever those before are: a copy of class `loss`.
  void SealBlock(const LossSpaces& spaces, std::span<const Chain> chains, std::int32_t group,
                 std::int32_t block, LossClass loss);

  // Which of its blocks are not what computing all anew would give. It outlives Release, for
  // blocks that are saved meanwhile, until the next ReusePrefix.
  const Lineage& lineage() const { return lineage_; }
  // What came from elsewhere is of `other`; so is what is computed behind it.
  void Join(const Lineage& other) { lineage_.Join(other); }

  // Holds `slab`, whose reference the table takes over, in place of what it has for `block` of
  // `group`, which it must have.
  void Replace(std::int32_t group, std::int32_t block, SlabRef slab);
  // Whether a mapped block that it holds, or has copied from, may have changed under who read it.
  bool Changed() const;
  // Those that it holds.
  std::vector<std::shared_ptr<const MappedBlock>> Mapped() const;

  // Lets go of blocks that no token at `position` or later sees.
  void DropInvisible(std::int32_t position);
  // The same, and leaves out the blocks between the end and the first that is visible then: for
  // KV that is computed elsewhere.
  void StartAtVisible(std::int32_t position);
  // Extends every group, from its end, up to `block`. False when the pool had no memory for all.
  bool ExtendTo(std::int32_t block);
  // Lets go of blocks at and above `block`.
  void DropFrom(std::int32_t block);
  // Lets go of everything, last block first.
  void Release() { DropFrom(0); }

  // What BytesToHold(pool, tokens) asks beyond the slabs that this table has.
  std::size_t BytesMissing(std::int32_t tokens) const;
  bool empty() const;

  // For swapping: the table as it was saved, block by block. Puts an empty table's group at
  // `first_block`; appends a slab whose reference the table takes over.
  void StartAt(std::int32_t group, std::int32_t first_block);
  void Append(std::int32_t group, SlabRef slab);
  // Leading blocks known to be findable (Seal passes them over).
  void set_sealed_blocks(std::int32_t blocks) { sealed_blocks_ = blocks; }

  // One per group, for SequenceInput; valid until the table changes.
  std::span<const SequenceInput::Blocks> views() const;
  std::span<const SlabRef> slabs(std::int32_t group) const { return At(group).slabs; }
  std::int32_t first_block(std::int32_t group) const { return At(group).first_block; }

 private:
  struct Group {
    std::vector<SlabRef> slabs;
    std::int32_t first_block = 0;
    std::int32_t end() const { return first_block + static_cast<std::int32_t>(slabs.size()); }
  };
  Group& At(std::int32_t g) { return groups_[static_cast<std::size_t>(g)]; }
  const Group& At(std::int32_t g) const { return groups_[static_cast<std::size_t>(g)]; }
  std::optional<LossClass> LeastLoss(std::int32_t group, const LossSpaces& spaces,
                                     LossClass accepts, const Chain& chain) const;
  bool TryReuse(const LossSpaces& spaces, LossClass accepts, std::span<const Chain> chains,
                std::int32_t first, std::int32_t end);

  KvPool& pool_;
  const std::uint32_t tenant_;
  std::vector<Group> groups_;
  std::int32_t sealed_blocks_ = 0;
  Lineage lineage_;
  bool spoiled_ = false;  // A copy was made of a mapped block that had changed.
  mutable std::vector<SequenceInput::Blocks> views_;
};

}  // namespace penstock::engine
