// SPDX-License-Identifier: Apache-2.0
#include "base/timer_queue.h"

namespace penstock {

Loop::TimerId TimerQueue::Add(MonoTime when, std::function<void()> task) {
  const std::uint64_t id = next_id_++;
  tasks_.emplace(Key{when, id}, std::move(task));
  times_.emplace(id, when);
  return Loop::TimerId{id};
}

void TimerQueue::Cancel(Loop::TimerId timer) {
  const auto id = static_cast<std::uint64_t>(timer);
  const auto found = times_.find(id);
  if (found == times_.end()) return;
  // The task's destructor runs last: it may call back.
  const auto task = tasks_.extract(Key{found->second, id});
  times_.erase(found);
}

std::optional<MonoTime> TimerQueue::next() const {
  if (tasks_.empty()) return std::nullopt;
  return tasks_.begin()->first.first;
}

std::function<void()> TimerQueue::Pop(MonoTime now) {
  if (tasks_.empty() || tasks_.begin()->first.first > now) return nullptr;
  auto node = tasks_.extract(tasks_.begin());
  times_.erase(node.key().second);
  return std::move(node.mapped());
}

}  // namespace penstock
