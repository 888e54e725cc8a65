// SPDX-License-Identifier: Apache-2.0
// The memory that holds a worker's KV cache: slabs by group, who holds them, and which of them are
// sealed blocks that later requests can reuse.
//
// Life of a slab:   free -> held (refs >= 1) -> [sealed under a key, still held] -> refs fall to 0:
//                   sealed ones stay as cached, findable by key, until their memory is needed;
//                   others become free.
// One byte budget serves all groups: each group has an address range as large as the whole budget,
// and only slabs in use are backed by memory (on a GPU, whose memory is committed at once, every
// group takes the whole budget, which the memory plan counts). So window layers and full layers
// need no fixed split, and nothing is ever over-committed: Allocate refuses what the budget cannot
// hold even after evicting every cached slab.
//
// Besides its own, a pool knows slabs that lie in mapped memory of other processes (Map): held and
// found as the others, but never allocated, written or cached, and not of its budget. Their bytes
// may change under who reads them; Changed tells.
//
// Where device memory is the device's alone (a GPU's), the host and its peers see slabs of a shared
// pool in host memory, for as long as somebody asks for them: engine/host_slabs.h.
//
// Of a model that is split over devices (engine/pipeline_stage.h) the pool has memory on each of
// them, for that one's layers and KV heads. A slab has the same number everywhere, and everywhere
// the same state. The layout and all bytes, the budget too, are those of slabs that have the whole
// model's layers and heads, so that the same budget holds the same blocks on any number of devices;
// each of them has its part of it, in slabs that are padded to 4 KiB, too. Where such a pool is
// shared, the host sees whole slabs, as of a device whose memory is its own; it maps nothing. Who
// moves blocks between devices sees each one's part (shard()).
//
// A sealed slab is immutable. Cached slabs are evicted least recently used first; a sequence lets
// go of its blocks from the last to the first, so that of one chain the tail goes before the head.
//
// Owned by the engine's loop; not thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "base/key.h"
#include "base/kv_spec.h"
#include "device/device.h"
#include "engine/group_shard.h"
#include "engine/host_slabs.h"
#include "engine/mapped_slabs.h"
#include "engine/slab_encoder.h"
#include "kernels/ops.h"

namespace penstock::engine {

using kernels::SlabRef;

class KvPool {
 public:
  struct Options {
    std::size_t pool_bytes = std::size_t{1} << 30;  // Of whole slabs.
    std::int32_t block_tokens = 32;
    std::int32_t page_tokens = 32;
    std::int32_t stages = 1;  // Among which the devices divide.
    // The host reads and writes slabs, and peers of this host may read them: memory(g).shared_fd().
    bool shared = false;
  };
  struct GroupStats {
    std::int64_t slabs_held = 0;     // refs >= 1
    std::int64_t slabs_cached = 0;   // sealed, refs 0
    std::int64_t slabs_free = 0;     // backed by memory, empty
    std::int64_t slabs_evicted = 0;  // ever
    std::int64_t slabs_mapped = 0;   // Held, in mapped memory: none of the above.
    std::size_t slab_bytes = 0;
  };
  struct Stats {
    std::vector<GroupStats> groups;
    std::size_t bytes_budget = 0;
    std::size_t bytes_committed = 0;  // Backed by memory now: held, cached and free; at most the
                                      // budget.
    std::size_t bytes_held = 0;
    std::size_t bytes_cached = 0;
    std::size_t bytes_free = 0;
    std::size_t bytes_mapped = 0;     // Of blocks held in mapped memory; not of the budget.
    std::size_t bytes_padding = 0;    // Of those committed: what rounding slabs to 4 KiB costs.
    std::size_t bytes_available = 0;  // Budget less held. Allocate succeeds as long as the slab
                                      // fits in here.
  };

  // INVALID_ARGUMENT as PageLayout::Make, or when the budget holds not one block of every group, or
  // more than the 2^24 slabs of a group that a SlabRef can name (both numbers). RESOURCE_EXHAUSTED
  // when the device has less memory than the budget, or, with `shared`, no memory can be pinned.
  // `device` must outlive the pool.
  static absl::StatusOr<std::unique_ptr<KvPool>> Make(Device& device, const KvSpec& spec,
                                                      const Options& options) {
    Device* const one = &device;
    return Make({&one, 1}, spec, options);
  }
  // On the devices of all stages' shards, as ModelPart counts them; `spec` is the whole model's.
  // INVALID_ARGUMENT as CacheLayersOf, too.
  static absl::StatusOr<std::unique_ptr<KvPool>> Make(std::span<Device* const> devices,
                                                      const KvSpec& spec, const Options& options);
  ~KvPool();

  const KvSpec& spec() const { return spec_; }
  std::int32_t groups() const { return static_cast<std::int32_t>(groups_.size()); }
  const PageLayout& layout(std::int32_t group) const;
  // Of its own layers and heads, which those of pools() have.
  const PageLayout& layout_on(std::int32_t device, std::int32_t group) const;
  // What that calls the cache layer of a model layer that the device has.
  std::int32_t cache_layer_on(std::int32_t device, const KvLayerRef& layer) const;
  std::int32_t block_tokens() const { return options_.block_tokens; }
  std::size_t slab_bytes(std::int32_t group) const;
  std::size_t bytes_available() const { return options_.pool_bytes - bytes_held_; }
  kernels::SlabPools pools(std::int32_t group, std::int32_t device = 0) const;

  // A slab with one reference and undefined contents; nothing when it does not fit in
  // bytes_available(). Takes a free slab of the group, else untouched memory, else the memory of
  // other groups' free slabs, else that of cached slabs, least recently used first. O(1) but for
  // what it reclaims.
  std::optional<SlabRef> Allocate(std::int32_t group);
  void AddRef(std::int32_t group, SlabRef slab);
  // Drops one reference.
  void Release(std::int32_t group, SlabRef slab);
  std::int32_t refs(std::int32_t group, SlabRef slab) const;

  struct SealedBlock {
    BlockKey key = {};
    std::optional<Chain> parent = {};  // Of the block before; none: a first block, or not known.
    std::int32_t index = 0;            // In its chain.
    std::uint32_t tenant = 0;          // Who asked for it first.
  };
  // Hears which own blocks become findable and which no longer are, as it happens.
  class Observer {
   public:
    virtual ~Observer() = default;
    virtual void OnSealed(std::int32_t group, const SealedBlock& block) = 0;
    // It is not found any more; its slab, a cached one, still holds its bytes during this call.
    virtual void OnEvicted(std::int32_t group, const SealedBlock& block, SlabRef slab) = 0;
  };
  // Outlives the pool, or is removed before. Told in the order in which they were added.
  void AddObserver(Observer& observer) { observers_.push_back(&observer); }
  void RemoveObserver(Observer& observer) { std::erase(observers_, &observer); }

  // Makes `slab` (held, full, not yet sealed) findable under block.key. When another slab already
  // has the key, that one stays the findable one and false comes back; the caller keeps its own
  // copy. An own slab takes the key of a mapped one.
  bool Seal(std::int32_t group, SlabRef slab, const SealedBlock& block);
  // The sealed slab of `key`, with one more reference for the caller. A mapped one may be gone
  // though Contains had it.
  std::optional<SlabRef> Find(std::int32_t group, const BlockKey& key);
  bool Contains(std::int32_t group, const BlockKey& key) const;
  bool ContainsOwn(std::int32_t group, const BlockKey& key) const;  // Not as a mapped one.

  // ---- Mapped blocks.
  // A slab with one reference: the block where it lies, as block_bytes of the layout. Nothing when
  // it cannot be named (too many mappings, too far behind the mapping's begin), or its place is
  // still held as it was before it changed: copy it. While somebody else has `block`, it is found
  // under its key though nobody holds the slab.
  std::optional<SlabRef> Map(std::int32_t group, std::shared_ptr<const MappedBlock> block);
  static bool IsMapped(SlabRef slab) { return slab.pool != 0; }
  // Of a held one.
  std::shared_ptr<const MappedBlock> MappedAt(std::int32_t group, SlabRef slab) const {
    return mapped_.BlockAt(group, slab);
  }
  // Whether the bytes of a held one may be others by now than they were as it was mapped: to be
  // asked after all reads, before anything made from them leaves. It is found no more then. Never
  // of own slabs.
  bool Changed(std::int32_t group, SlabRef slab) {
    return IsMapped(slab) && mapped_.Changed(group, slab);
  }

  // All own slabs of a group, as the host sees them: slab i begins at i * slab_bytes. For
  // registration with those who move blocks; it lives as long as the pool.
  DeviceMemory& memory(std::int32_t group);

  // Where the host sees a slab's bytes, held or just being evicted: those themselves where
  // host_visible(), those of a shown slab where staged(); else nobody but the device may touch
  // them, nor may anybody ask where they are on several devices.
  bool host_visible() const;
  std::byte* Address(std::int32_t group, SlabRef slab);
  // What a device has of a group, and where, for those who read and write there.
  std::int32_t devices() const { return static_cast<std::int32_t>(streams_.size()); }
  const GroupShard& shard(std::int32_t device, std::int32_t group) const;

  // ---- Slabs that are shown to the host, as HostSlabs says, where staged(); elsewhere nothing
  // needs to be done, and nothing is. They are own ones, and held.
  bool staged() const { return host_ != nullptr; }
  // Of the work that writes to slabs, on one device; outlives the pool's use.
  void set_writer(Stream& writer);
  // On several devices: behind what the slabs that are told of from now on are complete, on all of
  // them; null: they are.
  void set_stored(std::shared_ptr<const Event> stored);
  // Behind what slabs are complete that are told of now; null: they are.
  std::shared_ptr<const Event> Written();
  bool Show(std::int32_t group, SlabRef slab);  // Where nothing needs to be done: false.
  void Hide(std::int32_t group, SlabRef slab);
  void ToHost(std::int32_t group, std::span<const SlabRef> slabs,
              std::optional<std::int32_t> cache_layer = {});
  void ToDevice(std::int32_t group, std::span<const SlabRef> slabs);
  // Any thread; calls `done` at once where nothing needs to be done.
  void AfterCopies(std::function<void()> done);
  // Of what writes to slabs, on one device, which Encode has encode them, and Decode decode them,
  // where staged(); outlive the pool's use. RESOURCE_EXHAUSTED: the device has no memory for it.
  absl::Status MakeEncoder(Device& device, kernels::Ops& ops);
  // Any thread, once the pool is in use: whether Decode may be called of slabs that
  // kernels::OpsEncode takes.
  bool decodes() const { return encoder_ != nullptr; }
  // As SlabEncoder's, of an own slab; null where there is no encoder.
  SlabEncoder::Bytes Encode(std::int32_t group, SlabRef slab, const kernels::KvEncoding& encoding);
  SlabEncoder::Bytes EncodeNow(std::int32_t group, SlabRef slab,
                               const kernels::KvEncoding& encoding);
  // Makes what a held slab of its own has of that, in the place of ToDevice.
  void Decode(std::int32_t group, SlabRef slab,
              std::shared_ptr<const kernels::EncodedBlock> encoded);
  std::uint64_t last_copy() const;
  bool Copied(std::uint64_t copy);
  void WaitForCopy(std::uint64_t copy);

  // Copies the bytes of one slab to another, to host memory or from there (block_bytes of layout()),
  // on every device, whether it is shown or not; done when it returns. The caller has seen the end
  // of all device work on those slabs.
  void Copy(std::int32_t group, SlabRef from, SlabRef to);
  void Save(std::int32_t group, SlabRef from, std::byte* to);
  void Restore(std::int32_t group, const std::byte* from, SlabRef to);
  // Puts a copy in the place of `slab`, of which the caller's reference goes. Sets `changed` where
  // a mapped one changed before it was copied. As Copy; false, and nothing is done, where Allocate
  // gives nothing.
  bool MakeOwn(std::int32_t group, SlabRef& slab, bool& changed);

  // Forgets every cached slab.
  void DropCached();
  Stats stats() const;

 private:
  struct Group;
  KvPool(const KvSpec& spec, const Options& options);

  // The group's memory on every device, for so many slabs.
  absl::Status AddShards(Group& own, std::span<Device* const> devices, std::size_t slabs);
  Group& group(std::int32_t g) const;
  void ReclaimFor(Group& own);
  Group* LeastRecentlyUsed() const;
  void EvictOldest(Group& group);
  std::int32_t NumberOf(const Group& group) const;
  void DecommitFree(Group& group);
  std::byte* AddressOn(std::size_t device, std::int32_t group, SlabRef slab);
  void Synchronize();  // Waits for what streams_ were given.

  const KvSpec spec_;
  const Options options_;
  std::vector<std::unique_ptr<Stream>> streams_;  // One per device: for Copy, Save and Restore.
  std::vector<std::unique_ptr<Group>> groups_;
  MappedSlabs mapped_;
  std::unique_ptr<HostSlabs> host_;  // Null unless staged.
  std::unique_ptr<SlabEncoder> encoder_;
  std::size_t bytes_committed_ = 0;
  std::size_t bytes_held_ = 0;
  std::vector<Observer*> observers_;
  std::uint64_t clock_ = 0;  // Order of use, for eviction over all groups.
};

}  // namespace penstock::engine
