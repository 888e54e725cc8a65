// SPDX-License-Identifier: Apache-2.0
// Brings copies that a waiting request will want from the slower tiers of a node to host memory, so
// that its fetch finds them there.
//
// Its reads are of class prefetch: on the link of a tier they go behind those that somebody waits for.
// It never makes a copy stay: one that is evicted before its request comes was not worth its room.
//
// Owned by the node; on its loop.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>

#include "base/event_loop.h"
#include "base/key.h"
#include "base/time.h"
#include "kvstore/node/tier_set.h"
#include "transfer/life.h"

namespace penstock::kvstore {

class Prefetcher {
 public:
  struct Options {
    std::size_t queue_max = std::size_t{1} << 14;  // Copies; beyond, they are passed over.
    std::size_t reads_max = 8;  // At a time, those that wait for their turn, too.
  };
  struct Stats {
    std::uint64_t brought = 0;
    std::uint64_t passed_over = 0;  // The queue was full, the time over, or the tier could not.
  };

  // Both outlive it.
  Prefetcher(Loop& loop, TierSet& tiers, Options options);

  // In this order; those that are in host memory, or nowhere, cost nothing.
  void Want(std::span<const BlockKey> keys, MonoTime deadline);

  const Stats& stats() const { return stats_; }
  std::size_t waiting() const { return queue_.size(); }
  std::size_t reading() const { return reading_; }

 private:
  struct Wanted {
    BlockKey key;
    MonoTime deadline;
  };
  void Pump();

  Loop& loop_;
  TierSet& tiers_;
  const Options options_;
  std::deque<Wanted> queue_;
  std::size_t reading_ = 0;
  Stats stats_;
  transfer::Life life_;
};

}  // namespace penstock::kvstore
