// SPDX-License-Identifier: Apache-2.0
#include "device/cuda_standin_later.h"

#include <utility>

namespace penstock::cuda_standin {

LaterWork::LaterWork() : thread_([this] { Run(); }) {}

LaterWork::~LaterWork() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void LaterWork::Add(std::function<void()> work) {
  {
    const std::lock_guard lock(mutex_);
    waiting_.push_back(std::move(work));
    ++added_;
  }
  changed_.notify_all();
}

std::uint64_t LaterWork::added() const {
  const std::lock_guard lock(mutex_);
  return added_;
}

bool LaterWork::Done(std::uint64_t count) const {
  const std::lock_guard lock(mutex_);
  return done_ >= count;
}

void LaterWork::Wait(std::uint64_t count) const {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return done_ >= count; });
}

void LaterWork::Run() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return ending_ || !waiting_.empty(); });
    if (waiting_.empty()) return;
    std::function<void()> work = std::move(waiting_.front());
    waiting_.pop_front();
    lock.unlock();
    work();
    work = nullptr;
    lock.lock();
    ++done_;
    changed_.notify_all();
  }
}

}  // namespace penstock::cuda_standin
