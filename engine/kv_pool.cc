// SPDX-License-Identifier: Apache-2.0
#include "engine/kv_pool.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/check_ok.h"
#include "base/status.h"
#include "engine/pipeline_stage.h"

namespace penstock::engine {
namespace {

constexpr std::size_t kSlabsMax = std::size_t{1} << 24;  // SlabRef::index has 24 bits.
constexpr std::uint32_t kNone = ~std::uint32_t{0};

enum class Place : std::uint8_t { kHeld, kCached, kFree, kBare };

struct Slab {
  KvPool::SealedBlock block;  // Where sealed.
  bool sealed = false;
  Place place = Place::kHeld;
  std::int32_t refs = 0;
  std::uint32_t previous = kNone;  // In the list of its place.
  std::uint32_t next = kNone;
  std::uint64_t released = 0;  // When it became cached.
};

// A doubly linked list through the slabs' own fields.
struct SlabList {
  std::uint32_t head = kNone;
  std::uint32_t tail = kNone;
  std::int64_t size = 0;

  void PushBack(std::vector<Slab>& slabs, std::uint32_t index) {
    Slab& slab = slabs[index];
    slab.previous = tail;
    slab.next = kNone;
    (tail == kNone ? head : slabs[tail].next) = index;
    tail = index;
    ++size;
  }
  void Remove(std::vector<Slab>& slabs, std::uint32_t index) {
    const Slab& slab = slabs[index];
    (slab.previous == kNone ? head : slabs[slab.previous].next) = slab.next;
    (slab.next == kNone ? tail : slabs[slab.next].previous) = slab.previous;
    --size;
  }
};

std::vector<std::uint32_t> IndicesOf(std::span<const SlabRef> slabs) {
  std::vector<std::uint32_t> indices;
  for (const SlabRef slab : slabs) indices.push_back(slab.index);
  return indices;
}

}  // namespace

struct KvPool::Group {
  PageLayout layout;  // Of whole slabs.
  std::size_t slab_bytes = 0;
  std::vector<GroupShard> shards;
  std::vector<Slab> slabs;  // Those touched so far; higher indices were never handed out.
  SlabList cached;          // Sealed, without references; least recently used first.
  SlabList free;            // Backed by memory.
  SlabList bare;            // Their memory was given back.
  std::int64_t evicted = 0;
  absl::flat_hash_map<BlockKey, std::uint32_t> by_key;  // Held and cached ones.

  Slab& At(SlabRef ref) {
    CHECK_EQ(std::uint32_t{ref.pool}, 0u);
    CHECK_LT(std::size_t{ref.index}, slabs.size());
    return slabs[ref.index];
  }
  std::int64_t committed() const { return static_cast<std::int64_t>(slabs.size()) - bare.size; }
  std::int64_t held() const { return committed() - cached.size - free.size; }

  void Move(SlabList* from, SlabList* to, Place place, std::uint32_t index) {
    if (from != nullptr) from->Remove(slabs, index);
    if (to != nullptr) to->PushBack(slabs, index);
    slabs[index].place = place;
  }
  SlabRef Hold(SlabList* from, std::uint32_t index) {
    Move(from, nullptr, Place::kHeld, index);
    slabs[index].refs = 1;
    SlabRef ref;
    ref.index = index & 0xffffffu;
    return ref;
  }
};

KvPool::KvPool(const KvSpec& spec, const Options& options) : spec_(spec), options_(options) {}
KvPool::~KvPool() = default;

absl::StatusOr<std::unique_ptr<KvPool>> KvPool::Make(std::span<Device* const> devices,
                                                     const KvSpec& spec, const Options& options) {
  CHECK(!spec.groups.empty());
  CHECK(!devices.empty());
  CHECK(options.stages >= 1 && devices.size() % static_cast<std::size_t>(options.stages) == 0);
  auto pool = std::unique_ptr<KvPool>(new KvPool(spec, options));
  for (Device* const device : devices) pool->streams_.push_back(device->NewStream());
  std::size_t bytes_min = 0;
  for (const KvGroup& shape : spec.groups) {
    auto made = std::make_unique<Group>();
    ASSIGN_OR_RETURN(made->layout,
                     PageLayout::Make(shape, options.block_tokens, options.page_tokens));
    made->slab_bytes = made->layout.slab_bytes();
    bytes_min += made->slab_bytes;
    pool->groups_.push_back(std::move(made));
  }
  if (options.pool_bytes < bytes_min) {
    return absl::InvalidArgumentError(absl::StrCat("pool_bytes must be at least ", bytes_min,
                                                   " (one block of every group), got ",
                                                   options.pool_bytes));
  }
  for (const std::unique_ptr<Group>& made : pool->groups_) {
    const std::size_t slabs = options.pool_bytes / made->slab_bytes;
    if (slabs > kSlabsMax) {
      return absl::InvalidArgumentError(
          absl::StrCat("pool_bytes must be at most ", (kSlabsMax + 1) * made->slab_bytes - 1,
                       " (2^24 slabs of ", made->slab_bytes, " bytes), got ", options.pool_bytes));
    }
    RETURN_IF_ERROR(pool->AddShards(*made, devices, slabs));
  }
  if (options.shared && (devices.size() > 1 || !pool->host_visible())) {
    ASSIGN_OR_RETURN(pool->host_, HostSlabs::Make(devices));
    for (const std::unique_ptr<Group>& made : pool->groups_) {
      RETURN_IF_ERROR(
          pool->host_->AddGroup(made->layout, made->shards, options.pool_bytes / made->slab_bytes));
    }
  }
  return pool;
}

absl::Status KvPool::AddShards(Group& own, std::span<Device* const> devices, std::size_t slabs) {
  const auto shards = static_cast<std::int32_t>(devices.size()) / options_.stages;
  ASSIGN_OR_RETURN(const std::vector<ShardRange> cache_layers,
                   CacheLayersOf(spec_, NumberOf(own), options_.stages));
  // Peers read one device's memory itself, but the host's of several.
  const bool peers = options_.shared && devices.size() == 1;
  for (std::size_t d = 0; d < devices.size(); ++d) {
    const ModelPart part =
        PartOf(static_cast<std::int32_t>(d), options_.stages, shards, /*sums=*/shards);
    GroupShard& shard = own.shards.emplace_back(
        own.layout, part.shard, cache_layers[static_cast<std::size_t>(part.stage.index)]);
    if (shard.slab_bytes == 0) continue;
    ASSIGN_OR_RETURN(shard.memory, devices[d]->Allocate(slabs * shard.slab_bytes,
                                                        peers ? Sharing::kPeers : Sharing::kNone));
    shard.base = shard.memory->data();
  }
  mapped_.AddGroup(own.shards[0].base, own.shards[0].slab_bytes);
  return absl::OkStatus();
}

KvPool::Group& KvPool::group(std::int32_t g) const {
  CHECK(g >= 0 && g < groups());
  return *groups_[static_cast<std::size_t>(g)];
}

const PageLayout& KvPool::layout(std::int32_t g) const { return group(g).layout; }
std::size_t KvPool::slab_bytes(std::int32_t g) const { return group(g).slab_bytes; }
const PageLayout& KvPool::layout_on(std::int32_t device, std::int32_t g) const {
  return group(g).shards[static_cast<std::size_t>(device)].layout;
}
std::int32_t KvPool::cache_layer_on(std::int32_t device, const KvLayerRef& layer) const {
  const ShardRange& own = group(layer.group).shards[static_cast<std::size_t>(device)].cache_layers;
  CHECK(layer.cache_layer >= own.begin && layer.cache_layer < own.end);
  return layer.cache_layer - own.begin;
}
DeviceMemory& KvPool::memory(std::int32_t g) {
  if (staged()) return host_->memory(g);
  CHECK_EQ(streams_.size(), 1u);
  return *group(g).shards[0].memory;
}
bool KvPool::host_visible() const {
  return streams_.size() == 1 && groups_[0]->shards[0].memory->host_visible();
}

kernels::SlabPools KvPool::pools(std::int32_t g, std::int32_t device) const {
  if (device == 0) return mapped_.pools(g);
  const GroupShard& own = group(g).shards[static_cast<std::size_t>(device)];
  return {.base = {&own.base, 1}, .stride_bytes = {&own.slab_bytes, 1}};
}

std::optional<SlabRef> KvPool::Allocate(std::int32_t g) {
  Group& own = group(g);
  if (own.slab_bytes > bytes_available()) return std::nullopt;
  if (own.free.size == 0) ReclaimFor(own);
  bytes_held_ += own.slab_bytes;
  if (own.free.size > 0) return own.Hold(&own.free, own.free.tail);
  bytes_committed_ += own.slab_bytes;
  CHECK_LE(bytes_committed_, options_.pool_bytes);
  if (own.bare.size > 0) return own.Hold(&own.bare, own.bare.tail);
  own.slabs.emplace_back();
  CHECK_LE(own.slabs.size() * own.slab_bytes, options_.pool_bytes);
  return own.Hold(nullptr, static_cast<std::uint32_t>(own.slabs.size() - 1));
}

// Makes room: until one more slab of `own` can be committed, or `own` has a free one.
void KvPool::ReclaimFor(Group& own) {
  while (own.free.size == 0 && options_.pool_bytes - bytes_committed_ < own.slab_bytes) {
    const auto with_free = std::find_if(groups_.begin(), groups_.end(),
                                        [](const auto& other) { return other->free.size > 0; });
    if (with_free != groups_.end()) {
      DecommitFree(**with_free);
      continue;
    }
    Group* const oldest = LeastRecentlyUsed();
    CHECK(oldest != nullptr);  // Allocate has seen that held slabs leave room.
    EvictOldest(*oldest);
  }
}

KvPool::Group* KvPool::LeastRecentlyUsed() const {
  Group* oldest = nullptr;
  const auto released = [](const Group& g) { return g.slabs[g.cached.head].released; };
  for (const std::unique_ptr<Group>& candidate : groups_) {
    if (candidate->cached.size == 0) continue;
    if (oldest == nullptr || released(*candidate) < released(*oldest)) oldest = candidate.get();
  }
  return oldest;
}

void KvPool::EvictOldest(Group& from) {
  const std::uint32_t index = from.cached.head;
  Slab& slab = from.slabs[index];
  from.by_key.erase(slab.block.key);
  slab.sealed = false;
  ++from.evicted;
  SlabRef ref;
  ref.index = index & 0xffffffu;
  for (Observer* const observer : observers_) {
    observer->OnEvicted(NumberOf(from), slab.block, ref);
  }
  from.Move(&from.cached, &from.free, Place::kFree, index);
}

std::int32_t KvPool::NumberOf(const Group& wanted) const {
  const auto it = std::ranges::find(groups_, &wanted, &std::unique_ptr<Group>::get);
  return static_cast<std::int32_t>(it - groups_.begin());
}

void KvPool::DecommitFree(Group& from) {
  const std::uint32_t index = from.free.head;
  for (const GroupShard& shard : from.shards) {
    if (shard.memory == nullptr) continue;
    shard.memory->Decommit(index * shard.slab_bytes, shard.slab_bytes);
  }
  bytes_committed_ -= from.slab_bytes;
  from.Move(&from.free, &from.bare, Place::kBare, index);
}

void KvPool::AddRef(std::int32_t g, SlabRef ref) {
  if (IsMapped(ref)) return mapped_.AddRef(g, ref);
  Slab& slab = group(g).At(ref);
  CHECK_GT(slab.refs, 0);
  ++slab.refs;
}

void KvPool::Release(std::int32_t g, SlabRef ref) {
  if (IsMapped(ref)) return mapped_.Release(g, ref);
  Group& own = group(g);
  Slab& slab = own.At(ref);
  CHECK_GT(slab.refs, 0);
  if (--slab.refs > 0) return;
  bytes_held_ -= own.slab_bytes;
  if (slab.sealed) {
    slab.released = ++clock_;
    own.Move(nullptr, &own.cached, Place::kCached, ref.index);
  } else {
    own.Move(nullptr, &own.free, Place::kFree, ref.index);
  }
}

std::int32_t KvPool::refs(std::int32_t g, SlabRef ref) const {
  return IsMapped(ref) ? mapped_.refs(g, ref) : group(g).At(ref).refs;
}

std::optional<SlabRef> KvPool::Map(std::int32_t g, std::shared_ptr<const MappedBlock> block) {
  CHECK_EQ(streams_.size(), 1u);
  return mapped_.Hold(g, std::move(block));
}

bool KvPool::Seal(std::int32_t g, SlabRef ref, const SealedBlock& block) {
  Group& own = group(g);
  if (IsMapped(ref)) return !own.by_key.contains(block.key) && mapped_.Seal(g, ref, block.key);
  Slab& slab = own.At(ref);
  CHECK_GT(slab.refs, 0);
  CHECK(!slab.sealed);
  if (!own.by_key.emplace(block.key, std::uint32_t{ref.index}).second) return false;
  mapped_.Forget(g, block.key);
  slab.block = block;
  slab.sealed = true;
  for (Observer* const observer : observers_) observer->OnSealed(g, block);
  return true;
}

std::optional<SlabRef> KvPool::Find(std::int32_t g, const BlockKey& key) {
  Group& own = group(g);
  const auto found = own.by_key.find(key);
  if (found == own.by_key.end()) return mapped_.Find(g, key);
  Slab& slab = own.slabs[found->second];
  if (slab.place == Place::kCached) {
    bytes_held_ += own.slab_bytes;
    return own.Hold(&own.cached, found->second);
  }
  ++slab.refs;
  SlabRef ref;
  ref.index = found->second & 0xffffffu;
  return ref;
}

bool KvPool::Contains(std::int32_t g, const BlockKey& key) const {
  return ContainsOwn(g, key) || mapped_.Contains(g, key);
}
bool KvPool::ContainsOwn(std::int32_t g, const BlockKey& key) const {
  return group(g).by_key.contains(key);
}

std::byte* KvPool::AddressOn(std::size_t device, std::int32_t g, SlabRef ref) {
  if (IsMapped(ref)) return mapped_.Address(g, ref);
  Group& own = group(g);
  const Slab& slab = own.At(ref);
  CHECK(slab.refs > 0 || slab.place == Place::kCached);
  return own.shards[device].At(ref.index);
}

std::byte* KvPool::Address(std::int32_t g, SlabRef ref) {
  CHECK(staged() || streams_.size() == 1);
  std::byte* const on_device = AddressOn(0, g, ref);
  return staged() && !IsMapped(ref) ? host_->Address(g, ref.index) : on_device;
}

const GroupShard& KvPool::shard(std::int32_t device, std::int32_t g) const {
  return group(g).shards[static_cast<std::size_t>(device)];
}

void KvPool::set_writer(Stream& writer) {
  CHECK_EQ(streams_.size(), 1u);
  if (staged()) host_->set_writer(writer);
}
void KvPool::set_stored(std::shared_ptr<const Event> stored) {
  CHECK_GT(streams_.size(), 1u);
  if (staged()) host_->set_stored(std::move(stored));
}
std::shared_ptr<const Event> KvPool::Written() { return staged() ? host_->Written() : nullptr; }
bool KvPool::Show(std::int32_t g, SlabRef slab) {
  if (!staged()) return false;
  CHECK(!IsMapped(slab));
  CHECK_GT(refs(g, slab), 0);
  return host_->Show(g, slab.index);
}
void KvPool::Hide(std::int32_t g, SlabRef slab) {
  if (staged()) host_->Hide(g, slab.index);
}
void KvPool::ToHost(std::int32_t g, std::span<const SlabRef> slabs,
                    std::optional<std::int32_t> cache_layer) {
  if (staged()) host_->ToHost(g, IndicesOf(slabs), cache_layer);
}
void KvPool::ToDevice(std::int32_t g, std::span<const SlabRef> slabs) {
  if (staged()) host_->ToDevice(g, IndicesOf(slabs));
}
void KvPool::AfterCopies(std::function<void()> done) {
  if (staged()) return host_->AfterCopies(std::move(done));
  done();
}
absl::Status KvPool::MakeEncoder(Device& device, kernels::Ops& ops) {
  CHECK_EQ(streams_.size(), 1u);
  if (!staged()) return absl::OkStatus();
  std::vector<PageLayout> layouts;
  for (const std::unique_ptr<Group>& own : groups_) layouts.push_back(own->layout);
  ASSIGN_OR_RETURN(encoder_, SlabEncoder::Make(device, ops, *host_, layouts));
  return absl::OkStatus();
}
SlabEncoder::Bytes KvPool::Encode(std::int32_t g, SlabRef slab,
                                  const kernels::KvEncoding& encoding) {
  CHECK(!IsMapped(slab));
  return encoder_ == nullptr ? nullptr
                             : encoder_->Encode(layout(g), AddressOn(0, g, slab), encoding);
}
SlabEncoder::Bytes KvPool::EncodeNow(std::int32_t g, SlabRef slab,
                                     const kernels::KvEncoding& encoding) {
  CHECK(!IsMapped(slab));
  return encoder_ == nullptr ? nullptr
                             : encoder_->EncodeNow(layout(g), AddressOn(0, g, slab), encoding);
}
void KvPool::Decode(std::int32_t g, SlabRef slab,
                    std::shared_ptr<const kernels::EncodedBlock> encoded) {
  CHECK(decodes());
  CHECK_GT(refs(g, slab), 0);
  encoder_->Decode(layout(g), AddressOn(0, g, slab), std::move(encoded));
}
std::uint64_t KvPool::last_copy() const { return staged() ? host_->last_copy() : 0; }
bool KvPool::Copied(std::uint64_t copy) { return !staged() || host_->Copied(copy); }
void KvPool::WaitForCopy(std::uint64_t copy) {
  if (staged()) host_->Wait(copy);
}

void KvPool::Copy(std::int32_t g, SlabRef from, SlabRef to) {
  CHECK(!IsMapped(to));
  for (std::size_t d = 0; d < streams_.size(); ++d) {
    streams_[d]->Copy(AddressOn(d, g, to), AddressOn(d, g, from),
                      group(g).shards[d].layout.block_bytes());
  }
  Synchronize();
}
bool KvPool::MakeOwn(std::int32_t g, SlabRef& slab, bool& changed) {
  const std::optional<SlabRef> own = Allocate(g);
  if (!own.has_value()) return false;
  Copy(g, slab, *own);
  changed |= Changed(g, slab);  // After all reads.
  Release(g, std::exchange(slab, *own));
  return true;
}
void KvPool::Save(std::int32_t g, SlabRef from, std::byte* to) {
  for (std::size_t d = 0; d < streams_.size(); ++d) {
    const GroupShard& shard = group(g).shards[d];
    if (!shard.first) continue;
    const std::byte* const slab = AddressOn(d, g, from);
    for (const SlabRun& run : shard.Runs(layout(g))) {
      streams_[d]->Copy(to + run.in_whole, slab + run.on_device, run.bytes);
    }
  }
  Synchronize();
}
void KvPool::Restore(std::int32_t g, const std::byte* from, SlabRef to) {
  CHECK(!IsMapped(to));
  for (std::size_t d = 0; d < streams_.size(); ++d) {
    std::byte* const slab = AddressOn(d, g, to);
    for (const SlabRun& run : group(g).shards[d].Runs(layout(g))) {
      streams_[d]->Copy(slab + run.on_device, from + run.in_whole, run.bytes);
    }
  }
  Synchronize();
}

void KvPool::Synchronize() {
  // A device that failed has lost every sequence: there is nothing to go on with.
  for (const std::unique_ptr<Stream>& stream : streams_) CHECK_OK(stream->Synchronize());
}

void KvPool::DropCached() {
  for (const std::unique_ptr<Group>& own : groups_) {
    while (own->cached.size > 0) EvictOldest(*own);
  }
}

KvPool::Stats KvPool::stats() const {
  Stats stats;
  stats.bytes_budget = options_.pool_bytes;
  stats.bytes_committed = bytes_committed_;
  stats.bytes_held = bytes_held_;
  stats.bytes_available = bytes_available();
  for (const std::unique_ptr<Group>& own : groups_) {
    const std::int64_t mapped = mapped_.held(NumberOf(*own));
    stats.groups.push_back({.slabs_held = own->held(),
                            .slabs_cached = own->cached.size,
                            .slabs_free = own->free.size,
                            .slabs_evicted = own->evicted,
                            .slabs_mapped = mapped,
                            .slab_bytes = own->slab_bytes});
    stats.bytes_mapped += static_cast<std::size_t>(mapped) * own->layout.block_bytes();
    stats.bytes_cached += static_cast<std::size_t>(own->cached.size) * own->slab_bytes;
    stats.bytes_free += static_cast<std::size_t>(own->free.size) * own->slab_bytes;
    stats.bytes_padding +=
        static_cast<std::size_t>(own->committed()) * (own->slab_bytes - own->layout.block_bytes());
  }
  return stats;
}

}  // namespace penstock::engine
