// SPDX-License-Identifier: Apache-2.0
// Workers of hour_sim.h: how long they take, and what their caches hold. Nothing else.
#pragma once

#include <algorithm>
#include <cstdint>
#include <list>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "base/attempt.h"
#include "base/key.h"
#include "base/time.h"
#include "coordinator/coordinator.h"

namespace penstock::sim {

// Whole blocks, the longest unused of them leaves first; tells the coordinator's index.
class BlockCache {
 public:
  std::uint32_t Usable(const std::vector<Chain>& chains) const {
    std::uint32_t n = 0;
    while (n < chains.size() && at_.contains(chains[n])) ++n;
    return n;
  }
  // Of `chains` the last ones leave first. Returns what the index has to hear.
  std::vector<BlockEvent> Add(const std::vector<Chain>& chains, std::size_t max) {
    using Kind = BlockEvent::Kind;
    std::vector<BlockEvent> events;
    for (auto chain = chains.rbegin(); chain != chains.rend(); ++chain) {
      if (const auto found = at_.find(*chain); found != at_.end()) {
        order_.splice(order_.begin(), order_, found->second);
        continue;
      }
      order_.push_front(*chain);
      at_[*chain] = order_.begin();
      events.push_back({.kind = Kind::kStored, .chain = *chain});
    }
    while (order_.size() > max) {
      events.push_back({.kind = Kind::kRemoved, .chain = order_.back()});
      at_.erase(order_.back());
      order_.pop_back();
    }
    return events;
  }

 private:
  std::list<Chain> order_;  // Last used first.
  absl::flat_hash_map<Chain, std::list<Chain>::iterator> at_;
};

struct HourWorker {
  coordinator::WorkerRef ref;
  coordinator::Role role{};
  BlockCache cache;
  std::uint64_t block_events = 0;
  std::uint64_t grants = 0;
  std::uint64_t tokens = 0;  // Of prompts, or, on a decode worker, of answers.
  // Prefill: until all it was given is computed.
  MonoTime busy_until{};

  // Decode. Blocks of each attempt that has a reservation or runs.
  std::map<Attempt, std::uint64_t> held;
  std::uint64_t blocks_held = 0;
  // Those that run, by the count of steps at which they end.
  std::multimap<double, std::pair<Attempt, std::vector<Chain>>> running;
  double steps = 0;  // Up to `steps_at`.
  MonoTime steps_at{};
  std::uint64_t timer = 0;  // The newest one counts.
};

}  // namespace penstock::sim
