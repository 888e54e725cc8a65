// SPDX-License-Identifier: Apache-2.0
// The links of a process, and whose turn it is on each: all that moves KV here asks first.
//
//   turn = turns.Ask(channel.link(), MoveClass::kFetch, bytes, deadline,
//                    [this] (const absl::Status& status) { ... });
//   if (turn.begun()) ...   // At once; else it is told.
//
// Bytes move only by reading (link.h), so who reads asks; who has something read, and can wait with
// offering it, asks too. Links are known by name:
//
//   "local"                  memory of this host: shm, and within a process, in both directions
//   "from HOST", "to HOST"   what is read from a host, and what is offered to it
//   "disk", "remote"         of a store node
//
// One for each host that this process ever moved anything from or to; they are never forgotten.
//
// On one loop, which outlives this; so do its turns not, or else they do nothing any more.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "base/event_loop.h"
#include "base/metrics.h"
#include "base/spans.h"
#include "base/time.h"
#include "transfer/life.h"
#include "transfer/link_queue.h"

namespace penstock::transfer {

class LinkTurns {
  struct Lane;

 public:
  // A movement's place in the queue, then its room on the link. Moved, not copied; with its end, it
  // leaves the queue, or gives its room back.
  class Turn {
   public:
    Turn() = default;
    Turn(Turn&& other) noexcept { *this = std::move(other); }
    Turn& operator=(Turn&& other) noexcept;
    ~Turn() { End(); }
    // It has a place in the queue, or on the link, that has not ended.
    bool held() const;
    // It may move.
    bool begun() const;
    void End();

   private:
    friend class LinkTurns;
    std::optional<Life::Watch> life_;
    LinkTurns* turns_ = nullptr;  // Null: none.
    Lane* lane_ = nullptr;
    LinkQueue::MoveId id_{};
  };
  // OK: it may move now. DEADLINE_EXCEEDED: it waited for too long. RESOURCE_EXHAUSTED: too many wait.
  using Begin = std::function<void(const absl::Status& status)>;

  LinkTurns(Loop& loop, SpanRing* spans) : loop_(loop), spans_(spans) {}  // Null: not traced.
  ~LinkTurns();

  // Of a link that is not known yet (CHECKed). Others have the defaults.
  void Set(std::string_view link, const LinkQueue::Options& options);
  // `begin` is called once, never from inside: unless the turn has begun as this returns, or ends
  // before.
  Turn Ask(std::string_view link, MoveClass of, std::uint64_t bytes, MonoTime deadline,
           Begin begin);

  // Of one link; null: not known. For tests and figures.
  const LinkQueue* queue(std::string_view link) const;
  void WriteMetrics(MetricsWriter& writer) const;

 private:
  struct Asked {
    MoveClass of{};
    std::uint64_t bytes = 0;
    Begin begin;  // Null once it was called, or need not be.
    bool begun = false;
  };
  struct Counts {
    std::uint64_t turns = 0;
    std::uint64_t bytes = 0;
    std::uint64_t expired = 0;  // And refused.
    Duration waited{};
  };
  // A link.
  struct Lane {
    Lane(std::string name, const LinkQueue::Options& options)
        : link(std::move(name)), queue(options) {}
    const std::string link;
    LinkQueue queue;
    std::map<LinkQueue::MoveId, Asked> asked;
    std::array<Counts, kMoveClasses> counts = {};
    std::uint64_t refused = 0;
    bool pumping = false;  // Posted.
    Loop::TimerId timer{};
    MonoTime timer_at = MonoTime::max();
  };

  Lane& LaneOf(std::string_view link);
  void StartOne(Lane& lane, const LinkQueue::Started& started);
  void PumpSoon(Lane& lane);
  void Pump(Lane& lane);
  void SetTimer(Lane& lane);
  void Expire(Lane& lane);
  void Fail(Lane& lane, LinkQueue::MoveId id, const absl::Status& why);
  void End(Lane& lane, LinkQueue::MoveId id);

  Loop& loop_;
  SpanRing* const spans_;
  std::map<std::string, Lane, std::less<>> lanes_;
  Life life_;
};

}  // namespace penstock::transfer
