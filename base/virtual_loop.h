// SPDX-License-Identifier: Apache-2.0
// A loop whose clock is a number: for the simulator and for tests. The same calls give the same
// order of tasks, always.
//
// No thread of its own: tasks run inside RunUntilIdle and AdvanceTo, on the caller's. All calls,
// Post among them, are from one thread.
#pragma once

#include <cstddef>
#include <deque>
#include <functional>
#include <optional>

#include "base/event_loop.h"
#include "base/timer_queue.h"

namespace penstock {

class VirtualLoop final : public Loop {
 public:
  // `start` may be any time; nothing reads the machine's clock.
  explicit VirtualLoop(MonoTime start = MonoTime(std::chrono::hours(1))) : now_(start) {}
  ~VirtualLoop() override;

  void Post(std::function<void()> task) override;
  MonoTime Now() const override { return now_; }
  TimerId At(MonoTime when, std::function<void()> task) override;
  void CancelTimer(TimerId timer) override;

  // Runs what is posted and what is due now, until there is neither. Time stands still. Returns how
  // many tasks ran: tasks_max of them when it stopped for that reason.
  std::size_t RunUntilIdle(std::size_t tasks_max = kTasksMax);
  // Runs all that happens up to and at `when`, each at its time, and sets the clock to `when`. Not
  // into the past (CHECKed).
  void AdvanceTo(MonoTime when);
  void Advance(Duration by) { AdvanceTo(now_ + by); }
  // Goes from timer to timer until nothing is left to run, or the next one is after `end`.
  void RunAll(MonoTime end);

  // When the next timer is due; nothing when there is none.
  std::optional<MonoTime> next_timer() const { return timers_.next(); }

 private:
  static constexpr std::size_t kTasksMax = std::size_t{1} << 40;

  bool RunOne();

  MonoTime now_;
  bool ended_ = false;
  std::deque<std::function<void()>> posted_;
  TimerQueue timers_;
};

}  // namespace penstock
