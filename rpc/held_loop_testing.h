// SPDX-License-Identifier: Apache-2.0
// A loop for tests that a test drives by hand: whoever posts a task waits until the test has run
// and destroyed it. What the poster still holds then, it alone holds.
#pragma once

#include <functional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/check.h"
#include "base/event_loop.h"

namespace penstock::rpc {

class HeldLoop final : public Loop {
 public:
  // Once all who have posted went on.
  ~HeldLoop() override {
    const absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(this, &HeldLoop::Left));
  }
  void Post(std::function<void()> task) override {
    const absl::MutexLock lock(&mutex_);
    ++posters_;
    mutex_.Await(absl::Condition(this, &HeldLoop::Empty));
    task_ = std::move(task);
    const int mine = ++posted_;
    const auto done = [this, mine]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return run_ >= mine; };
    mutex_.Await(absl::Condition(&done));
    --posters_;
  }
  // The next task, on this thread.
  void RunOne() {
    const absl::MutexLock lock(&mutex_);
    const auto some = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return !Empty(); };
    mutex_.Await(absl::Condition(&some));
    std::exchange(task_, nullptr)();
    ++run_;
  }
  MonoTime Now() const override { return MonoTime(); }
  TimerId At(MonoTime, std::function<void()>) override {
    CHECK(false);
    return TimerId();
  }
  void CancelTimer(TimerId) override {}

 private:
  bool Empty() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return task_ == nullptr; }
  bool Left() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return posters_ == 0; }

  absl::Mutex mutex_;
  std::function<void()> task_ ABSL_GUARDED_BY(mutex_);
  int posters_ ABSL_GUARDED_BY(mutex_) = 0;  // Within Post.
  int posted_ ABSL_GUARDED_BY(mutex_) = 0;
  int run_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace penstock::rpc
