// SPDX-License-Identifier: Apache-2.0
// The block used longest ago goes first. Blocks of a chain are used head first, so of a chain that
// nobody asks for any more the head goes first: the yardstick for what knows better.
#pragma once

#include <string_view>
#include <vector>

#include "kvstore/eviction.h"

namespace penstock::kvstore {

class LruPolicy final : public EvictionPolicy {
 public:
  using EvictionPolicy::EvictionPolicy;
  std::string_view name() const override { return "lru"; }

 private:
  struct Links {
    Slot older = kNoSlot, newer = kNoSlot;
  };

  void OnUse(Slot slot, MonoTime now) override;
  void OnPut(Slot slot, MonoTime now) override;
  void OnRemove(Slot slot, bool evicted, MonoTime now) override;
  void OnPin(Slot slot) override;
  void OnUnpin(Slot slot, MonoTime now) override;
  Slot Victim(MonoTime) override { return oldest_; }

  void Append(Slot slot);
  void Take(Slot slot);

  std::vector<Links> links_;  // By slot; pinned ones are in no list.
  Slot oldest_ = kNoSlot, newest_ = kNoSlot;
};

}  // namespace penstock::kvstore
