// SPDX-License-Identifier: Apache-2.0
#include "engine/host_slabs.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "base/check.h"
#include "base/status.h"
#include "device/cpu_device.h"

namespace penstock::engine {
namespace {

// Of each of two pinned pieces: at 25 GB/s a copy takes 160 us, much more than starting it.
constexpr std::size_t kPieceBytes = std::size_t{4} << 20;

}  // namespace

absl::StatusOr<std::unique_ptr<HostSlabs>> HostSlabs::Make(std::span<Device* const> devices) {
  std::unique_ptr<HostSlabs> slabs(new HostSlabs);
  for (Device* const device : devices) {
    ASSIGN_OR_RETURN(std::unique_ptr<StagedCopies> copies,
                     StagedCopies::Make(*device, kPieceBytes));
    slabs->shards_.push_back({.writer = nullptr, .copies = std::move(copies)});
  }
  return slabs;
}

absl::Status HostSlabs::AddGroup(const PageLayout& whole, std::span<const GroupShard> shards,
                                 std::size_t slabs) {
  CHECK_EQ(shards.size(), shards_.size());
  Group& group = groups_.emplace_back();
  group.layout = whole;
  group.shards = shards;
  ASSIGN_OR_RETURN(group.memory, AllocateHostMemory(slabs * whole.slab_bytes(), Sharing::kPeers));
  return absl::OkStatus();
}

void HostSlabs::Hide(std::int32_t g, std::uint32_t slab) {
  Group& group = At(g);
  const auto it = group.shown.find(slab);
  CHECK(it != group.shown.end());
  if (--it->second > 0) return;
  group.shown.erase(it);
  const std::size_t slab_bytes = group.layout.slab_bytes();
  group.memory->Decommit(slab * slab_bytes, slab_bytes);
}

void HostSlabs::ToHost(std::int32_t g, std::span<const std::uint32_t> slabs,
                       std::optional<std::int32_t> cache_layer) {
  if (slabs.empty()) return;
  const Group& group = At(g);
  for (const std::uint32_t slab : slabs) CHECK(group.shown.contains(slab));
  std::vector<Part> parts(shards_.size());
  for (std::size_t s = 0; s < parts.size(); ++s) {
    const GroupShard& shard = group.shards[s];
    if (!shard.first) continue;
    if (shards_[s].writer != nullptr) parts[s].after = shards_[s].writer->Record();
    const std::vector<SlabRun> runs = shard.Runs(group.layout, cache_layer);
    for (const std::uint32_t slab : slabs) {
      std::byte* const to = Address(g, slab);
      for (const SlabRun& run : runs) {
        parts[s].runs.push_back({to + run.in_whole, shard.At(slab) + run.on_device, run.bytes});
      }
    }
  }
  last_copy_ = Post(StagedCopies::Way::kToHost, std::move(parts), nullptr);
}

void HostSlabs::ToDevice(std::int32_t g, std::span<const std::uint32_t> slabs) {
  if (slabs.empty()) return;
  const Group& group = At(g);
  for (const std::uint32_t slab : slabs) CHECK(group.shown.contains(slab));
  std::vector<Part> parts(shards_.size());
  for (std::size_t s = 0; s < parts.size(); ++s) {
    const GroupShard& shard = group.shards[s];
    const std::vector<SlabRun> runs = shard.Runs(group.layout);
    for (const std::uint32_t slab : slabs) {
      const std::byte* const from = Address(g, slab);
      for (const SlabRun& run : runs) {
        parts[s].runs.push_back({shard.At(slab) + run.on_device, from + run.in_whole, run.bytes});
      }
    }
  }
  last_copy_ = Post(StagedCopies::Way::kToDevice, std::move(parts), nullptr);
}

void HostSlabs::AfterCopies(std::function<void()> done) {
  struct Left {
    std::atomic<std::size_t> devices;
    const std::function<void()> done;
  };
  const auto left = std::make_shared<Left>(shards_.size(), std::move(done));
  Post(StagedCopies::Way::kToHost, std::vector<Part>(shards_.size()), [left] {
    if (--left->devices == 0) left->done();
  });
}

std::uint64_t HostSlabs::Post(StagedCopies::Way way, std::vector<Part> parts,
                              const StagedCopies::Done& done) {
  const std::lock_guard lock(posting_);
  std::uint64_t batch = 0;
  for (std::size_t s = 0; s < shards_.size(); ++s) {
    const std::uint64_t number =
        shards_[s].copies->Post(way, std::move(parts[s].runs), std::move(parts[s].after), done);
    CHECK(s == 0 || number == batch);
    batch = number;
  }
  return batch;
}

bool HostSlabs::Copied(std::uint64_t copy) {
  return std::ranges::all_of(shards_,
                             [copy](const Shard& shard) { return shard.copies->Copied(copy); });
}

void HostSlabs::Wait(std::uint64_t copy) {
  for (const Shard& shard : shards_) shard.copies->Wait(copy);
}

}  // namespace penstock::engine
