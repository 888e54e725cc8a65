// SPDX-License-Identifier: Apache-2.0
// One process of the simulated cluster: a loop on the cluster's clock that can be stopped, as by
// SIGSTOP, and goes on later where it was; what its peers sent waits meanwhile. Destroying it is
// SIGKILL: nothing of it runs any more.
//
// One thread. Not to be stopped or destroyed from inside one of its own tasks.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "base/event_loop.h"
#include "base/virtual_loop.h"
#include "transfer/life.h"
#include "transfer/link.h"

namespace penstock::sim {

class Process final : public Loop {
 public:
  Process(VirtualLoop& clock, std::string name) : clock_(clock), name_(std::move(name)) {}
  ~Process() override;

  void Post(std::function<void()> task) override;
  MonoTime Now() const override { return clock_.Now(); }
  TimerId At(MonoTime when, std::function<void()> task) override;
  void CancelTimer(TimerId timer) override;

  void Stop() { stopped_ = true; }
  void Continue();
  bool stopped() const { return stopped_; }

  const std::string& name() const { return name_; }
  // Over once the process is dead.
  const transfer::Life& life() const { return life_; }

 private:
  struct Due {
    TimerId timer{};  // 0: was posted.
    std::function<void()> task;
  };
  void Run(TimerId timer, std::function<void()> task);

  VirtualLoop& clock_;
  const std::string name_;
  bool stopped_ = false;
  std::deque<Due> due_;                // While stopped.
  std::map<TimerId, TimerId> timers_;  // Ours, and the clock's; until they have run.
  std::uint64_t next_timer_ = 1;
  transfer::Life life_;
};

// A link whose events come on the process's loop: none while it is stopped.
std::unique_ptr<transfer::Link> MakeProcessLink(Process& process,
                                                std::unique_ptr<transfer::Link> link);

}  // namespace penstock::sim
