// SPDX-License-Identifier: Apache-2.0
#include "transfer/segment_table.h"

#include <algorithm>

#include "base/check.h"

namespace penstock::transfer {

SegmentId SegmentTable::Register(DeviceMemory& memory) {
  return Register({.bytes = {memory.data(), memory.size_bytes()},
                   .shared_fd = memory.shared_fd(),
                   .on_device = !memory.host_visible()});
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
  const Segment* const found = FindAny(segment);
  return found == nullptr || found->on_device ? nullptr : found;
}

const SegmentTable::Segment* SegmentTable::FindAny(SegmentId segment) const {
  const auto found = segments_.find(segment);
  return found == segments_.end() ? nullptr : &found->second;
}

void SegmentTable::AddWatcher(Watcher& watcher) { watchers_.push_back(&watcher); }

void SegmentTable::RemoveWatcher(Watcher& watcher) {
  CHECK_EQ(std::erase(watchers_, &watcher), 1u);
}

}  // namespace penstock::transfer
