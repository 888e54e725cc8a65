// SPDX-License-Identifier: Apache-2.0
// What is remembered: known blocks, their visits, and the cells that order these.
#include <algorithm>

#include "base/check.h"
#include "kvstore/eviction_density.h"

namespace penstock::kvstore {

ReuseDensityPolicy::Id ReuseDensityPolicy::Find(const BlockKey& key) const {
  const auto found = ids_.find(key);
  return found == ids_.end() ? kNone : found->second;
}

// A ghost until it is put. The caller lets it join a visit.
ReuseDensityPolicy::Id ReuseDensityPolicy::AddKnown(const BlockKey& key) {
  Id id = static_cast<Id>(known_.size());
  if (known_free_.empty()) {
    known_.emplace_back();
  } else {
    id = known_free_.back();
    known_free_.pop_back();
  }
  known_[id] = Known{.key = key};
  ids_.emplace(key, id);
  ++ghosts_;
  return id;
}

ReuseDensityPolicy::Id ReuseDensityPolicy::NewVisit(std::uint32_t cls, std::uint32_t cost) {
  Id id = static_cast<Id>(visits_.size());
  if (visits_free_.empty()) {
    visits_.emplace_back();
  } else {
    id = visits_free_.back();
    visits_free_.pop_back();
  }
  if (!curves_.seen(cls)) {
    curves_.See(cls);
    used_.push_back(cls);
    Rank();
  }
  ++visits_alive_;
  Visit& visit = visits_[id] = Visit{};
  visit.at = now_s_;
  visit.number = ++visits_made_;
  visit.cls = cls;
  visit.cost = cost;
  visit.queued = true;
  remembered_.push_back(id);
  if (remembered_.size() > 2 * visits_alive_ + 64) {
    std::erase_if(remembered_, [&](Id old) {
      if (visits_[old].number != 0) return false;
      visits_[old].queued = false;
      visits_free_.push_back(old);
      return true;
    });
  }
  EnterCell(id, now_s_);
  return id;
}

void ReuseDensityPolicy::Join(Id visit_id, Id block) {
  Visit& visit = visits_[visit_id];
  Known& known = known_[block];
  known.visit = visit_id;
  known.place = static_cast<std::uint32_t>(visit.members.size());
  visit.members.push_back(block);
  ++visit.alive;
  curves_.Enter(visit.cls, visit.bucket, 1, visit.at + AgeBegin(visit.bucket));
  if (known.slot == kNoSlot) return;
  visit.top = known.place + 1;
  List(visit_id);
}

void ReuseDensityPolicy::Leave(Id block, bool hit) {
  const Id visit_id = known_[block].visit;
  Visit& visit = visits_[visit_id];
  const double entered = visit.at + AgeBegin(visit.bucket);
  curves_.Leave(visit.cls, visit.bucket, 1, entered, now_s_);
  if (hit) curves_.Hit(visit.cls, visit.bucket, 1);
  known_[block].visit = kNone;
  --visit.alive;
  if (visit.alive == 0) {
    FreeIfDone(visit_id);
  } else if (visit.alive < visit.members.size() / 2) {
    // Or one block that nobody asks for would keep the room of all that were asked for with it.
    std::uint32_t kept = 0, top = 0;
    for (std::uint32_t place = 0; place < visit.members.size(); ++place) {
      const Id member = visit.members[place];
      if (!IsMember(visit_id, place)) continue;
      visit.members[kept] = member;
      known_[member].place = kept++;
      if (known_[member].slot != kNoSlot) top = kept;
    }
    visit.members.resize(kept);
    visit.members.shrink_to_fit();
    visit.top = top;
  }
}

bool ReuseDensityPolicy::IsMember(Id visit, std::uint32_t place) const {
  const Known& known = known_[visits_[visit].members[place]];
  return known.visit == visit && known.place == place;
}

void ReuseDensityPolicy::Forget(Id block) {
  Leave(block, /*hit=*/false);
  ids_.erase(known_[block].key);
  known_free_.push_back(block);
  --ghosts_;
}

void ReuseDensityPolicy::ForgetOldest() {
  while (ghosts_ > options().ghosts_max && !remembered_.empty()) {
    const Id id = remembered_.front();
    remembered_.pop_front();
    visits_[id].queued = false;
    forgotten_ = std::max(forgotten_, visits_[id].number + 1);  // Freed ones have number 0.
    std::vector<Id> ghosts;
    for (std::uint32_t place = 0; place < visits_[id].members.size(); ++place) {
      if (!IsMember(id, place)) continue;
      const Id member = visits_[id].members[place];
      if (known_[member].slot == kNoSlot) ghosts.push_back(member);
    }
    for (const Id ghost : ghosts) Forget(ghost);
    if (ghosts.empty()) FreeIfDone(id);
  }
}

// Ids in remembered_ must not be used again.
void ReuseDensityPolicy::FreeIfDone(Id id) {
  Visit& visit = visits_[id];
  if (visit.alive > 0) return;
  if (visit.number != 0) {
    Unlist(id);
    LeaveCell(id);
    visit.members = {};
    visit.number = 0;
    --visits_alive_;
  }
  if (!visit.queued) visits_free_.push_back(id);
}

// Of its living members the curves learn; whoever joins later enters by itself.
void ReuseDensityPolicy::EnterCell(Id id, double entered) {
  Visit& visit = visits_[id];
  Cell& cell = CellOf(visit);
  visit.older = cell.newest;
  visit.newer = kNone;
  (cell.newest == kNone ? cell.oldest : visits_[cell.newest].newer) = id;
  cell.newest = id;
  if (visit.alive > 0) curves_.Enter(visit.cls, visit.bucket, visit.alive, entered);
}

void ReuseDensityPolicy::LeaveCell(Id id) {
  Unlist(id);
  Visit& visit = visits_[id];
  Cell& cell = CellOf(visit);
  (visit.older == kNone ? cell.oldest : visits_[visit.older].newer) = visit.newer;
  (visit.newer == kNone ? cell.newest : visits_[visit.newer].older) = visit.older;
  if (visit.alive == 0) return;
  const double entered = visit.at + AgeBegin(visit.bucket);
  curves_.Leave(visit.cls, visit.bucket, visit.alive, entered,
                std::min(now_s_, entered + AgeWidth(visit.bucket)));
}

void ReuseDensityPolicy::List(Id id) {
  Visit& visit = visits_[id];
  if (visit.listed || visit.top == 0) return;
  visit.listed = true;
  Cell& cell = CellOf(visit);
  cell.listed.insert({visit.number, id});
  cursor_ = std::min<std::size_t>(cursor_, cell.rank);
}

void ReuseDensityPolicy::Unlist(Id id) {
  Visit& visit = visits_[id];
  if (!visit.listed) return;
  visit.listed = false;
  CellOf(visit).listed.erase({visit.number, id});
}

EvictionPolicy::Slot ReuseDensityPolicy::FreeTail(Id id) {
  Visit& visit = visits_[id];
  const auto slot_at = [&](std::uint32_t place) {
    return IsMember(id, place) ? known_[visit.members[place]].slot : kNoSlot;
  };
  while (visit.top > 0 && slot_at(visit.top - 1) == kNoSlot) --visit.top;
  for (std::uint32_t place = visit.top; place-- > 0;) {
    const Slot slot = slot_at(place);
    if (slot != kNoSlot && IsFreeLeaf(slot)) return slot;
  }
  return kNoSlot;
}

}  // namespace penstock::kvstore
