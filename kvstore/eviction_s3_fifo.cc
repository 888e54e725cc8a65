// SPDX-License-Identifier: Apache-2.0
#include "kvstore/eviction_s3_fifo.h"

#include <algorithm>

namespace penstock::kvstore {
namespace {

constexpr std::uint32_t kUsesMax = 3;      // Two bits, as published.
constexpr std::uint32_t kUsesForMain = 2;  // Likewise.

}  // namespace

void S3FifoPolicy::OnUse(Slot slot, MonoTime) {
  places_[slot].uses = std::min(places_[slot].uses + 1, kUsesMax);
}

void S3FifoPolicy::OnPut(Slot slot, MonoTime) {
  if (slot >= places_.size()) places_.resize(slot + 1);
  places_[slot] = {};
  const auto ghost = ghost_places_.find(held(slot).block.key);
  if (ghost == ghost_places_.end()) return Append(slot, small_);
  ghost_bytes_ -= ghost->second->bytes;
  ghosts_.erase(ghost->second);
  ghost_places_.erase(ghost);
  Append(slot, main_);
}

void S3FifoPolicy::OnRemove(Slot slot, bool evicted, MonoTime) {
  if (evicted && places_[slot].queue == &small_) Remember(held(slot).block);
  if (!held(slot).pinned) places_[slot].queue->bytes -= held(slot).block.bytes;
  Take(slot);
}

void S3FifoPolicy::OnPin(Slot slot) { places_[slot].queue->bytes -= held(slot).block.bytes; }

// A pin is no use, and every lease and hold is a pin: the block's turn is when it would have been.
void S3FifoPolicy::OnUnpin(Slot slot, MonoTime) {
  Place& place = places_[slot];
  place.queue->bytes += held(slot).block.bytes;
  if (place.aside) place.at = place.queue->slots.insert(place.queue->slots.begin(), slot);
  place.aside = false;
}

EvictionPolicy::Slot S3FifoPolicy::Victim(MonoTime) {
  while (true) {
    SetPinnedAside(small_);
    SetPinnedAside(main_);
    const bool from_small =
        !small_.slots.empty() && (small_.bytes >= small_bytes_max_ || main_.slots.empty());
    Queue& queue = from_small ? small_ : main_;
    if (queue.slots.empty()) return kNoSlot;
    const Slot slot = queue.slots.front();
    std::uint32_t& uses = places_[slot].uses;
    if (uses < (from_small ? kUsesForMain : 1)) return slot;
    uses = from_small ? 0 : uses - 1;
    queue.bytes -= held(slot).block.bytes;
    Take(slot);
    Append(slot, main_);
  }
}

// Those whose turn it would be, so that no later call meets them again.
void S3FifoPolicy::SetPinnedAside(Queue& queue) {
  while (!queue.slots.empty() && held(queue.slots.front()).pinned) {
    places_[queue.slots.front()].aside = true;
    queue.slots.pop_front();
  }
}

void S3FifoPolicy::Append(Slot slot, Queue& queue) {
  queue.bytes += held(slot).block.bytes;
  places_[slot].queue = &queue;
  places_[slot].at = queue.slots.insert(queue.slots.end(), slot);
}

void S3FifoPolicy::Take(Slot slot) {
  const Place& place = places_[slot];
  if (!place.aside) place.queue->slots.erase(place.at);
}

void S3FifoPolicy::Remember(const EvictionBlock& block) {
  ghost_places_[block.key] = ghosts_.insert(ghosts_.end(), {block.key, block.bytes});
  ghost_bytes_ += block.bytes;
  while (ghosts_.size() > options().ghosts_max ||
         ghost_bytes_ > options().capacity_bytes - small_bytes_max_) {
    ghost_bytes_ -= ghosts_.front().bytes;
    ghost_places_.erase(ghosts_.front().key);
    ghosts_.pop_front();
  }
}

}  // namespace penstock::kvstore
