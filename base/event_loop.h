// SPDX-License-Identifier: Apache-2.0
// One thread that owns state: everything that touches the state is posted to it. Loop is what such
// state sees, so that the simulator runs the same code under a virtual clock (virtual_loop.h);
// EpollLoop is the real one.
#pragma once

#include <cstdint>
#include <functional>
#include <utility>

#include "base/time.h"

namespace penstock {

class Loop {
 public:
  enum class TimerId : std::uint64_t {};  // Never 0, and never given twice by one loop.

  virtual ~Loop() = default;
  // From any thread. Tasks run in the order they were posted, never inside this call; those posted
  // after the loop's end are destroyed unrun. A task may be destroyed on any thread.
  virtual void Post(std::function<void()> task) = 0;
  // As Post, but where the loop's thread sleeps, this one may do its work at once, in order and up
  // to `task`: one waking less on the way of something urgent. For that time it counts as the
  // loop's thread. For tasks that are short, from threads that hold no lock which a task may want,
  // and not from the loop's own.
  virtual void PostOrRun(std::function<void()> task) { Post(std::move(task)); }

  // On the loop's thread only.
  virtual MonoTime Now() const = 0;
  // Runs `task` once, at `when` or as soon after as the loop can, never inside this call; equal
  // times in order of the calls. A time in the past counts as now.
  virtual TimerId At(MonoTime when, std::function<void()> task) = 0;
  // The task is destroyed unrun. Unknown and past timers are ignored.
  virtual void CancelTimer(TimerId timer) = 0;
};

}  // namespace penstock
