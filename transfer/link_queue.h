// SPDX-License-Identifier: Apache-2.0
// Whose turn it is on one link: what may move now, and what waits. A link is whatever movements
// share: the way to a host, this host's memory, a disk, a remote server (link_turns.h has all of a
// process).
//
// Strictly by class, the first of MoveClass first; within a class first come, first served. What is
// under way is bounded, by bytes and by movements, and the bounds nest: a class and all behind it
// have a share of the link (Shares), so that a handoff finds room whatever hangs behind it, and a
// fetch whatever nobody waits for. One movement alone may be larger than its share.
//
// Nobody starves: one in `oldest_every` turns is that of the movement that has waited longest of
// all. Until it fits, no other is begun that would take the room which it lacks.
//
//   state      event                    next
//   waiting    Start names it           under way
//   waiting    Expire names it, or End  over
//   under way  End                      over; its room is free
//
// A state machine: no I/O, no clock, no threads; times are arguments. Same calls, same answers.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "base/time.h"

namespace penstock::transfer {

// What moves, by who waits for it; the most urgent first.
enum class MoveClass : std::uint8_t {
  kHandoff,      // A prompt's KV, from prefill to decode.
  kFetch,        // Blocks that a running request waits for, from whatever tier.
  kPrefetch,     // Blocks that a queued request will want.
  kPromotion,    // Reads of a slower tier that no request asked for.
  kReplication,  // Copies of hot blocks, from another node.
  kWriteBack,    // Copies on their way to a node, or down its tiers.
};
inline constexpr std::size_t kMoveClasses = 6;
std::string_view ToString(MoveClass of);  // "handoff", ..., "write-back"; label values.

class LinkQueue {
 public:
  struct Options {
    std::uint64_t bytes_max = std::uint64_t{16} << 20;  // Under way.
    std::size_t moves_max = 64;                         // Likewise.
    std::size_t waiting_max = 4096;                     // Of one class.
    std::uint32_t oldest_every = 16;                    // At least 1.
  };
  // In percent of the link: of each class with all behind it.
  static constexpr std::array<std::uint32_t, kMoveClasses> kShares = {100, 75, 50, 50, 50, 50};

  enum class MoveId : std::uint64_t {};  // Ascending, as they were asked.
  struct Load {
    std::uint64_t bytes = 0;
    std::size_t moves = 0;
  };

  explicit LinkQueue(const Options& options);

  // Joins the queue; Start tells when it may begin. RESOURCE_EXHAUSTED: waiting_max of its class
  // wait.
  absl::StatusOr<MoveId> Ask(MoveClass of, std::uint64_t bytes, MonoTime deadline, MonoTime now);
  // Both at once, where nothing waits and there is room: it is under way. None: nothing happened.
  std::optional<MoveId> AskAndStart(MoveClass of, std::uint64_t bytes);
  // The next that is under way from now on; to be called until it is none, after each change.
  struct Started {
    MoveId id{};
    Duration waited{};
  };
  std::optional<Started> Start(MonoTime now);
  // It is over, in whatever state; unknown ones, which are over, are ignored.
  void End(MoveId id);
  // Those whose deadline has come while they waited: they are over.
  std::vector<MoveId> Expire(MonoTime now);
  MonoTime NextDeadline() const;  // Of those that wait; MonoTime::max(): never.
  bool anything_waits() const { return !deadlines_.empty(); }

  std::size_t waiting(MoveClass of) const { return waiting_[static_cast<std::size_t>(of)].size(); }
  Load under_way(MoveClass of) const { return under_way_[static_cast<std::size_t>(of)]; }
  Load under_way() const { return Behind(0); }

 private:
  struct Move {
    std::size_t of = 0;
    std::uint64_t bytes = 0;
    MonoTime deadline = {};
    MonoTime asked = {};
    bool under_way = false;
  };
  Load Behind(std::size_t of) const;  // Under way, of that class and those behind it.
  // The first class whose share lacks room for it; kMoveClasses: it fits.
  std::size_t Lacks(const Move& move) const;
  std::optional<MoveId> Oldest() const;
  bool IsTurnOfOldest() const { return turns_ + 1 >= options_.oldest_every; }
  MoveId Add(const Move& move);
  void Take(Move& move);  // Its room: it is under way.
  Started Begin(MoveId id, MonoTime now);
  void Leave(MoveId id, const Move& move);

  const Options options_;
  std::uint64_t next_ = 1;
  std::uint32_t turns_ = 0;  // Since the oldest had its.
  std::map<MoveId, Move> moves_;
  std::array<std::set<MoveId>, kMoveClasses> waiting_;
  std::set<std::pair<MonoTime, MoveId>> deadlines_;  // Of those that wait.
  std::array<Load, kMoveClasses> under_way_ = {};
};

}  // namespace penstock::transfer
