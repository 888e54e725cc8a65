// SPDX-License-Identifier: Apache-2.0
#include "kvstore/eviction_hybrid.h"

namespace penstock::kvstore {

void HybridPolicy::OnUse(Slot slot, MonoTime) {
  const bool free = order_.erase(RankOf(slot)) > 0;
  Count(slot);
  if (free) order_.insert(RankOf(slot));
}

void HybridPolicy::OnPut(Slot slot, MonoTime) {
  if (slot >= values_.size()) values_.resize(slot + 1);
  values_[slot] = {};
  Count(slot);
  order_.insert(RankOf(slot));
}

void HybridPolicy::OnRemove(Slot slot, bool, MonoTime) { order_.erase(RankOf(slot)); }

EvictionPolicy::Slot HybridPolicy::Victim(MonoTime) {
  if (order_.empty()) return kNoSlot;
  const Slot slot = std::get<3>(*order_.begin());
  age_ = values_[slot].value;
  return slot;
}

void HybridPolicy::Count(Slot slot) {
  Value& value = values_[slot];
  ++value.uses;
  value.value = age_ + value.uses;
  value.ask = asks();
}

HybridPolicy::Rank HybridPolicy::RankOf(Slot slot) const {
  const Value& value = values_[slot];
  return {value.value, value.ask, UINT32_MAX - held(slot).block.tokens_before, slot};
}

}  // namespace penstock::kvstore
