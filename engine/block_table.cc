// SPDX-License-Identifier: Apache-2.0
#include "engine/block_table.h"

#include <algorithm>

#include "base/check.h"

namespace penstock::engine {
namespace {

std::int32_t WindowOf(const KvPool& pool, std::int32_t g) {
  return pool.layout(g).group.window_tokens;
}

std::int64_t BlocksOf(std::int64_t tokens, std::int64_t block_tokens) {
  return (tokens + block_tokens - 1) / block_tokens;
}

// The most blocks that group `g` holds at a time on the way to `tokens`. In a window group, a query
// block and the window_tokens - 1 tokens before it.
std::int64_t BlocksToHold(const KvPool& pool, std::int32_t g, std::int32_t tokens) {
  const std::int64_t all = BlocksOf(tokens, pool.block_tokens());
  const std::int32_t window = WindowOf(pool, g);
  if (window == 0) return all;
  return std::min(all, BlocksOf(window - 1, pool.block_tokens()) + 1);
}

}  // namespace

std::size_t BytesToHold(const KvPool& pool, std::int32_t tokens) {
  std::size_t bytes = 0;
  for (std::int32_t g = 0; g < pool.groups(); ++g) {
    bytes += static_cast<std::size_t>(BlocksToHold(pool, g, tokens)) * pool.slab_bytes(g);
  }
  return bytes;
}

std::int32_t TokensThatFit(const KvPool& pool, std::int32_t tokens_max) {
  const std::size_t budget = pool.stats().bytes_budget;
  std::int32_t fits = 0;
  std::int32_t too_many = tokens_max;  // Or unknown, in the first round.
  if (BytesToHold(pool, tokens_max) <= budget) return tokens_max;
  while (too_many - fits > 1) {
    const std::int32_t middle = fits + (too_many - fits) / 2;
    (BytesToHold(pool, middle) <= budget ? fits : too_many) = middle;
  }
  return fits;
}

BlockTable::BlockTable(KvPool& pool, std::uint32_t tenant)
    : pool_(pool),
      tenant_(tenant),
      groups_(static_cast<std::size_t>(pool.groups())),
      views_(groups_.size()) {}

bool BlockTable::Extend(std::int32_t block) {
  for (std::int32_t g = 0; g < pool_.groups(); ++g) {
    Group& group = At(g);
    CHECK(block >= group.first_block && block <= group.end());
    if (block < group.end()) continue;
    const std::optional<SlabRef> slab = pool_.Allocate(g);
    if (!slab.has_value()) return false;
    group.slabs.push_back(*slab);
  }
  return true;
}

bool BlockTable::MakeOwn(std::int32_t block) {
  for (std::int32_t g = 0; g < pool_.groups(); ++g) {
    Group& group = At(g);
    CHECK(block >= group.first_block && block < group.end());
    SlabRef& slab = group.slabs[static_cast<std::size_t>(block - group.first_block)];
    if (pool_.refs(g, slab) == 1 && !KvPool::IsMapped(slab)) continue;
    if (!pool_.MakeOwn(g, slab, spoiled_)) return false;
  }
  return true;
}

void BlockTable::ShareFrom(const BlockTable& other) {
  CHECK(empty());
  groups_ = other.groups_;
  sealed_blocks_ = other.sealed_blocks_;
  lineage_ = other.lineage_;
  spoiled_ = other.spoiled_;
  for (std::int32_t g = 0; g < pool_.groups(); ++g) {
    for (const SlabRef slab : At(g).slabs) pool_.AddRef(g, slab);
  }
}

std::optional<LossClass> BlockTable::LeastLoss(std::int32_t g, const LossSpaces& spaces,
                                               LossClass accepts, const Chain& chain) const {
  for (std::size_t i = 0; i <= static_cast<std::size_t>(accepts); ++i) {
    if (pool_.Contains(g, {spaces.of[i], chain})) return static_cast<LossClass>(i);
  }
  return std::nullopt;
}

// Full groups bound the run from above: it ends where they first miss. Window groups then move its
// end down: when block b is missing, no end above b that still sees b will do, and every end that
// was tried above b did.
std::int32_t BlockTable::UsableEnd(const LossSpaces& spaces, LossClass accepts,
                                   std::span<const Chain> chains, std::int32_t begin) const {
  const auto has = [&](std::int32_t g, std::int32_t block) {
    return LeastLoss(g, spaces, accepts, chains[static_cast<std::size_t>(block)]).has_value();
  };
  std::int32_t blocks = std::max(begin, static_cast<std::int32_t>(chains.size()));
  for (std::int32_t g = 0; g < pool_.groups(); ++g) {
    if (WindowOf(pool_, g) != 0) continue;
    std::int32_t found = begin;
    while (found < blocks && has(g, found)) ++found;
    blocks = found;
  }
  for (std::int32_t g = 0; g < pool_.groups(); ++g) {
    if (WindowOf(pool_, g) == 0) continue;
    const std::int32_t before = blocks;
    const auto first = [&] {
      return std::max(begin, FirstVisibleBlock(blocks * pool_.block_tokens(), WindowOf(pool_, g),
                                               pool_.block_tokens()));
    };
    for (std::int32_t b = blocks - 1; b >= first(); --b) {
      if (!has(g, b)) blocks = b;
    }
    if (blocks != before) g = -1;  // The groups before have not seen this end.
  }
  return blocks;
}

std::int32_t BlockTable::ReusePrefix(const LossSpaces& spaces, LossClass accepts,
                                     std::span<const Chain> chains) {
  CHECK(empty());
  lineage_ = {};
  return ReuseMore(spaces, accepts, chains, 0);
}

std::int32_t BlockTable::ReuseMore(const LossSpaces& spaces, LossClass accepts,
                                   std::span<const Chain> chains, std::int32_t first) {
  std::int32_t end = UsableEnd(spaces, accepts, chains, first);
  // Mapped ones may go meanwhile, whoever looks; each time one fewer is there.
  while (end > first && !TryReuse(spaces, accepts, chains, first, end)) {
    end = UsableEnd(spaces, accepts, chains, first);
  }
  if (end > first) sealed_blocks_ = end;
  return end;
}

// All of the run is held before anything of the table's own goes.
bool BlockTable::TryReuse(const LossSpaces& spaces, LossClass accepts,
                          std::span<const Chain> chains, std::int32_t first, std::int32_t end) {
  std::vector<std::vector<SlabRef>> found(groups_.size());
  Lineage lineage = lineage_;
  bool all = true;
  for (std::int32_t g = 0; all && g < pool_.groups(); ++g) {
    const std::int32_t visible =
        FirstVisibleBlock(end * pool_.block_tokens(), WindowOf(pool_, g), pool_.block_tokens());
    for (std::int32_t b = std::max(first, visible); all && b < end; ++b) {
      const Chain& chain = chains[static_cast<std::size_t>(b)];
      const std::optional<LossClass> loss = LeastLoss(g, spaces, accepts, chain);
      std::optional<SlabRef> slab;
      if (loss.has_value()) slab = pool_.Find(g, {spaces[*loss], chain});
      all = slab.has_value();
      if (!all) break;
      if (*loss != LossClass::kExact) lineage.Join({*loss, b});
      found[static_cast<std::size_t>(g)].push_back(*slab);
    }
  }
  if (!all) {
    for (std::size_t g = 0; g < found.size(); ++g) {
      for (const SlabRef slab : found[g]) pool_.Release(static_cast<std::int32_t>(g), slab);
    }
    return false;
  }
  lineage_ = lineage;
  DropFrom(first);
  StartAtVisible(end * pool_.block_tokens());
  for (std::int32_t g = 0; g < pool_.groups(); ++g) {
    for (const SlabRef slab : found[static_cast<std::size_t>(g)]) Append(g, slab);
  }
  return true;
}

void BlockTable::Replace(std::int32_t g, std::int32_t block, SlabRef slab) {
  Group& group = At(g);
  CHECK(block >= group.first_block && block < group.end());
  SlabRef& held = group.slabs[static_cast<std::size_t>(block - group.first_block)];
  pool_.Release(g, held);
  held = slab;
}

bool BlockTable::Changed() const {
  bool changed = spoiled_;
  for (std::int32_t g = 0; g < pool_.groups(); ++g) {
    for (const SlabRef slab : At(g).slabs) changed |= pool_.Changed(g, slab);
  }
  return changed;
}

std::vector<std::shared_ptr<const MappedBlock>> BlockTable::Mapped() const {
  std::vector<std::shared_ptr<const MappedBlock>> mapped;
  for (std::int32_t g = 0; g < pool_.groups(); ++g) {
    for (const SlabRef slab : At(g).slabs) {
      if (KvPool::IsMapped(slab)) mapped.push_back(pool_.MappedAt(g, slab));
    }
  }
  return mapped;
}

void BlockTable::Seal(const LossSpaces& spaces, std::span<const Chain> chains) {
  const auto blocks = static_cast<std::int32_t>(chains.size());
  for (std::int32_t g = 0; g < pool_.groups(); ++g) {
    for (std::int32_t b = std::max(sealed_blocks_, At(g).first_block); b < blocks; ++b) {
      SealBlock(spaces, chains, g, b, lineage_.Of(b));
    }
  }
  sealed_blocks_ = std::max(sealed_blocks_, blocks);
}

void BlockTable::SealBlock(const LossSpaces& spaces, std::span<const Chain> chains, std::int32_t g,
                           std::int32_t b, LossClass loss) {
  Group& group = At(g);
  CHECK(b >= group.first_block && b < group.end());
  const BlockKey key{spaces[loss], chains[static_cast<std::size_t>(b)]};
  SlabRef& slab = group.slabs[static_cast<std::size_t>(b - group.first_block)];
  std::optional<Chain> parent;
  if (b > 0) parent = chains[static_cast<std::size_t>(b - 1)];
  if (pool_.Seal(g, slab, {.key = key, .parent = parent, .index = b, .tenant = tenant_})) return;
  const std::optional<SlabRef> twin = pool_.Find(g, key);
  if (!twin.has_value()) return;  // A mapped one, which is gone again.
  pool_.Release(g, slab);
  slab = *twin;
}

void BlockTable::DropInvisible(std::int32_t position) {
  for (std::int32_t g = 0; g < pool_.groups(); ++g) {
    Group& group = At(g);
    const std::int32_t first =
        FirstVisibleBlock(position, WindowOf(pool_, g), pool_.block_tokens());
    const std::int32_t drop = std::min(first, group.end()) - group.first_block;
    if (drop <= 0) continue;
    for (std::int32_t i = drop - 1; i >= 0; --i) {
      pool_.Release(g, group.slabs[static_cast<std::size_t>(i)]);
    }
    group.slabs.erase(group.slabs.begin(), group.slabs.begin() + drop);
    group.first_block += drop;
  }
}

void BlockTable::StartAtVisible(std::int32_t position) {
  DropInvisible(position);
  for (std::int32_t g = 0; g < pool_.groups(); ++g) {
    const std::int32_t first =
        FirstVisibleBlock(position, WindowOf(pool_, g), pool_.block_tokens());
    if (At(g).end() < first) StartAt(g, first);
  }
}

bool BlockTable::ExtendTo(std::int32_t block) {
  for (std::int32_t g = 0; g < pool_.groups(); ++g) {
    Group& group = At(g);
    while (group.end() <= block) {
      const std::optional<SlabRef> slab = pool_.Allocate(g);
      if (!slab.has_value()) return false;
      group.slabs.push_back(*slab);
    }
  }
  return true;
}

void BlockTable::DropFrom(std::int32_t block) {
  for (std::int32_t g = 0; g < pool_.groups(); ++g) {
    Group& group = At(g);
    while (group.end() > block && !group.slabs.empty()) {
      pool_.Release(g, group.slabs.back());
      group.slabs.pop_back();
    }
    if (block == 0) group.first_block = 0;
  }
  if (block == 0) spoiled_ = false;
  sealed_blocks_ = std::min(sealed_blocks_, block);
}

std::size_t BlockTable::BytesMissing(std::int32_t tokens) const {
  std::size_t bytes = 0;
  for (std::int32_t g = 0; g < pool_.groups(); ++g) {
    const std::int64_t has =
        WindowOf(pool_, g) == 0 ? At(g).end() : static_cast<std::int64_t>(At(g).slabs.size());
    const std::int64_t missing = BlocksToHold(pool_, g, tokens) - has;
    if (missing > 0) bytes += static_cast<std::size_t>(missing) * pool_.slab_bytes(g);
  }
  return bytes;
}

bool BlockTable::empty() const {
  return std::all_of(groups_.begin(), groups_.end(),
                     [](const Group& group) { return group.slabs.empty(); });
}

void BlockTable::StartAt(std::int32_t g, std::int32_t first_block) {
  CHECK(At(g).slabs.empty());
  At(g).first_block = first_block;
}

void BlockTable::Append(std::int32_t g, SlabRef slab) { At(g).slabs.push_back(slab); }

std::span<const SequenceInput::Blocks> BlockTable::views() const {
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    views_[g] = {.slabs = groups_[g].slabs, .first_block = groups_[g].first_block};
  }
  return views_;
}

}  // namespace penstock::engine
