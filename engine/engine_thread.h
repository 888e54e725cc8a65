// SPDX-License-Identifier: Apache-2.0
// A thread that owns an Engine: it runs what others post between steps, and steps as long as there
// is something to compute.
#pragma once

#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "engine/engine.h"

namespace penstock::engine {

class EngineThread {
 public:
  using Task = std::function<void(Engine& engine)>;
  // Called on the thread after every step that computed or reported something.
  using OnStep = std::function<void(Engine& engine, const StepReport& report)>;

  EngineThread(std::unique_ptr<Engine> engine, OnStep on_step);
  // Ends after the task or step at hand; tasks that wait are destroyed unrun.
  ~EngineThread();

  // From any thread. Tasks run in the order they were posted.
  void Post(Task task);
  // Posts `task` and waits for its end. Not from the thread itself (CHECKed).
  void Run(Task task);

 private:
  void Loop();

  const std::unique_ptr<Engine> engine_;
  const OnStep on_step_;
  absl::Mutex mutex_;
  std::vector<Task> tasks_ ABSL_GUARDED_BY(mutex_);
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  std::jthread thread_;  // Last: it uses the rest.
};

}  // namespace penstock::engine
