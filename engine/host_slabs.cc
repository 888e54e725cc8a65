// SPDX-License-Identifier: Apache-2.0
#include "engine/host_slabs.h"

#include <utility>

#include "base/check.h"
#include "base/status.h"
#include "device/cpu_device.h"

namespace penstock::engine {
namespace {

// Of each of two pinned pieces: at 25 GB/s a copy takes 160 us, much more than starting it.
constexpr std::size_t kPieceBytes = std::size_t{4} << 20;

}  // namespace

absl::StatusOr<std::unique_ptr<HostSlabs>> HostSlabs::Make(Device& device) {
  std::unique_ptr<HostSlabs> slabs(new HostSlabs);
  ASSIGN_OR_RETURN(slabs->copies_, StagedCopies::Make(device, kPieceBytes));
  return slabs;
}

absl::Status HostSlabs::AddGroup(const PageLayout& layout, DeviceMemory& on_device) {
  Group& group = groups_.emplace_back();
  group.layout = layout;
  group.on_device = on_device.data();
  ASSIGN_OR_RETURN(group.memory, AllocateHostMemory(on_device.size_bytes(), Sharing::kPeers));
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
  std::size_t begin = 0, bytes = group.layout.block_bytes();
  if (cache_layer.has_value()) {
    begin = group.layout.PageOffset(*cache_layer, 0, 0);
    bytes = group.layout.PageOffset(*cache_layer + 1, 0, 0) - begin;
  }
  std::vector<StagedCopies::Run> runs;
  for (const std::uint32_t slab : slabs) {
    CHECK(group.shown.contains(slab));
    const std::size_t offset = slab * group.layout.slab_bytes() + begin;
    runs.push_back({group.memory->data() + offset, group.on_device + offset, bytes});
  }
  last_copy_ = copies_->Post(StagedCopies::Way::kToHost, std::move(runs),
                             writer_ == nullptr ? nullptr : writer_->Record(), nullptr);
}

void HostSlabs::ToDevice(std::int32_t g, std::span<const std::uint32_t> slabs) {
  if (slabs.empty()) return;
  const Group& group = At(g);
  std::vector<StagedCopies::Run> runs;
  for (const std::uint32_t slab : slabs) {
    CHECK(group.shown.contains(slab));
    const std::size_t offset = slab * group.layout.slab_bytes();
    runs.push_back(
        {group.on_device + offset, group.memory->data() + offset, group.layout.block_bytes()});
  }
  last_copy_ = copies_->Post(StagedCopies::Way::kToDevice, std::move(runs), nullptr, nullptr);
}

void HostSlabs::AfterCopies(std::function<void()> done) {
  copies_->Post(StagedCopies::Way::kToHost, {}, nullptr, std::move(done));
}

}  // namespace penstock::engine
