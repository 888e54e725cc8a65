// SPDX-License-Identifier: Apache-2.0
#include "base/task_pool.h"

namespace penstock {

TaskPool::TaskPool(const Options& options) : options_(options) {
  for (int i = 0; i < options_.threads; ++i) threads_.emplace_back([this] { Serve(); });
}

TaskPool::~TaskPool() {
  {
    const absl::MutexLock lock(&mutex_);
    ended_ = true;
  }
  threads_.clear();
}

bool TaskPool::Post(std::size_t bytes, std::function<void()> task) {
  const absl::MutexLock lock(&mutex_);
  if (queue_.size() >= options_.tasks_max) return false;
  if (!queue_.empty() && bytes_ + bytes > options_.bytes_max) return false;
  queue_.emplace_back(bytes, std::move(task));
  bytes_ += bytes;
  return true;
}

void TaskPool::Serve() {
  for (;;) {
    std::function<void()> task;
    {
      const absl::MutexLock lock(&mutex_, absl::Condition(this, &TaskPool::Due));
      if (ended_) return;
      bytes_ -= queue_.front().first;
      task = std::move(queue_.front().second);
      queue_.pop_front();
    }
    task();
  }
}

}  // namespace penstock
