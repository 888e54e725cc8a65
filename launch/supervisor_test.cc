// SPDX-License-Identifier: Apache-2.0
#include "launch/supervisor.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "launch/ready_folder.h"

namespace penstock::launch {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::AllOf;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr auto kDeadline = seconds(30);

// Whether a process ends before the deadline. One that is no more has.
bool Ends(pid_t pid) {
  const UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!pidfd) return true;
  pollfd readable = {pidfd.get(), POLLIN, 0};
  return ::poll(&readable, 1, 30000) == 1;
}

Supervisor::Options Quick() {
  Supervisor::Options options;
  options.restart.pause_min = milliseconds(1);
  options.restart.pause_max = milliseconds(4);
  return options;
}

// A supervisor on its loop, and what it told, as lines.
class Harness {
 public:
  explicit Harness(const Supervisor::Options& options = Quick())
      : loop_(EpollLoop::Make("test").value()) {
    loop_->Run([&] {
      supervisor_ = std::make_unique<Supervisor>(
          *loop_, options,
          Supervisor::Events{
              .on_line =
                  [this](const std::string& name, std::string_view line) {
                    Add(absl::StrCat(name, " | ", std::string(line)));
                  },
              .on_start = [this](const std::string& name,
                                 pid_t) { Add(absl::StrCat(name, " starts")); },
              .on_restart = [this](const std::string& name, const std::string& how,
                                   Duration) { Add(absl::StrCat(name, " restarts: ", how)); },
              .on_give_up =
                  [this](const std::string& name, const absl::Status& why) {
                    Add(absl::StrCat(name, " given up: ", why.ToString()));
                  },
          });
    });
  }
  ~Harness() {
    loop_->Run([&] { supervisor_.reset(); });
  }

  void Start(const std::string& name, const std::string& script, int stop_rank = 0) {
    Run([&] {
      supervisor_->Start(
          {.name = name, .arguments = {"/bin/sh", "-c", script}, .stop_rank = stop_rank});
    });
  }
  void Run(std::function<void()> task) { loop_->Run(std::move(task)); }
  Supervisor& supervisor() { return *supervisor_; }
  EpollLoop& loop() { return *loop_; }

  void Add(std::string event) {
    const std::lock_guard lock(mutex_);
    events_.push_back(std::move(event));
    changed_.notify_all();
  }
  // False when it did not come in time.
  bool Wait(const std::string& event, int times = 1) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, kDeadline, [&] {
      return std::count_if(events_.begin(), events_.end(), [&](const std::string& have) {
               return have.starts_with(event);
             }) >= times;
    });
  }
  std::vector<std::string> events() {
    const std::lock_guard lock(mutex_);
    return events_;
  }
  pid_t PidOf(const std::string& name) {
    pid_t pid = -1;
    Run([&] { pid = supervisor_->PidOf(name); });
    return pid;
  }
  bool Stop() {
    Run([&] { supervisor_->Stop([this] { Add("stopped"); }); });
    return Wait("stopped");
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::string> events_;
  std::unique_ptr<EpollLoop> loop_;
  std::unique_ptr<Supervisor> supervisor_;
};

TEST(RestartPolicyTest, PausesDoubleAndALongLifeForgives) {
  RestartPolicy policy({.pause_min = milliseconds(200),
                        .pause_max = seconds(1),
                        .good_life = seconds(30),
                        .failures_max = 5});
  EXPECT_EQ(policy.OnExit(seconds(0)), milliseconds(200));
  EXPECT_EQ(policy.OnExit(seconds(0)), milliseconds(400));
  EXPECT_EQ(policy.OnExit(seconds(29)), milliseconds(800));
  EXPECT_EQ(policy.OnExit(seconds(0)), seconds(1));
  EXPECT_EQ(policy.OnExit(seconds(30)), milliseconds(200));
  for (int i = 0; i < 3; ++i) EXPECT_NE(policy.OnExit(seconds(1)), std::nullopt);
  EXPECT_EQ(policy.OnExit(seconds(1)), std::nullopt);
  EXPECT_EQ(policy.failures(), 5);
}

TEST(LineBufferTest, CutsAndCleans) {
  std::vector<std::string> lines;
  LineBuffer buffer(2, [&](std::string_view line) { lines.emplace_back(line); });
  buffer.Add("a");
  buffer.Add("b\r\n\nc\td\x1b[1m\n");
  buffer.Add(std::string(LineBuffer::kLineBytesMax + 1, 'x'));
  buffer.End();
  buffer.End();
  EXPECT_THAT(lines,
              ElementsAre("ab", "", "c\td?[1m", std::string(LineBuffer::kLineBytesMax, 'x'), "x"));
  EXPECT_EQ(buffer.last_lines().size(), 2u);
}

TEST(SupervisorTest, PassesOnBothOutputsAndNothingIn) {
  Harness harness;
  harness.Start("a", "echo out; echo err >&2; cat; printf end; kill -9 $$");
  ASSERT_TRUE(harness.Wait("a restarts: signal 9 (SIGKILL)"));
  EXPECT_THAT(harness.events(),
              AllOf(Contains("a | out"), Contains("a | err"), Contains("a | end")));
}

TEST(SupervisorTest, RestartsWhatDiesAndGivesUpAtLast) {
  Harness harness;
  harness.Start("a", "echo hello; kill -9 $$");
  ASSERT_TRUE(harness.Wait("a given up"));
  const std::vector<std::string> events = harness.events();
  EXPECT_EQ(std::count(events.begin(), events.end(), "a starts"), 8);
  EXPECT_EQ(events.back(),
            "a given up: UNAVAILABLE: a failed 8 times in a row and is given up; at last: signal 9 "
            "(SIGKILL)\n"
            "Its last lines:\n  hello");
  EXPECT_EQ(harness.PidOf("a"), -1);
}

TEST(SupervisorTest, AWrongStartIsNotRepeated) {
  Harness harness;
  harness.Start("a", "echo why >&2; exit 1");
  ASSERT_TRUE(harness.Wait("a given up"));
  EXPECT_EQ(harness.events().back(),
            "a given up: FAILED_PRECONDITION: a ended before it was ready: exit code 1\nIts last "
            "lines:\n  why");
  harness.Run([&] { harness.supervisor().Start({.name = "b", .arguments = {"/nowhere/at/all"}}); });
  ASSERT_TRUE(harness.Wait("b given up"));
  EXPECT_THAT(harness.events().back(), HasSubstr("cannot run /nowhere/at/all: No such file"));
  harness.Run([&] {
    harness.supervisor().Start({.name = "c", .arguments = {"/bin/true"}, .cpus = {1023}});
  });
  ASSERT_TRUE(harness.Wait("c given up"));
  EXPECT_THAT(harness.events().back(), HasSubstr("none of the CPUs 1023 can be used here"));
}

TEST(SupervisorTest, WhatWasReadyIsRestartedHoweverItEnds) {
  Harness harness;
  harness.Start("a", "trap 'exit 1' USR1; echo up; while :; do sleep 1000 & wait; done");
  ASSERT_TRUE(harness.Wait("a | up"));
  harness.Run([&] {
    harness.supervisor().SetReady("a");
    harness.supervisor().SetArguments("a", {"/bin/sh", "-c", "echo again; kill -STOP $$"});
    ::kill(harness.supervisor().PidOf("a"), SIGUSR1);
  });
  ASSERT_TRUE(harness.Wait("a restarts: exit code 1"));
  ASSERT_TRUE(harness.Wait("a | again"));
}

TEST(SupervisorTest, SaysThatAGpuFailed) {
  Harness harness;
  harness.Start("a", "trap 'exit 3' USR1; echo up; while :; do sleep 1000 & wait; done");
  ASSERT_TRUE(harness.Wait("a | up"));
  harness.Run([&] {
    harness.supervisor().SetReady("a");
    ::kill(harness.supervisor().PidOf("a"), SIGUSR1);
  });
  ASSERT_TRUE(harness.Wait("a restarts: exit code 3 (its GPU failed)"));
}

TEST(SupervisorTest, StopsRankByRank) {
  Harness harness;
  for (const auto& [name, rank] :
       {std::pair("late", 2), std::pair("early", 0), std::pair("middle", 1)}) {
    harness.Start(
        name, "trap 'echo ends; exit 0' TERM; echo up; while :; do sleep 1000 & wait; done", rank);
    ASSERT_TRUE(harness.Wait(absl::StrCat(name, " | up")));
  }
  ASSERT_TRUE(harness.Stop());
  std::vector<std::string> ends;
  for (const std::string& event : harness.events()) {
    if (event.ends_with("| ends")) ends.push_back(event);
  }
  EXPECT_THAT(ends, ElementsAre("early | ends", "middle | ends", "late | ends"));
}

TEST(SupervisorTest, KillsWhatDoesNotStop) {
  Supervisor::Options options = Quick();
  options.grace = milliseconds(1);
  Harness harness(options);
  harness.Start("deaf", "trap '' TERM; echo up; while :; do sleep 1000; done");
  ASSERT_TRUE(harness.Wait("deaf | up"));
  const pid_t pid = harness.PidOf("deaf");
  ASSERT_TRUE(harness.Stop());
  EXPECT_NE(::kill(pid, 0), 0);
}

TEST(SupervisorTest, KillDuringStopDoesNotWait) {
  Supervisor::Options options = Quick();
  options.grace = std::chrono::hours(1);
  Harness harness(options);
  for (const auto& [name, rank] : {std::pair("a", 0), std::pair("b", 1)}) {
    harness.Start(name, "trap '' TERM; echo up; while :; do sleep 1000; done", rank);
    ASSERT_TRUE(harness.Wait(absl::StrCat(name, " | up")));
  }
  harness.Run([&] {
    harness.supervisor().Stop([&] { harness.Add("stopped"); });
    harness.supervisor().Kill();
  });
  EXPECT_TRUE(harness.Wait("stopped"));
}

TEST(SupervisorTest, StopsWhileARestartWaits) {
  Supervisor::Options options;
  options.restart.pause_min = std::chrono::hours(1);
  options.restart.pause_max = std::chrono::hours(1);
  Harness harness(options);
  harness.Start("a", "kill -9 $$");
  ASSERT_TRUE(harness.Wait("a restarts"));
  EXPECT_TRUE(harness.Stop());
}

TEST(SupervisorTest, GrandchildrenDoNotSurviveTheirParent) {
  Harness harness;
  harness.Start("a", "sleep 1000 & echo $!; kill -9 $$");
  ASSERT_TRUE(harness.Wait("a | "));
  ASSERT_TRUE(harness.Wait("a restarts"));
  for (const std::string& event : harness.events()) {
    if (!event.starts_with("a | ")) continue;
    EXPECT_TRUE(Ends(std::stoi(event.substr(4))));
  }
}

TEST(SupervisorTest, RunsWithNoSignalBlockedOnItsCpus) {
  cpu_set_t ours;
  ASSERT_EQ(::sched_getaffinity(0, sizeof(ours), &ours), 0);
  int cpu = 0;
  while (!CPU_ISSET(static_cast<std::size_t>(cpu), &ours)) ++cpu;
  Harness harness;
  harness.Run([&] {
    ::signal(SIGPIPE, SIG_IGN);
    harness.supervisor().Start(
        {.name = "a",
         .arguments = {"/bin/sh", "-c",
                       "grep -E 'Cpus_allowed_list|Sig(Blk|Ign)' /proc/self/status; kill -STOP $$"},
         .cpus = {cpu}});
  });
  EXPECT_TRUE(harness.Wait(absl::StrCat("a | Cpus_allowed_list:\t", cpu)));
  EXPECT_TRUE(harness.Wait("a | SigBlk:\t0000000000000000"));
  EXPECT_TRUE(harness.Wait("a | SigIgn:\t0000000000000000"));
}

// Whatever ends the supervisor, the kernel ends what it started.
TEST(SupervisorTest, SigkillLeavesNobodyBehind) {
  const std::string peer =
      std::filesystem::read_symlink("/proc/self/exe").parent_path().string() + "/supervisor_peer";
  std::array<int, 2> pipe;
  ASSERT_EQ(::pipe2(pipe.data(), O_CLOEXEC), 0);
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, pipe[1], STDOUT_FILENO);
  const char* const arguments[] = {peer.c_str(), "exec sleep 1000",
                                   "trap '' TERM INT HUP; exec sleep 1000", nullptr};
  pid_t supervisor = 0;
  ASSERT_EQ(::posix_spawn(&supervisor, peer.c_str(), &actions, nullptr,
                          const_cast<char* const*>(arguments), nullptr),
            0);
  ::posix_spawn_file_actions_destroy(&actions);
  ::close(pipe[1]);
  std::FILE* const lines = ::fdopen(pipe[0], "r");
  std::array<int, 2> pids{};
  for (int& pid : pids) ASSERT_EQ(std::fscanf(lines, "%d", &pid), 1);
  for (const int pid : pids) ASSERT_EQ(::kill(pid, 0), 0);
  ::kill(supervisor, SIGKILL);
  for (const int pid : pids) EXPECT_TRUE(Ends(pid));
  ::waitpid(supervisor, nullptr, 0);
  std::fclose(lines);
}

TEST(ReadyFolderTest, TellsWhatIsMovedThereAndCleansUp) {
  Harness harness;
  std::unique_ptr<ReadyFolder> folder;
  harness.Run([&] {
    folder = ReadyFolder::Make(harness.loop(), [&](const std::string& path) {
               harness.Add(path);
             }).value();
  });
  const std::string path = folder->path();
  for (const char* name : {"/a.json", "/b.json"}) {
    std::ofstream(path + name + ".part") << "{}";
    std::filesystem::rename(path + name + ".part", path + name);
    EXPECT_TRUE(harness.Wait(path + name));
  }
  harness.Run([&] { folder.reset(); });
  EXPECT_FALSE(std::filesystem::exists(path));
}

}  // namespace
}  // namespace penstock::launch
