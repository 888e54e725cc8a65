// SPDX-License-Identifier: Apache-2.0
#include "engine/swap_pool.h"

#include <optional>

#include "base/check.h"

namespace penstock::engine {

std::size_t SwapPool::BytesOf(const BlockTable& blocks) const {
  std::size_t bytes = 0;
  for (std::int32_t g = 0; g < pool_.groups(); ++g) {
    bytes += blocks.slabs(g).size() * pool_.layout(g).block_bytes();
  }
  return bytes;
}

std::unique_ptr<SwapPool::Saved> SwapPool::Save(const BlockTable& blocks) {
  const std::size_t bytes = BytesOf(blocks);
  if (bytes > bytes_max_ - bytes_used_) return nullptr;
  std::unique_ptr<Saved> saved(new Saved(*this, bytes));
  for (std::int32_t g = 0; g < pool_.groups(); ++g) {
    const std::span<const SlabRef> slabs = blocks.slabs(g);
    const std::size_t block_bytes = pool_.layout(g).block_bytes();
    Saved::Group group;
    group.first_block = blocks.first_block(g);
    group.blocks = static_cast<std::int32_t>(slabs.size());
    group.bytes = std::make_unique_for_overwrite<std::byte[]>(slabs.size() * block_bytes);
    for (std::size_t i = 0; i < slabs.size(); ++i) {
      pool_.Save(g, slabs[i], group.bytes.get() + i * block_bytes);
    }
    saved->groups_.push_back(std::move(group));
  }
  if (blocks.Changed()) return nullptr;
  return saved;
}

void SwapPool::Restore(const Saved& saved, const LossSpaces& spaces, std::span<const Chain> chains,
                       BlockTable& blocks) {
  // What the pool still has is held before anything is allocated, which could evict it.
  const auto key_of = [&](std::size_t block) {
    return BlockKey{spaces[blocks.lineage().Of(static_cast<std::int32_t>(block))], chains[block]};
  };
  std::vector<std::vector<std::optional<SlabRef>>> found(saved.groups_.size());
  for (std::int32_t g = 0; g < pool_.groups(); ++g) {
    const Saved::Group& group = saved.groups_[static_cast<std::size_t>(g)];
    for (std::int32_t i = 0; i < group.blocks; ++i) {
      const auto block = static_cast<std::size_t>(group.first_block + i);
      found[static_cast<std::size_t>(g)].push_back(
          block < chains.size() ? pool_.Find(g, key_of(block)) : std::nullopt);
    }
  }
  for (std::int32_t g = 0; g < pool_.groups(); ++g) {
    const Saved::Group& group = saved.groups_[static_cast<std::size_t>(g)];
    const std::size_t block_bytes = pool_.layout(g).block_bytes();
    blocks.StartAt(g, group.first_block);
    for (std::int32_t i = 0; i < group.blocks; ++i) {
      const auto block = static_cast<std::size_t>(group.first_block + i);
      std::optional<SlabRef> slab = found[static_cast<std::size_t>(g)][static_cast<std::size_t>(i)];
      if (!slab.has_value()) {
        slab = pool_.Allocate(g);
        CHECK(slab.has_value());
        pool_.Restore(g, group.bytes.get() + static_cast<std::size_t>(i) * block_bytes, *slab);
        if (block < chains.size()) {
          std::optional<Chain> parent;
          if (block > 0) parent = chains[block - 1];
          CHECK(pool_.Seal(
              g, *slab,
              {.key = key_of(block), .parent = parent, .index = static_cast<std::int32_t>(block)}));
        }
      }
      blocks.Append(g, *slab);
    }
  }
  blocks.set_sealed_blocks(static_cast<std::int32_t>(chains.size()));
}

}  // namespace penstock::engine
