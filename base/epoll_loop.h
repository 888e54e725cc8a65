// SPDX-License-Identifier: Apache-2.0
// The loop of a real process: a thread that waits on sockets, timers and posted tasks. Its clock is
// SteadyClock(). "The loop's thread" is whichever runs its tasks: one at a time, each seeing all
// that the ones before did.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "base/event_loop.h"

namespace penstock {

class EpollLoop final : public Loop {
 public:
  // `name` is the thread's (at most 15 bytes, CHECKed). RESOURCE_EXHAUSTED when the system refuses
  // a descriptor or a thread.
  static absl::StatusOr<std::unique_ptr<EpollLoop>> Make(const std::string& name);
  // Ends the thread after the task at hand. What waits is destroyed unrun on the caller's thread,
  // which from then on counts as the loop's. Not from the loop's thread (CHECKed).
  ~EpollLoop() override;

  void Post(std::function<void()> task) override;
  void PostOrRun(std::function<void()> task) override;
  MonoTime Now() const override;  // From any thread.
  TimerId At(MonoTime when, std::function<void()> task) override;
  void CancelTimer(TimerId timer) override;

  // On the loop's thread only, as all below. Calls `ready(events)` (EPOLLIN...) level-triggered as
  // long as the descriptor is watched; the caller owns it, and unwatches before closing it.
  // RESOURCE_EXHAUSTED when the system has no room for one more. Watching twice is CHECKed.
  absl::Status Watch(int fd, std::uint32_t events, std::function<void(std::uint32_t events)> ready);
  void ChangeWatch(int fd, std::uint32_t events);
  // `ready` is not called any more from here on, not even for what already happened.
  void Unwatch(int fd);

  bool OnLoopThread() const;
  // Posts `task` and waits for its end. Not from the loop's thread (CHECKed).
  void Run(std::function<void()> task);

 private:
  class Impl;
  explicit EpollLoop(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace penstock
