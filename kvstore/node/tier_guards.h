// SPDX-License-Identifier: Apache-2.0
// Who keeps room of host memory while the disk or the network may still touch it: owners of bytes, for
// the parts of TierSet. They may outlive the tiers, and then do nothing.
#pragma once

#include <cstdint>
#include <utility>

#include "base/event_loop.h"
#include "kvstore/host/host_tier.h"
#include "transfer/life.h"

namespace penstock::kvstore {

// Bytes that a copy has in host memory and on disk: whole pages.
inline std::uint32_t RoundUp(std::uint32_t bytes) {
  constexpr std::uint32_t kPage = HostTier::kPageBytes;
  return (bytes + kPage - 1) / kPage * kPage;
}

// Drops a hold once nobody uses the bytes any more. What the disk has may outlive the tiers.
class HoldGuard {
 public:
  HoldGuard(transfer::Life::Watch life, HostTier& host, const BlockKey& key, Loop& loop)
      : life_(std::move(life)), host_(host), hold_(host.HoldCopy(key)), loop_(loop) {}
  ~HoldGuard() {
    if (!life_.over()) host_.DropHold(hold_, loop_.Now());
  }
  HoldGuard(const HoldGuard&) = delete;
  HoldGuard& operator=(const HoldGuard&) = delete;

 private:
  const transfer::Life::Watch life_;
  HostTier& host_;
  const HostTier::Hold hold_;
  Loop& loop_;
};

// Gives reserved room back once nobody writes there any more, unless it was published.
class RoomGuard {
 public:
  RoomGuard(transfer::Life::Watch life, HostTier& host, const BlockKey& key)
      : life_(std::move(life)), host_(host), key_(key) {}
  ~RoomGuard() {
    if (!life_.over() && !published_) host_.Cancel(key_);
  }
  RoomGuard(const RoomGuard&) = delete;
  RoomGuard& operator=(const RoomGuard&) = delete;
  void Published() { published_ = true; }

 private:
  const transfer::Life::Watch life_;
  HostTier& host_;
  const BlockKey key_;
  bool published_ = false;
};

}  // namespace penstock::kvstore
