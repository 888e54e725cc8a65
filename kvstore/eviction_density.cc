// SPDX-License-Identifier: Apache-2.0
#include "kvstore/eviction_density.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/check.h"

namespace penstock::kvstore {
namespace {

// Turns 0 to 4 of a conversation, and all later ones.
constexpr std::uint32_t kTurns = 6;
// Time since a block was asked for before: never, below 32 s, then by fours to 34 minutes and beyond.
constexpr std::uint32_t kGaps = 6;
constexpr double kGapFirst_s = 32;
// Different followers: up to 3 (a conversation's last block has two or three), 4 to 15, more.
constexpr std::uint32_t kFans = 3;
constexpr std::uint32_t kForksShared = 4;
constexpr std::uint32_t kForksMany = 16;
// Tokens that the request adds to what was known: a line or two, a page or so, a long text.
constexpr std::uint32_t kGrowths = 3;
constexpr std::uint64_t kGrowthLine = 2048;
constexpr std::uint64_t kGrowthPage = 8192;
constexpr std::uint32_t kClasses = kTurns * kFans * kGrowths * kGaps + 1;
constexpr std::uint32_t kPartialClass = kClasses - 1;
// What is mixed into a class's curve weighs as much as the blocks of half a typical request.
constexpr double kPriorTokens = 5120;
constexpr double kPriorBlocksMin = 50;
// Recomputing costs 1, 2, 4 or 8 times as much and more.
constexpr std::uint32_t kCosts = 4;
// Curves move slowly, and a second is the finest age that is told apart.
constexpr double kRankEvery_s = 5;
constexpr double kAgeEvery_s = 1;

ReuseCurves::Options CurveOptions(std::uint32_t block_tokens) {
  ReuseCurves::Options options;
  options.prior_events = kPriorTokens / block_tokens;
  // A group has all classes that differ by gap alone.
  for (std::uint32_t cls = 0; cls < kPartialClass; ++cls) options.groups.push_back(cls / kGaps);
  options.groups.push_back(kPartialClass / kGaps);
  return options;
}

std::uint8_t GapBucket(double seconds) {
  if (seconds < kGapFirst_s) return 1;
  const double fours = std::floor(std::log2(seconds / kGapFirst_s) / 2);
  return static_cast<std::uint8_t>(std::min<double>(fours + 2, kGaps - 1));
}

std::uint8_t GrowthBucket(std::uint64_t tokens) {
  return tokens < kGrowthLine ? 0 : tokens < kGrowthPage ? 1 : 2;
}

std::uint64_t Hash(const BlockKey& key) {
  std::uint64_t low;
  std::memcpy(&low, key.chain.bytes.data(), sizeof(low));
  return low;
}

}  // namespace

ReuseDensityPolicy::ReuseDensityPolicy(const Options& options)
    : EvictionPolicy(options),
      costs_(options.attention_tokens > 0 ? kCosts : 1),
      curves_(CurveOptions(std::max(options.block_tokens, 1U))),
      cells_(kClasses * costs_ * kAgeBuckets) {}

void ReuseDensityPolicy::OnAsk(const AskedChain& asked, MonoTime now) {
  Advance(now);
  std::vector<Id> ids;
  ids.reserve(asked.chain.size());
  for (const BlockKey& key : asked.chain) ids.push_back(Find(key));
  const std::size_t matched = static_cast<std::size_t>(std::ranges::find(ids, kNone) - ids.begin());
  // What goes on behind a shared prefix is another conversation.
  std::uint32_t turn = 0;
  std::uint8_t gap = 0;
  if (matched > 0 && known_[ids[matched - 1]].forks < kForksShared) {
    const Known& deepest = known_[ids[matched - 1]];
    turn = std::min<std::uint32_t>(deepest.turn + 1, kTurns - 1);
    gap = GapBucket(now_s_ - visits_[deepest.visit].at);
  }
  if (asked.turn) {
    turn = static_cast<std::uint32_t>(std::clamp<std::int32_t>(*asked.turn, 0, kTurns - 1));
    if (turn == 0) gap = 0;
  }
  const std::uint8_t growth =
      GrowthBucket(std::uint64_t{options().block_tokens} * (ids.size() - matched));
  std::vector<std::pair<std::uint32_t, Id>> visits;  // Of this request, by class and cost.
  const std::uint64_t earlier = visits_made_;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    std::uint8_t own_gap = gap;
    if (ids[i] == kNone) ids[i] = Find(asked.chain[i]);
    if (ids[i] == kNone) {
      ids[i] = AddKnown(asked.chain[i]);
    } else {
      if (visits_[known_[ids[i]].visit].number > earlier) continue;  // Named twice: no chain does.
      own_gap = GapBucket(now_s_ - visits_[known_[ids[i]].visit].at);
      Leave(ids[i], /*hit=*/true);
    }
    Known& known = known_[ids[i]];
    known.turn = static_cast<std::uint8_t>(turn);
    known.gap = own_gap;
    known.growth = growth;
    if (i + 1 < ids.size()) {
      const std::uint64_t child = Hash(asked.chain[i + 1]);
      known.forks += known.forks == 0 || known.last_child != child ? 1 : 0;
      known.last_child = child;
    }
    const std::uint32_t cls = ClassOf(known, asked.partial_tail && i + 1 == ids.size());
    const std::uint32_t cost = CostOf(std::uint64_t{options().block_tokens} * i);
    const std::uint32_t kind = cls * costs_ + cost;
    auto visit = std::ranges::find(visits, kind, &std::pair<std::uint32_t, Id>::first);
    if (visit == visits.end()) {
      visit = visits.insert(visits.end(), {kind, NewVisit(cls, cost)});
    }
    Join(visit->second, ids[i]);
  }
  ForgetOldest();
}

void ReuseDensityPolicy::OnPut(Slot slot, MonoTime now) {
  Advance(now);
  const EvictionBlock& block = held(slot).block;
  const Id parent = block.parent ? Find(*block.parent) : kNone;
  Id id = Find(block.key);
  if (id == kNone) {
    // Nobody asked for it: a block of an answer, say, that goes on with its chain.
    id = AddKnown(block.key);
    if (parent != kNone) {
      known_[id].turn = known_[parent].turn;
      known_[id].gap = known_[parent].gap;
      known_[id].growth = known_[parent].growth;
    }
    Join(NewVisit(ClassOf(known_[id], block.partial), CostOf(block.tokens_before)), id);
  }
  Known& known = known_[id];
  known.slot = slot;
  --ghosts_;
  if (slot >= id_of_slot_.size()) id_of_slot_.resize(slot + 1, kNone);
  id_of_slot_[slot] = id;
  visits_[known.visit].top = std::max(visits_[known.visit].top, known.place + 1);
  List(known.visit);
  if (block.parent && FindSlot(*block.parent) == kNoSlot) strays_.insert(slot);
}

void ReuseDensityPolicy::OnRemove(Slot slot, bool, MonoTime now) {
  Advance(now);
  const Id id = id_of_slot_[slot];
  strays_.erase(slot);
  known_[id].slot = kNoSlot;
  ++ghosts_;
  if (visits_[known_[id].visit].number < forgotten_) Forget(id);
  ForgetOldest();
}

void ReuseDensityPolicy::OnLeaf(Slot slot) { List(known_[id_of_slot_[slot]].visit); }

EvictionPolicy::Slot ReuseDensityPolicy::Victim(MonoTime now) {
  Advance(now);
  if (const Slot stray = Stray(); stray != kNoSlot) return stray;
  while (cursor_ < order_.size() && cells_[order_[cursor_]].listed.empty()) ++cursor_;
  Slot lowest = kNoSlot;
  double lowest_worth = 0;
  for (std::size_t i = cursor_; i < order_.size(); ++i) {
    Cell& cell = cells_[order_[i]];
    if (lowest != kNoSlot && std::min(cell.worth_young, cell.worth_old) >= lowest_worth) break;
    while (!cell.listed.empty()) {
      const Id id = cell.worth_old > cell.worth_young ? cell.listed.rbegin()->second
                                                      : cell.listed.begin()->second;
      const Slot slot = FreeTail(id);
      if (slot == kNoSlot) {
        Unlist(id);  // Until a child of one of its blocks goes.
        continue;
      }
      const Visit& visit = visits_[id];
      const double part = std::clamp(
          (now_s_ - visit.at - AgeBegin(visit.bucket)) / AgeWidth(visit.bucket), 0.0, 1.0);
      const double worth = cell.worth_young + part * (cell.worth_old - cell.worth_young);
      if (lowest == kNoSlot || worth < lowest_worth) {
        lowest = slot;
        lowest_worth = worth;
      }
      break;
    }
  }
  return lowest;
}

// Of no use to anybody while its parent is not held.
EvictionPolicy::Slot ReuseDensityPolicy::Stray() {
  for (auto stray = strays_.begin(); stray != strays_.end();) {
    const Slot slot = *stray;
    if (FindSlot(*held(slot).block.parent) != kNoSlot) {
      stray = strays_.erase(stray);
    } else if (IsFreeLeaf(slot)) {
      return slot;
    } else {
      ++stray;
    }
  }
  return kNoSlot;
}

std::uint32_t ReuseDensityPolicy::ClassOf(const Known& known, bool partial) const {
  if (partial) return kPartialClass;
  const std::uint32_t fan = known.forks < kForksShared ? 0 : known.forks < kForksMany ? 1 : 2;
  const std::uint32_t turn = fan > 0 ? 0 : known.turn;
  return ((turn * kFans + fan) * kGrowths + known.growth) * kGaps + known.gap;
}

std::uint32_t ReuseDensityPolicy::CostOf(std::uint64_t tokens_before) const {
  if (costs_ == 1) return 0;
  const std::uint64_t times = 1 + tokens_before / options().attention_tokens;
  return std::min<std::uint32_t>(static_cast<std::uint32_t>(std::bit_width(times)) - 1, kCosts - 1);
}

void ReuseDensityPolicy::Advance(MonoTime now) {
  if (!started_) {
    started_ = true;
    start_ = now;
  }
  now_s_ = std::max(now_s_, ToSeconds(now - start_));
  if (now_s_ - aged_s_ >= kAgeEvery_s) {
    aged_s_ = now_s_;
    for (const std::uint32_t cls : used_) {
      for (std::uint32_t cost = 0; cost < costs_; ++cost) {
        // Highest first: whoever moves up is younger than all that are there.
        for (std::size_t bucket = kAgeBuckets - 1; bucket-- > 0;) Age(CellIndex(cls, cost, bucket));
      }
    }
  }
  if (now_s_ - ranked_s_ >= kRankEvery_s) Rank();
}

void ReuseDensityPolicy::Age(std::size_t cell) {
  while (cells_[cell].oldest != kNone) {
    const Id id = cells_[cell].oldest;
    Visit& visit = visits_[id];
    const std::size_t to = AgeBucket(now_s_ - visit.at);
    if (to <= visit.bucket) return;
    const bool listed = visit.listed;
    LeaveCell(id);
    while (++visit.bucket < to) curves_.Pass(visit.cls, visit.bucket, visit.alive);
    EnterCell(id, visit.at + AgeBegin(to));
    if (listed) List(id);
  }
}

void ReuseDensityPolicy::Rank() {
  ranked_s_ = now_s_;
  // Recency weighs as much as what is held: evidence of one filling of the tier outweighs it.
  curves_.Fit(now_s_, std::max(kPriorBlocksMin, static_cast<double>(held_blocks())));
  order_.clear();
  for (const std::uint32_t cls : used_) {
    for (std::uint32_t cost = 0; cost < costs_; ++cost) {
      for (std::size_t bucket = 0; bucket < kAgeBuckets; ++bucket) {
        const std::size_t cell = CellIndex(cls, cost, bucket);
        const double times = std::exp2(static_cast<double>(cost));
        cells_[cell].worth_young = times * curves_.Index(cls, bucket);
        cells_[cell].worth_old = times * curves_.Index(cls, std::min(bucket + 1, kAgeBuckets - 1));
        order_.push_back(static_cast<std::uint32_t>(cell));
      }
    }
  }
  std::ranges::sort(order_, {}, [&](std::uint32_t cell) {
    return std::pair(std::min(cells_[cell].worth_young, cells_[cell].worth_old), cell);
  });
  for (std::uint32_t i = 0; i < order_.size(); ++i) cells_[order_[i]].rank = i;
  cursor_ = 0;
}

}  // namespace penstock::kvstore
