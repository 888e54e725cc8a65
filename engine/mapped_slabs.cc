// SPDX-License-Identifier: Apache-2.0
#include "engine/mapped_slabs.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace penstock::engine {
namespace {

constexpr std::size_t kMappingsMax = 255;                // SlabRef::pool has 8 bits.
constexpr std::size_t kPagesMax = std::size_t{1} << 24;  // Its index has 24.
constexpr std::size_t kSweepMin = 64;                    // Idle slabs not worth a look at all.

std::uint32_t NameOf(SlabRef ref) { return ref.pool << 24 | ref.index; }
SlabRef RefOf(std::uint32_t name) {
  SlabRef ref;
  ref.pool = name >> 24 & 0xffu;
  ref.index = name & 0xffffffu;
  return ref;
}

}  // namespace

void MappedSlabs::AddGroup(std::byte* base, std::size_t slab_bytes) {
  CHECK(mappings_.empty());
  Group& group = groups_.emplace_back();
  group.bases.push_back(base);
  group.strides.push_back(slab_bytes);
}

kernels::SlabPools MappedSlabs::pools(std::int32_t g) const {
  return {.base = At(g).bases, .stride_bytes = At(g).strides};
}

MappedSlabs::Slab& MappedSlabs::Held(std::int32_t g, SlabRef ref) {
  const auto it = At(g).slabs.find(NameOf(ref));
  CHECK(it != At(g).slabs.end());
  CHECK_GT(it->second.refs, 0);
  return it->second;
}

// Kernels take one type of pointer for own slabs and mapped ones; they write to pool 0 alone.
void MappedSlabs::SetBase(std::size_t pool, const std::byte* data) {
  for (Group& group : groups_) {
    group.bases.resize(std::max(group.bases.size(), pool + 1));
    group.strides.resize(group.bases.size(), MappedBlock::kPageBytes);
    group.bases[pool] = const_cast<std::byte*>(data);
  }
}

// The number of its mapping; nothing when there are too many.
std::optional<std::uint32_t> MappedSlabs::PoolOf(const MappedBlock& block) {
  const std::byte* const data = block.memory().data();
  const auto slot_where = [&](auto holds) -> std::optional<std::size_t> {
    const auto it = std::find_if(mappings_.begin(), mappings_.end(), holds);
    if (it == mappings_.end()) return std::nullopt;
    return static_cast<std::size_t>(it - mappings_.begin());
  };
  const auto unused = [](const Mapping& m) { return m.slabs == 0; };
  auto slot = slot_where([&](const Mapping& m) { return m.data == data; });
  if (!slot.has_value()) slot = slot_where(unused);
  if (!slot.has_value() && mappings_.size() >= kMappingsMax) {
    SweepIdle();
    slot = slot_where(unused);
    if (!slot.has_value()) return std::nullopt;
  }
  if (!slot.has_value()) {
    slot = mappings_.size();
    mappings_.emplace_back();
  }
  mappings_[*slot].data = data;
  SetBase(*slot + 1, data);
  return static_cast<std::uint32_t>(*slot + 1);
}

std::optional<SlabRef> MappedSlabs::Hold(std::int32_t g, std::shared_ptr<const MappedBlock> block) {
  CHECK_EQ(block->offset() % MappedBlock::kPageBytes, 0u);
  const std::size_t page = block->offset() / MappedBlock::kPageBytes;
  if (page >= kPagesMax) return std::nullopt;
  const std::optional<std::uint32_t> pool = PoolOf(*block);
  if (!pool.has_value()) return std::nullopt;
  const SlabRef ref = RefOf(*pool << 24 | static_cast<std::uint32_t>(page));
  Group& group = At(g);
  if (const auto it = group.slabs.find(NameOf(ref)); it != group.slabs.end()) {
    if (it->second.refs > 0) {
      // The same bytes, unless who reads it is about to see that they changed.
      if (it->second.block->Changed()) return std::nullopt;
      ++it->second.refs;
      return ref;
    }
    Erase(group, ref);
    // That may have been the mapping's last.
    mappings_[*pool - 1].data = block->memory().data();
  }
  ++mappings_[*pool - 1].slabs;
  ++group.held;
  group.slabs[NameOf(ref)] = {.block = std::move(block), .idle = {}, .refs = 1, .key = {}};
  return ref;
}

void MappedSlabs::AddRef(std::int32_t g, SlabRef ref) { ++Held(g, ref).refs; }

void MappedSlabs::Release(std::int32_t g, SlabRef ref) {
  Slab& slab = Held(g, ref);
  if (--slab.refs > 0) return;
  Group& group = At(g);
  --group.held;
  ++idle_;
  slab.idle = slab.block;
  slab.block.reset();
  if (slab.idle.expired() || !slab.key.has_value()) return Erase(group, ref);
  if (idle_ >= sweep_at_) SweepIdle();
}

std::int32_t MappedSlabs::refs(std::int32_t g, SlabRef ref) const {
  const auto it = At(g).slabs.find(NameOf(ref));
  return it == At(g).slabs.end() ? 0 : it->second.refs;
}

std::byte* MappedSlabs::Address(std::int32_t g, SlabRef ref) const {
  CHECK_GT(refs(g, ref), 0);
  return At(g).bases[ref.pool] + ref.index * MappedBlock::kPageBytes;
}

std::shared_ptr<const MappedBlock> MappedSlabs::BlockAt(std::int32_t g, SlabRef ref) const {
  CHECK_GT(refs(g, ref), 0);
  return At(g).slabs.at(NameOf(ref)).block;
}

bool MappedSlabs::Changed(std::int32_t g, SlabRef ref) {
  Slab& slab = Held(g, ref);
  if (!slab.block->Changed()) return false;
  Unseal(At(g), slab);
  return true;
}

bool MappedSlabs::Usable(const Slab& slab) {
  const std::shared_ptr<const MappedBlock> block = slab.refs > 0 ? slab.block : slab.idle.lock();
  return block != nullptr && !block->Changed();
}

bool MappedSlabs::Seal(std::int32_t g, SlabRef ref, const BlockKey& key) {
  Slab& slab = Held(g, ref);
  if (slab.key == key) return true;
  if (slab.key.has_value() || Contains(g, key)) return false;
  Forget(g, key);
  slab.key = key;
  At(g).by_key[key] = ref;
  return true;
}

void MappedSlabs::Forget(std::int32_t g, const BlockKey& key) {
  Group& group = At(g);
  const auto it = group.by_key.find(key);
  if (it == group.by_key.end()) return;
  const SlabRef ref = it->second;
  Slab& slab = group.slabs.at(NameOf(ref));
  Unseal(group, slab);
  if (slab.refs == 0) Erase(group, ref);
}

std::optional<SlabRef> MappedSlabs::Find(std::int32_t g, const BlockKey& key) {
  Group& group = At(g);
  const auto it = group.by_key.find(key);
  if (it == group.by_key.end()) return std::nullopt;
  const SlabRef ref = it->second;
  Slab& slab = group.slabs.at(NameOf(ref));
  std::shared_ptr<const MappedBlock> block = slab.refs > 0 ? slab.block : slab.idle.lock();
  if (block == nullptr || block->Changed()) {
    Forget(g, key);
    return std::nullopt;
  }
  if (++slab.refs > 1) return ref;
  slab.block = std::move(block);
  ++group.held;
  --idle_;
  return ref;
}

bool MappedSlabs::Contains(std::int32_t g, const BlockKey& key) const {
  const auto it = At(g).by_key.find(key);
  return it != At(g).by_key.end() && Usable(At(g).slabs.at(NameOf(it->second)));
}

void MappedSlabs::Unseal(Group& group, Slab& slab) {
  if (!slab.key.has_value()) return;
  group.by_key.erase(*slab.key);
  slab.key.reset();
}

// One that nobody holds.
void MappedSlabs::Erase(Group& group, SlabRef ref) {
  const auto it = group.slabs.find(NameOf(ref));
  Unseal(group, it->second);
  group.slabs.erase(it);
  --idle_;
  Mapping& mapping = mappings_[ref.pool - 1];
  if (--mapping.slabs == 0) mapping.data = nullptr;
}

// Forgets those that nobody has any more, here or outside.
void MappedSlabs::SweepIdle() {
  for (Group& group : groups_) {
    std::vector<SlabRef> gone;
    for (const auto& [name, slab] : group.slabs) {
      if (slab.refs == 0 && slab.idle.expired()) gone.push_back(RefOf(name));
    }
    for (const SlabRef ref : gone) Erase(group, ref);
  }
  sweep_at_ = std::max(kSweepMin, 2 * idle_);
}

}  // namespace penstock::engine
