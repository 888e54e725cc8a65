// SPDX-License-Identifier: Apache-2.0
#include "transfer/link_queue.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"

namespace penstock::transfer {

std::string_view ToString(MoveClass of) {
  static constexpr std::array<std::string_view, kMoveClasses> kNames = {
      "handoff", "fetch", "prefetch", "promotion", "replication", "write-back"};
  return kNames[static_cast<std::size_t>(of)];
}

LinkQueue::LinkQueue(const Options& options) : options_(options) {
  CHECK_GE(options.oldest_every, 1u);
}

absl::StatusOr<LinkQueue::MoveId> LinkQueue::Ask(MoveClass of, std::uint64_t bytes,
                                                 MonoTime deadline, MonoTime now) {
  const auto c = static_cast<std::size_t>(of);
  if (waiting_[c].size() >= options_.waiting_max) {
    return absl::ResourceExhaustedError(
        absl::StrCat(waiting_[c].size(), " movements of class ", ToAbsl(ToString(of)),
                     " wait for the link, at most ", options_.waiting_max));
  }
  const MoveId id = Add({.of = c, .bytes = bytes, .deadline = deadline, .asked = now});
  waiting_[c].insert(id);
  deadlines_.emplace(deadline, id);
  return id;
}

std::optional<LinkQueue::MoveId> LinkQueue::AskAndStart(MoveClass of, std::uint64_t bytes) {
  const Move move = {.of = static_cast<std::size_t>(of), .bytes = bytes};
  if (anything_waits() || Lacks(move) < kMoveClasses) return std::nullopt;
  turns_ = IsTurnOfOldest() ? 0 : turns_ + 1;  // It is the oldest, too.
  const MoveId id = Add(move);
  Take(moves_.at(id));
  return id;
}

LinkQueue::MoveId LinkQueue::Add(const Move& move) {
  const MoveId id{next_++};
  moves_[id] = move;
  return id;
}

void LinkQueue::Take(Move& move) {
  under_way_[move.of].bytes += move.bytes;
  ++under_way_[move.of].moves;
  move.under_way = true;
}

LinkQueue::Load LinkQueue::Behind(std::size_t of) const {
  Load load;
  for (std::size_t c = of; c < kMoveClasses; ++c) {
    load.bytes += under_way_[c].bytes;
    load.moves += under_way_[c].moves;
  }
  return load;
}

std::size_t LinkQueue::Lacks(const Move& move) const {
  for (std::size_t c = 0; c <= move.of; ++c) {
    const Load load = Behind(c);
    if (load.moves == 0) continue;
    if (load.bytes + move.bytes > options_.bytes_max * kShares[c] / 100 ||
        load.moves + 1 > options_.moves_max * kShares[c] / 100) {
      return c;
    }
  }
  return kMoveClasses;
}

std::optional<LinkQueue::MoveId> LinkQueue::Oldest() const {
  std::optional<MoveId> oldest;
  for (const std::set<MoveId>& waiting : waiting_) {
    if (!waiting.empty() && (!oldest.has_value() || *waiting.begin() < *oldest)) {
      oldest = *waiting.begin();
    }
  }
  return oldest;
}

std::optional<LinkQueue::Started> LinkQueue::Start(MonoTime now) {
  std::size_t closed = kMoveClasses;  // This class and those behind it wait.
  const bool for_oldest = IsTurnOfOldest();
  if (const std::optional<MoveId> oldest = Oldest(); for_oldest && oldest.has_value()) {
    closed = Lacks(moves_.at(*oldest));
    if (closed == kMoveClasses) {
      turns_ = 0;
      return Begin(*oldest, now);
    }
  }
  for (std::size_t c = 0; c < closed; ++c) {
    if (waiting_[c].empty()) continue;
    const MoveId id = *waiting_[c].begin();
    const std::size_t lacks = Lacks(moves_.at(id));
    if (lacks < kMoveClasses) return std::nullopt;  // So do all behind it.
    if (!for_oldest) ++turns_;
    return Begin(id, now);
  }
  return std::nullopt;
}

LinkQueue::Started LinkQueue::Begin(MoveId id, MonoTime now) {
  Move& move = moves_.at(id);
  Leave(id, move);
  Take(move);
  return {.id = id, .waited = now - move.asked};
}

void LinkQueue::Leave(MoveId id, const Move& move) {
  waiting_[move.of].erase(id);
  deadlines_.erase({move.deadline, id});
}

void LinkQueue::End(MoveId id) {
  const auto it = moves_.find(id);
  if (it == moves_.end()) return;
  const Move& move = it->second;
  if (move.under_way) {
    under_way_[move.of].bytes -= move.bytes;
    --under_way_[move.of].moves;
  } else {
    Leave(id, move);
  }
  moves_.erase(it);
}

std::vector<LinkQueue::MoveId> LinkQueue::Expire(MonoTime now) {
  std::vector<MoveId> over;
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    over.push_back(deadlines_.begin()->second);
    End(over.back());
  }
  return over;
}

MonoTime LinkQueue::NextDeadline() const {
  return deadlines_.empty() ? MonoTime::max() : deadlines_.begin()->first;
}

}  // namespace penstock::transfer
