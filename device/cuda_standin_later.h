// SPDX-License-Identifier: Apache-2.0
// Work that a stream of the stand-in for cudart does after the call that put it there: a thread of
// the stream's own runs it, in order. Of the stand-in's inside, but that events share it.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

namespace penstock::cuda_standin {

// Any thread.
class LaterWork {
 public:
  LaterWork();
  ~LaterWork();  // Waits for all of it.
  LaterWork(const LaterWork&) = delete;
  LaterWork& operator=(const LaterWork&) = delete;

  void Add(std::function<void()> work);
  std::uint64_t added() const;
  // Whether the first `count` pieces have ended.
  bool Done(std::uint64_t count) const;
  void Wait(std::uint64_t count) const;

 private:
  void Run();

  mutable std::mutex mutex_;  // Guards all of it. Nothing is called while it is held.
  mutable std::condition_variable changed_;
  std::deque<std::function<void()>> waiting_;
  std::uint64_t added_ = 0;
  std::uint64_t done_ = 0;
  bool ending_ = false;
  std::jthread thread_;
};

}  // namespace penstock::cuda_standin
