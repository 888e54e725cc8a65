// SPDX-License-Identifier: Apache-2.0
#include "kvstore/eviction_lru.h"

namespace penstock::kvstore {

void LruPolicy::OnUse(Slot slot, MonoTime) {
  if (held(slot).pinned) return;
  Take(slot);
  Append(slot);
}

void LruPolicy::OnPut(Slot slot, MonoTime) {
  if (slot >= links_.size()) links_.resize(slot + 1);
  Append(slot);
}

void LruPolicy::OnRemove(Slot slot, bool, MonoTime) {
  if (!held(slot).pinned) Take(slot);
}

void LruPolicy::OnPin(Slot slot) { Take(slot); }

void LruPolicy::OnUnpin(Slot slot, MonoTime) { Append(slot); }

void LruPolicy::Append(Slot slot) {
  links_[slot] = {.older = newest_, .newer = kNoSlot};
  (newest_ == kNoSlot ? oldest_ : links_[newest_].newer) = slot;
  newest_ = slot;
}

void LruPolicy::Take(Slot slot) {
  const Links& links = links_[slot];
  (links.older == kNoSlot ? oldest_ : links_[links.older].newer) = links.newer;
  (links.newer == kNoSlot ? newest_ : links_[links.newer].older) = links.older;
}

}  // namespace penstock::kvstore
