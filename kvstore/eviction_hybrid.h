// SPDX-License-Identifier: Apache-2.0
// Frequency with ageing: GreedyDual with frequency (Cherkasova, "Improving WWW proxies performance with
// Greedy-Dual-Size-Frequency caching policy", HPL-98-69, 1998), with a cost in proportion to size, so
// that neither counts. A block's value is its uses plus the value of the last victim when it was used
// last; the lowest goes first. Among equals the request longest ago, and of one request the tail.
#pragma once

#include <cstdint>
#include <set>
#include <string_view>
#include <tuple>
#include <vector>

#include "kvstore/eviction.h"

namespace penstock::kvstore {

class HybridPolicy final : public EvictionPolicy {
 public:
  using EvictionPolicy::EvictionPolicy;
  std::string_view name() const override { return "hybrid"; }

 private:
  struct Value {
    std::uint64_t uses = 0;
    std::uint64_t value = 0;
    std::uint64_t ask = 0;  // The last request.
  };
  using Rank = std::tuple<std::uint64_t, std::uint64_t, std::uint32_t, Slot>;

  void OnUse(Slot slot, MonoTime now) override;
  void OnPut(Slot slot, MonoTime now) override;
  void OnRemove(Slot slot, bool evicted, MonoTime now) override;
  void OnPin(Slot slot) override { order_.erase(RankOf(slot)); }
  void OnUnpin(Slot slot, MonoTime) override { order_.insert(RankOf(slot)); }
  Slot Victim(MonoTime now) override;

  void Count(Slot slot);
  Rank RankOf(Slot slot) const;

  std::vector<Value> values_;  // By slot.
  std::set<Rank> order_;
  std::uint64_t age_ = 0;  // Value of the last victim.
};

}  // namespace penstock::kvstore
