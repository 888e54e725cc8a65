// SPDX-License-Identifier: Apache-2.0
// Lets go of what is expected to be asked for least per byte and second of holding it.
//
// Blocks are classed by what is known when a request asks for them: its turn in a conversation, how
// long ago the block was asked for before (a new block of a conversation that goes on: how long ago
// that was asked for), how much the request adds to what was known, and how many different blocks
// have followed it, which tells a shared prefix from a conversation. Of each class and age
// kvstore/eviction_curves.h learns, from all blocks asked for, held or not, how soon they are asked
// for again; the block whose class and age have the lowest index is let go, a chain always from its
// tail. Between the ends of a bucket the index is interpolated.
//
// Ghosts are the keys asked for and not held; beyond ghosts_max those asked for longest ago are
// forgotten. They should span the time after which a reuse still matters: a request of 12,000
// tokens leaves about 375 ghosts of 32 tokens.
//
// Blocks of one request and class have the same age and index for ever: they are a visit, and what
// is ordered are visits. Evicting a block costs a look at the lowest cell (class and bucket of age)
// that has a visit with a free tail.
#pragma once

#include <cstdint>
#include <deque>
#include <set>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "kvstore/eviction.h"
#include "kvstore/eviction_curves.h"

namespace penstock::kvstore {

class ReuseDensityPolicy final : public EvictionPolicy {
 public:
  explicit ReuseDensityPolicy(const Options& options);
  std::string_view name() const override { return "reuse-density"; }
  std::size_t ghosts() const override { return ghosts_; }

 private:
  using Id = std::uint32_t;
  static constexpr Id kNone = UINT32_MAX;

  struct Known {  // A key that was asked for or put.
    BlockKey key;
    Id visit = kNone;         // The last one.
    std::uint32_t place = 0;  // Among its members.
    Slot slot = kNoSlot;      // None: a ghost.
    std::uint64_t last_child = 0;
    std::uint32_t forks = 0;  // Times that another block followed than the time before.
    std::uint8_t turn = 0;
    std::uint8_t growth = 0;  // Bucket of what the last request for it added.
    std::uint8_t gap = 0;     // Bucket of the time between its last two visits; 0: there was one.
  };
  struct Visit {
    double at = 0;
    std::uint64_t number = 0;  // Rises with time.
    std::uint32_t cls = 0;
    std::uint32_t cost = 0;
    std::size_t bucket = 0;
    std::uint32_t alive = 0;  // Blocks that were not visited since.
    std::uint32_t top = 0;    // No member from here on is held.
    bool listed = false;
    bool queued = false;              // In remembered_.
    std::vector<Id> members;          // Head first; those that left are not taken out at once.
    Id older = kNone, newer = kNone;  // In its cell.
  };
  struct Cell {  // Of a class, cost and bucket.
    Id oldest = kNone, newest = kNone;
    std::set<std::pair<std::uint64_t, Id>> listed;  // May have a free tail: by number.
    std::uint32_t rank = 0;
    double worth_young = 0, worth_old = 0;  // The index at its two ends.
  };

  void OnAsk(const AskedChain& asked, MonoTime now) override;
  void OnUse(Slot, MonoTime) override {}  // Asked for before it was read.
  void OnPut(Slot slot, MonoTime now) override;
  void OnRemove(Slot slot, bool evicted, MonoTime now) override;
  void OnPin(Slot) override {}
  void OnUnpin(Slot slot, MonoTime) override { OnLeaf(slot); }
  void OnLeaf(Slot slot) override;
  Slot Victim(MonoTime now) override;

  Id Find(const BlockKey& key) const;
  Id AddKnown(const BlockKey& key);
  std::uint32_t ClassOf(const Known& known, bool partial) const;
  std::uint32_t CostOf(std::uint64_t tokens_before) const;
  Id NewVisit(std::uint32_t cls, std::uint32_t cost);
  void Join(Id visit, Id block);
  void Leave(Id block, bool hit);
  void Forget(Id block);
  void ForgetOldest();
  void FreeIfDone(Id visit);
  Id& MemberAt(Id visit, std::uint32_t place) { return visits_[visit].members[place]; }
  bool IsMember(Id visit, std::uint32_t place) const;

  Cell& CellOf(const Visit& visit) {
    return cells_[CellIndex(visit.cls, visit.cost, visit.bucket)];
  }
  std::size_t CellIndex(std::uint32_t cls, std::uint32_t cost, std::size_t bucket) const {
    return (static_cast<std::size_t>(cls) * costs_ + cost) * kAgeBuckets + bucket;
  }
  void EnterCell(Id visit, double entered);
  void LeaveCell(Id visit);
  void List(Id visit);
  void Unlist(Id visit);
  Slot FreeTail(Id visit);
  void Advance(MonoTime now);
  void Age(std::size_t cell);
  void Rank();
  Slot Stray();

  const std::uint32_t costs_;
  ReuseCurves curves_;
  bool started_ = false;
  MonoTime start_ = {};
  double now_s_ = 0;
  double aged_s_ = 0;
  double ranked_s_ = 0;
  std::vector<Known> known_;
  std::vector<Id> known_free_;
  absl::flat_hash_map<BlockKey, Id> ids_;
  std::vector<Id> id_of_slot_;
  std::vector<Visit> visits_;
  std::vector<Id> visits_free_;
  std::uint64_t visits_made_ = 0;
  std::size_t visits_alive_ = 0;
  std::deque<Id> remembered_;    // Visits that may have ghosts, oldest first.
  std::uint64_t forgotten_ = 0;  // Visits of lower numbers have no ghosts.
  std::size_t ghosts_ = 0;
  std::vector<Cell> cells_;
  std::vector<std::uint32_t> order_;  // Cells of used classes by the lower of their ends.
  std::size_t cursor_ = 0;            // Cells before it in order_ have nothing listed.
  std::vector<std::uint32_t> used_;   // Classes that were ever seen.
  std::set<Slot> strays_;             // Put without their parent.
};

}  // namespace penstock::kvstore
