// SPDX-License-Identifier: Apache-2.0
// The timers of a loop, in the order in which they run. One thread; tasks and their destructors may
// call back into the queue.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "base/event_loop.h"
#include "base/time.h"

namespace penstock {

class TimerQueue {
 public:
  Loop::TimerId Add(MonoTime when, std::function<void()> task);
  void Cancel(Loop::TimerId timer);
  std::size_t size() const { return tasks_.size(); }
  // When the first one is due; nothing when there is none.
  std::optional<MonoTime> next() const;
  // Takes out the first one if it is due at `now`: by time, then by age. Null where none is.
  std::function<void()> Pop(MonoTime now);

 private:
  using Key = std::pair<MonoTime, std::uint64_t>;

  std::uint64_t next_id_ = 1;
  std::map<Key, std::function<void()>> tasks_;
  absl::flat_hash_map<std::uint64_t, MonoTime> times_;  // Of each, to find it when cancelled.
};

}  // namespace penstock
