// SPDX-License-Identifier: Apache-2.0
// The memory that an endpoint lets its peers read. On the endpoint's loop, as its links.
#pragma once

#include <cstddef>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "device/device.h"
#include "transfer/link.h"

namespace penstock::transfer {

class SegmentTable {
 public:
  struct Segment {
    std::span<const std::byte> bytes;
    int shared_fd = -1;  // What peers of this host may map; -1: nothing.
    // The host cannot load from it: only links of kind nccl serve it, from that one of the
    // endpoint's GPUs.
    std::optional<std::size_t> gpu = {};
  };
  // A link that serves reads.
  class Watcher {
   public:
    virtual ~Watcher() = default;
    // The segment's bytes are gone when this returns.
    virtual void OnWithdraw(SegmentId segment) = 0;
  };

  SegmentTable() = default;
  SegmentTable(const SegmentTable&) = delete;
  SegmentTable& operator=(const SegmentTable&) = delete;

  // The memory stays valid until Withdraw.
  // `gpu`: whose it is, where the host cannot load from it.
  SegmentId Register(DeviceMemory& memory, std::size_t gpu = 0);
  SegmentId Register(const Segment& segment);
  // Peers' reads from it end as NOT_FOUND, those under way included. It must be registered
  // (CHECKed).
  void Withdraw(SegmentId segment);
  // Null when there is none that the host can load from.
  const Segment* Find(SegmentId segment) const;
  // Null when there is none that a kernel on that GPU can load from: memory of its own, or pinned.
  // Memory that processes of the host share is none.
  const Segment* FindOn(std::size_t gpu, SegmentId segment) const;

  // A watcher is there once, and removed before it dies.
  void AddWatcher(Watcher& watcher);
  void RemoveWatcher(Watcher& watcher);

 private:
  std::uint32_t next_ = 1;
  std::map<SegmentId, Segment> segments_;
  std::vector<Watcher*> watchers_;
};

}  // namespace penstock::transfer
