// SPDX-License-Identifier: Apache-2.0
#include "engine/engine_thread.h"

#include <utility>

#include "base/check.h"

namespace penstock::engine {

EngineThread::EngineThread(std::unique_ptr<Engine> engine, OnStep on_step, OnRound on_round)
    : engine_(std::move(engine)),
      on_step_(std::move(on_step)),
      on_round_(std::move(on_round)),
      thread_([this] { Loop(); }) {}

EngineThread::~EngineThread() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_one();
  thread_.join();
  engine_.reset();  // Its copies, which post here, end while the rest is still there.
}

void EngineThread::Post(Task task) {
  {
    const std::lock_guard lock(mutex_);
    tasks_.push_back(std::move(task));
  }
  changed_.notify_one();
}

void EngineThread::Fill(Engine& engine, ReservationId reservation, Task task) {
  if (!engine.pool().staged()) return task(engine);
  engine.Fill(reservation, [this, task = std::move(task)] { Post(task); });
}

void EngineThread::Run(Task task) {
  CHECK(std::this_thread::get_id() != thread_.get_id());
  // Not a promise, which the waiter could destroy while it is still being set.
  std::mutex mutex;
  std::condition_variable ended;
  bool done = false;
  Post([&](Engine& engine) {
    task(engine);
    const std::lock_guard lock(mutex);
    done = true;
    ended.notify_one();
  });
  std::unique_lock lock(mutex);
  ended.wait(lock, [&] { return done; });
}

void EngineThread::Loop() {
  // Nothing to compute, or memory that others hold is awaited: only a task can change that.
  bool resting = true;
  while (true) {
    std::vector<Task> tasks;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return stop_ || !tasks_.empty() || !resting; });
      if (stop_) return;
      tasks.swap(tasks_);
    }
    for (Task& task : tasks) std::exchange(task, nullptr)(*engine_);
    resting = engine_->idle();
    if (resting) {
      if (on_round_ != nullptr) on_round_(*engine_, {});
      continue;
    }
    const MonoTime begin = SteadyClock().Now();
    const StepReport report = engine_->Step();
    const Duration step_time = SteadyClock().Now() - begin;
    resting = engine_->idle() || report.prefill_rows + report.decode_rows == 0;
    on_step_(*engine_, report);
    if (on_round_ != nullptr) on_round_(*engine_, {.step = &report, .step_time = step_time});
  }
}

}  // namespace penstock::engine
