// SPDX-License-Identifier: Apache-2.0
// Brings copies of hot blocks from another node, because the coordinator wants a second holder of them:
// their frames as they are, into host memory, from where they go the way of all copies.
//
// An order goes like a worker's fetch: Find at the other node, and a read of each frame that is found,
// verified as a put is. Reads are of class replication: they give way to all that somebody waits for.
// What is here already is passed over; an order ends at the first block that the other node has not,
// with its deadline, or with that node. What came stays.
//
// Owned by the node; on its loop. Its end must be followed by that of its links: until then bytes may
// come into room that was taken.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "base/event_loop.h"
#include "base/key.h"
#include "base/time.h"
#include "kvstore/node/frame_put.h"
#include "kvstore/node/store_links.h"
#include "kvstore/node/tier_set.h"
#include "transfer/life.h"
#include "transfer/link_turns.h"

namespace penstock::kvstore {

class Replicator {
 public:
  struct Options {
    std::vector<std::byte> secret = {};  // The cluster's; empty: frames need no MAC.
    std::size_t orders_max = 64;         // That wait; beyond, they are passed over.
    std::size_t finds_max = 2;           // At a time.
  };
  struct Order {
    StoreAddress from = {};
    Namespace space = {};              // A copy space.
    std::vector<Chain> chains = {};    // Of consecutive blocks; what is beyond kChainsMax is left.
    std::optional<Chain> parent = {};  // Of the first.
    std::uint32_t tenant = 0;
    MonoTime deadline;
  };
  struct Stats {
    std::uint64_t copied = 0;
    std::uint64_t bytes = 0;        // Of those frames.
    std::uint64_t passed_over = 0;  // Blocks that are here, or did not come.
    std::uint64_t refused = 0;      // Of those, frames that were none of this cluster.
  };

  // All outlive it.
  Replicator(Loop& loop, TierSet& tiers, StoreLinks& links, transfer::LinkTurns& turns,
             Options options);
  ~Replicator();

  void Copy(Order order);

  const Stats& stats() const { return stats_; }
  bool idle() const { return queue_.empty() && finds_.empty(); }

 private:
  // An order at work.
  struct Find {
    Order order;
    std::vector<std::size_t> wanted;  // Of its chains: those asked for.
    StoreLink* link = nullptr;        // Null before it is there, and once it is gone.
    std::uint64_t id = 0;
    Loop::TimerId timer{};
    bool connected = false;  // Or not to be.
    bool asking = true;      // More may be found.
    bool over = false;
    std::size_t found = 0;   // So far.
    std::size_t copied = 0;  // Of those.
    struct Reading {
      std::unique_ptr<FramePut> put;
      std::optional<transfer::ReadId> read = {};
    };
    std::map<std::size_t, Reading> reading;  // By index in `wanted`.
  };

  void Pump();
  void Begin(Find& find, const absl::StatusOr<StoreLink*>& link);
  void OnAnswer(Find& find, const absl::StatusOr<StoreMessage>& answer);
  absl::Status OnFound(Find& find, const FoundMessage& found);
  void Read(Find& find, std::size_t index);
  void OnRead(Find& find, std::size_t index, const absl::Status& status);
  void Drop(Find& find, std::size_t index, const absl::Status& why);
  void Stop(Find& find);
  void EndIfOver(Find& find);

  Loop& loop_;
  TierSet& tiers_;
  StoreLinks& links_;
  transfer::LinkTurns& turns_;
  const Options options_;
  std::optional<Secret> secret_;
  std::deque<Order> queue_;
  std::list<Find> finds_;
  Stats stats_;
  transfer::Life life_;
};

}  // namespace penstock::kvstore
