// SPDX-License-Identifier: Apache-2.0
#include "transfer/segment_table.h"

#include <algorithm>

#include "base/check.h"

namespace penstock::transfer {

SegmentId SegmentTable::Register(DeviceMemory& memory, std::size_t gpu) {
  return Register({.bytes = {memory.data(), memory.size_bytes()},
                   .shared_fd = memory.shared_fd(),
                   .gpu = memory.host_visible() ? std::nullopt : std::optional(gpu)});
}

SegmentId SegmentTable::Register(const Segment& segment) {
  const SegmentId id{next_++};
  CHECK(id != SegmentId{0});  // 2^32 of them in one life.
  segments_.emplace(id, segment);
  return id;
}

void SegmentTable::Withdraw(SegmentId segment) {
  CHECK_EQ(segments_.erase(segment), 1u);
  for (Watcher* const watcher : watchers_) watcher->OnWithdraw(segment);
}

const SegmentTable::Segment* SegmentTable::Find(SegmentId segment) const {
  const auto found = segments_.find(segment);
  return found == segments_.end() || found->second.gpu.has_value() ? nullptr : &found->second;
}

const SegmentTable::Segment* SegmentTable::FindOn(std::size_t gpu, SegmentId segment) const {
  const auto found = segments_.find(segment);
  if (found == segments_.end()) return nullptr;
  const Segment& there = found->second;
  const bool loads = there.gpu.has_value() ? *there.gpu == gpu : there.shared_fd < 0;
  return loads ? &there : nullptr;
}

void SegmentTable::AddWatcher(Watcher& watcher) { watchers_.push_back(&watcher); }

void SegmentTable::RemoveWatcher(Watcher& watcher) {
  CHECK_EQ(std::erase(watchers_, &watcher), 1u);
}

}  // namespace penstock::transfer
