// SPDX-License-Identifier: Apache-2.0
// A thread that owns an Engine: it runs what others post between steps, and steps as long as there
// is something to compute.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "base/time.h"
#include "engine/engine.h"

namespace penstock::engine {

class EngineThread {
 public:
  using Task = std::function<void(Engine& engine)>;
  // Called on the thread after every step that computed or reported something.
  using OnStep = std::function<void(Engine& engine, const StepReport& report)>;
  // What the thread just did: tasks, and a step where there was something to compute.
  struct Round {
    const StepReport* step = nullptr;  // Null: none.
    Duration step_time = {};
  };
  // Called on the thread after each round; after OnStep.
  using OnRound = std::function<void(Engine& engine, const Round& round)>;

  EngineThread(std::unique_ptr<Engine> engine, OnStep on_step, OnRound on_round = nullptr);
  // Ends after the task or step at hand; tasks that wait are destroyed unrun.
  ~EngineThread();

  // From any thread, the engine's copies (KvPool::AfterCopies) among them. Tasks run in the order
  // they were posted.
  void Post(Task task);
  // On the thread: Engine::Fill, then `task`; where the pool is not staged, at once: what is posted
  // waits for a step that may run first.
  void Fill(Engine& engine, ReservationId reservation, Task task);
  // Posts `task` and waits for its end. Not from the thread itself (CHECKed).
  void Run(Task task);

 private:
  void Loop();

  std::unique_ptr<Engine> engine_;  // Until the destructor.
  const OnStep on_step_;
  const OnRound on_round_;
  // Not Abseil's, into which the thread sanitizer cannot see. Guards tasks_ and stop_.
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Task> tasks_;
  bool stop_ = false;
  std::jthread thread_;  // Last: it uses the rest.
};

}  // namespace penstock::engine
