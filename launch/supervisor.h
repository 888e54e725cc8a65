// SPDX-License-Identifier: Apache-2.0
// Keeps programs running: starts them, passes on what they print, starts those that die again, and
// ends all of them in order. None outlives it, however it ends.
//
// Everything on the loop's thread, construction and destruction too; that thread's end kills what
// runs, so the loop lives longer. Callbacks come from the loop, on_start also from inside Start(),
// and must not destroy the supervisor.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "base/epoll_loop.h"
#include "base/time.h"
#include "launch/child.h"
#include "launch/line_buffer.h"
#include "launch/restart_policy.h"

namespace penstock::launch {

struct Program {
  std::string name = {};                    // Unique.
  std::vector<std::string> arguments = {};  // A path first.
  std::vector<int> cpus = {};               // Empty: any.
  std::string ready_file = {};  // Removed before each start, so that what is there is of this life.
  int stop_rank = 0;            // Lower ones end first.
};

class Supervisor {
 public:
  struct Options {
    RestartPolicy::Options restart;
    // From SIGTERM to SIGKILL, for each rank.
    Duration grace = std::chrono::seconds(10);
    std::size_t lines_kept = 20;  // Of each, to be shown when it fails.
  };
  struct Events {
    std::function<void(const std::string& name, std::string_view line)> on_line;
    std::function<void(const std::string& name, pid_t pid)> on_start;
    // It has ended, `how` says ("signal 9"), and starts again after `pause`.
    std::function<void(const std::string& name, const std::string& how, Duration pause)> on_restart;
    // It is not started again. FAILED_PRECONDITION: it ended by itself in its first life, before it
    // was ready: whatever is wrong, it will not mend itself. UNAVAILABLE: it failed too often. The
    // message has its last lines.
    std::function<void(const std::string& name, const absl::Status& why)> on_give_up;
  };

  Supervisor(EpollLoop& loop, const Options& options, Events events);
  ~Supervisor();  // Kills what runs, and waits for its end.

  // Errors, also those of starting it, come as on_give_up. The name must be new (CHECKed).
  void Start(Program program);
  // It does what it is for: from now on its end is a reason to start it again.
  void SetReady(const std::string& name);
  // What its next start takes.
  void SetArguments(const std::string& name, std::vector<std::string> arguments);
  // -1: it does not run now.
  pid_t PidOf(const std::string& name) const;

  // Ends all, rank by rank; nothing is started any more. `done` is called once, when nothing runs.
  // Once.
  void Stop(std::function<void()> done);
  // SIGKILL to all that runs, now; during Stop.
  void Kill();

 private:
  struct Entry {
    explicit Entry(Program program_in, const RestartPolicy::Options& restart)
        : program(std::move(program_in)), policy(restart) {}
    Program program;
    RestartPolicy policy;
    Child child;
    std::unique_ptr<LineBuffer> lines;
    MonoTime started;
    bool first_life = true;
    bool ever_ready = false;
    bool timer_set = false;
    Loop::TimerId timer{};
  };

  void Launch(Entry& entry);
  void OnOutput(Entry& entry);
  void OnExit(Entry& entry);
  void Drain(Entry& entry);
  void Decide(Entry& entry, const std::string& how, bool by_itself);
  void GiveUp(Entry& entry, absl::Status why);
  void StopNextRank();
  void Signal(int signal, int rank);

  EpollLoop& loop_;
  const Options options_;
  const Events events_;
  std::map<std::string, std::unique_ptr<Entry>> entries_;
  bool stopping_ = false;
  bool grace_timer_set_ = false;
  Loop::TimerId grace_timer_{};
  int stopping_rank_ = 0;
  std::function<void()> stopped_;
  std::shared_ptr<int> life_ =
      std::make_shared<int>(0);  // Shared with posted tasks alone: is this still there?
};

}  // namespace penstock::launch
