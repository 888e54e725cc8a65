// SPDX-License-Identifier: Apache-2.0
// The slabs of a KvPool that lie in mapped memory of other processes: who holds them, and the names
// under which they are found.
//
// Life of a slab:   held (refs >= 1) -> [sealed under a key, still held] -> refs fall to 0: let go
//                   of. Where somebody outside the pool still has the block, it stays findable
//                   until that one lets go, too; nothing here keeps it.
//
// Each mapping is a pool of its own to the kernels, number 1 and up; one without slabs is
// forgotten, its number used again.
//
// Owned by its pool, as which it is used: by the engine's loop alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "base/key.h"
#include "base/mapped_block.h"
#include "kernels/ops.h"

namespace penstock::engine {

using kernels::SlabRef;

class MappedSlabs {
 public:
  // The next group, and where its own slabs are.
  void AddGroup(std::byte* base, std::size_t slab_bytes);
  // Own and mapped ones; valid until the next Hold.
  kernels::SlabPools pools(std::int32_t group) const;

  // As KvPool::Map.
  std::optional<SlabRef> Hold(std::int32_t group, std::shared_ptr<const MappedBlock> block);
  void AddRef(std::int32_t group, SlabRef slab);
  void Release(std::int32_t group, SlabRef slab);
  std::int32_t refs(std::int32_t group, SlabRef slab) const;
  std::byte* Address(std::int32_t group, SlabRef slab) const;
  std::shared_ptr<const MappedBlock> BlockAt(std::int32_t group, SlabRef slab) const;  // Held.
  // Whether a held one's bytes may be others by now; it is found no more then.
  bool Changed(std::int32_t group, SlabRef slab);

  // Of a held one. False: another, as good, has the key; or it has another key (its owner said that
  // one place holds both).
  bool Seal(std::int32_t group, SlabRef slab, const BlockKey& key);
  // What is found under `key` is found no more.
  void Forget(std::int32_t group, const BlockKey& key);
  // With one more reference.
  std::optional<SlabRef> Find(std::int32_t group, const BlockKey& key);
  bool Contains(std::int32_t group, const BlockKey& key) const;

  std::int64_t held(std::int32_t group) const { return At(group).held; }

 private:
  struct Slab {
    std::shared_ptr<const MappedBlock> block;  // While held.
    std::weak_ptr<const MappedBlock> idle;     // Else.
    std::int32_t refs = 0;
    std::optional<BlockKey> key;
  };
  struct Group {
    std::vector<std::byte*> bases;
    std::vector<std::size_t> strides;
    absl::flat_hash_map<std::uint32_t, Slab> slabs;  // By pool and index.
    absl::flat_hash_map<BlockKey, SlabRef> by_key;
    std::int64_t held = 0;
  };
  struct Mapping {
    const std::byte* data = nullptr;
    std::int64_t slabs = 0;  // Of all groups.
  };

  Group& At(std::int32_t g) { return groups_[static_cast<std::size_t>(g)]; }
  const Group& At(std::int32_t g) const { return groups_[static_cast<std::size_t>(g)]; }
  Slab& Held(std::int32_t g, SlabRef ref);
  std::optional<std::uint32_t> PoolOf(const MappedBlock& block);
  void SetBase(std::size_t pool, const std::byte* data);
  static bool Usable(const Slab& slab);
  void Unseal(Group& group, Slab& slab);
  void Erase(Group& group, SlabRef ref);
  void SweepIdle();

  std::vector<Group> groups_;
  std::vector<Mapping> mappings_;  // Of pool i + 1.
  std::size_t idle_ = 0;           // Slabs that nobody holds here.
  std::size_t sweep_at_ = 64;
};

}  // namespace penstock::engine
