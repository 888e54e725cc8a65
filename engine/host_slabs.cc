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
    slabs->copies_.push_back(std::move(copies));
  }
  return slabs;
}

absl::Status HostSlabs::AddGroup(const PageLayout& whole, std::span<const GroupShard> shards,
                                 std::size_t slabs) {
  CHECK_EQ(shards.size(), copies_.size());
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
  std::vector<Runs> copies(copies_.size());
  for (std::size_t s = 0; s < copies.size(); ++s) {
    const GroupShard& shard = group.shards[s];
    if (!shard.first) continue;
    const std::vector<SlabRun> runs = shard.Runs(group.layout, cache_layer);
    for (const std::uint32_t slab : slabs) {
      std::byte* const to = Address(g, slab);
      for (const SlabRun& run : runs) {
        copies[s].push_back({to + run.in_whole, shard.At(slab) + run.on_device, run.bytes});
      }
    }
  }
  last_copy_ = Post(StagedCopies::Way::kToHost, std::move(copies), nullptr);
}

void HostSlabs::ToDevice(std::int32_t g, std::span<const std::uint32_t> slabs) {
  if (slabs.empty()) return;
  const Group& group = At(g);
  for (const std::uint32_t slab : slabs) CHECK(group.shown.contains(slab));
  std::vector<Runs> copies(copies_.size());
  for (std::size_t s = 0; s < copies.size(); ++s) {
    const GroupShard& shard = group.shards[s];
    const std::vector<SlabRun> runs = shard.Runs(group.layout);
    for (const std::uint32_t slab : slabs) {
      const std::byte* const from = Address(g, slab);
      for (const SlabRun& run : runs) {
        copies[s].push_back({shard.At(slab) + run.on_device, from + run.in_whole, run.bytes});
      }
    }
  }
  last_copy_ = Post(StagedCopies::Way::kToDevice, std::move(copies), nullptr);
}

void HostSlabs::Bring(std::byte* to, const std::byte* from, std::size_t bytes,
                      std::function<void()> done) {
  CHECK_EQ(copies_.size(), 1u);
  last_copy_ = Post(StagedCopies::Way::kToHost, {{{to, from, bytes}}}, std::move(done));
}

void HostSlabs::Send(std::byte* to, std::span<const std::byte> from, StagedCopies::Work work,
                     std::function<void()> done) {
  CHECK_EQ(copies_.size(), 1u);
  const std::lock_guard lock(posting_);
  last_copy_ = copies_[0]->Post({{to, from.data(), from.size()}}, std::move(work), std::move(done));
}

void HostSlabs::AfterCopies(std::function<void()> done) {
  const auto left = std::make_shared<std::atomic<std::size_t>>(copies_.size());
  Post(StagedCopies::Way::kToDevice, std::vector<Runs>(copies_.size()),
       [left, done = std::move(done)] {
         if (--*left == 0) done();
       });
}

std::uint64_t HostSlabs::Post(StagedCopies::Way way, std::vector<Runs> runs,
                              const StagedCopies::Done& done) {
  const std::lock_guard lock(posting_);
  const bool waits = way == StagedCopies::Way::kToHost;
  std::uint64_t batch = 0;
  for (std::size_t s = 0; s < copies_.size(); ++s) {
    const std::uint64_t number =
        copies_[s]->Post(way, std::move(runs[s]), waits ? Written() : nullptr, done);
    CHECK(s == 0 || number == batch);
    batch = number;
  }
  return batch;
}

bool HostSlabs::Copied(std::uint64_t copy) {
  return std::ranges::all_of(copies_, [copy](const auto& copies) { return copies->Copied(copy); });
}

void HostSlabs::Wait(std::uint64_t copy) {
  for (const std::unique_ptr<StagedCopies>& copies : copies_) copies->Wait(copy);
}

}  // namespace penstock::engine
