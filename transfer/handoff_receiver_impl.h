// SPDX-License-Identifier: Apache-2.0
// What a HandoffReceiver keeps of peers and handoffs, for the files that implement it:
// handoff_receiver.cc (handoffs) and handoff_receiver_peers.cc (peers).
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "transfer/handoff_receiver.h"

namespace penstock::transfer {

struct HandoffReceiver::Stretch {
  Handoff* handoff = nullptr;
  std::size_t span = 0;  // Of the handoff's spans.
  std::int32_t first_block = 0;
  SegmentId segment{};
  Lane lane;
  std::vector<Unit> units;
  std::vector<std::uint32_t> crcs;
  std::size_t bytes = 0;
  ReadParts parts = {};  // Of the last read.
  int tries = 0;
  LinkTurns::Turn turn;        // Once it is not in the peer's queue.
  std::optional<ReadId> read;  // While it is under way.
};

struct HandoffReceiver::Sender {
  std::unique_ptr<Channel> channel;  // Never null.
  std::vector<PoolGroup> pool;       // Empty until its Pool message came.
  std::vector<SplitPlan> plans;      // From its slabs to ours, one per group.
  std::map<std::uint64_t, Stretch> stretches;
  // Not asked for, the next one first: by deadline, then in the order they were told.
  std::set<std::pair<MonoTime, std::uint64_t>> queue;
  std::size_t bytes_in_flight = 0;  // Under way, or waiting for their turns.
  std::size_t reads_in_flight = 0;  // Likewise.
  std::size_t legs_max = 1;         // Of a unit.
};

struct HandoffReceiver::Handoff {
  Grant grant;
  Target target;
  Done done;
  Loop::TimerId timer{};
  Sender* sender = nullptr;  // Once one told us something.
  bool ending = false;
  std::int32_t stretches = 0;           // Queued or under way.
  bool settled = true;                  // Nothing comes from elsewhere, or no more.
  std::vector<ReadyMessage> held;       // Told of, until it is settled.
  std::optional<MappedMessage> mapped;  // Likewise: the hull of all.
  // groups[g].units[cache_layer * blocks + b - first]: whether block b of the layer was told, and
  // verified.
  enum class UnitState : std::uint8_t { kMissing, kTold, kVerified };
  struct UnitOfBlock {
    UnitState state = UnitState::kMissing;
    std::uint8_t legs_left = 0;  // While told: those that are not verified.
  };
  struct Group {
    std::int32_t first = 0;  // The first block that must be read.
    std::int32_t blocks = 0;
    std::vector<UnitOfBlock> units;
  };
  std::vector<Group> groups;
  std::int64_t missing = 0;  // Units not verified.
  Outcome outcome;

  UnitOfBlock& At(std::int32_t group, std::int32_t cache_layer, std::int32_t block) {
    Group& g = groups[static_cast<std::size_t>(group)];
    return g
        .units[static_cast<std::size_t>(std::int64_t{cache_layer} * g.blocks + block - g.first)];
  }
  std::int32_t BlocksValid() const;
};

}  // namespace penstock::transfer
