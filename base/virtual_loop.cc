// SPDX-License-Identifier: Apache-2.0
#include "base/virtual_loop.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace penstock {

VirtualLoop::~VirtualLoop() {
  ended_ = true;  // Destructors of tasks may post.
  std::exchange(posted_, {}).clear();
  while (timers_.Pop(MonoTime::max())) {
  }
}

void VirtualLoop::Post(std::function<void()> task) {
  if (!ended_) posted_.push_back(std::move(task));
}

Loop::TimerId VirtualLoop::At(MonoTime when, std::function<void()> task) {
  return timers_.Add(std::max(when, now_), std::move(task));
}

void VirtualLoop::CancelTimer(TimerId timer) { timers_.Cancel(timer); }

bool VirtualLoop::RunOne() {
  std::function<void()> task;
  if (!posted_.empty()) {
    task = std::move(posted_.front());
    posted_.pop_front();
  } else {
    task = timers_.Pop(now_);
  }
  if (!task) return false;
  task();
  return true;
}

std::size_t VirtualLoop::RunUntilIdle(std::size_t tasks_max) {
  std::size_t tasks = 0;
  while (tasks < tasks_max && RunOne()) ++tasks;
  return tasks;
}

void VirtualLoop::AdvanceTo(MonoTime when) {
  CHECK(when >= now_);
  RunAll(when);
  now_ = when;
}

void VirtualLoop::RunAll(MonoTime end) {
  RunUntilIdle();
  while (timers_.next() && *timers_.next() <= end) {
    now_ = *timers_.next();
    RunUntilIdle();
  }
}

}  // namespace penstock
