// SPDX-License-Identifier: Apache-2.0
// A few threads for what would hold up the loop: reading and hashing long prompts. Bounded in tasks
// and in the bytes that these hold.
//
// Any thread may post. Destroying the pool ends the tasks at hand; those that wait are dropped.
#pragma once

#include <cstddef>
#include <deque>
#include <functional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace penstock {

class TaskPool {
 public:
  struct Options {
    int threads = 2;
    std::size_t tasks_max = 8192;
    std::size_t bytes_max = std::size_t{256} << 20;
  };

  explicit TaskPool(const Options& options);
  ~TaskPool();
  TaskPool(const TaskPool&) = delete;
  TaskPool& operator=(const TaskPool&) = delete;

  // False: no room, and the task is dropped. One task fits whatever its size when none waits.
  bool Post(std::size_t bytes, std::function<void()> task);

 private:
  void Serve();
  bool Due() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return ended_ || !queue_.empty(); }

  const Options options_;
  absl::Mutex mutex_;
  std::deque<std::pair<std::size_t, std::function<void()>>> queue_ ABSL_GUARDED_BY(mutex_);
  std::size_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;  // Of those that wait.
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::jthread> threads_;  // Last: they use the rest.
};

}  // namespace penstock
