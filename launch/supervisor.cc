// SPDX-License-Identifier: Apache-2.0
#include "launch/supervisor.h"

#include <signal.h>
#include <sys/epoll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/exit_code.h"
#include "base/status.h"

namespace penstock::launch {
namespace {

// Of an ended process; its zombie keeps the number, and with it the group's, from being given anew,
// so what the process left running is killed before it is waited for.
siginfo_t Reap(const Child& child) {
  siginfo_t info = {};
  while (::waitid(P_PID, static_cast<id_t>(child.pid), &info, WEXITED | WNOWAIT) < 0 &&
         errno == EINTR) {
  }
  ::kill(-child.pid, SIGKILL);
  while (::waitid(P_PID, static_cast<id_t>(child.pid), &info, WEXITED) < 0 && errno == EINTR) {
  }
  return info;
}

std::string HowItEnded(const siginfo_t& info) {
  if (info.si_code == CLD_EXITED) {
    return absl::StrCat("exit code ", info.si_status,
                        info.si_status == kExitGpuFailed ? " (its GPU failed)" : "");
  }
  const char* const name = ::sigabbrev_np(info.si_status);
  return absl::StrCat("signal ", info.si_status,
                      name == nullptr ? std::string() : absl::StrCat(" (SIG", name, ")"));
}

}  // namespace

Supervisor::Supervisor(EpollLoop& loop, const Options& options, Events events)
    : loop_(loop), options_(options), events_(std::move(events)) {}

Supervisor::~Supervisor() {
  if (grace_timer_set_) loop_.CancelTimer(grace_timer_);
  for (auto& [name, entry] : entries_) {
    if (entry->timer_set) loop_.CancelTimer(entry->timer);
    if (entry->child.pid < 0) continue;
    loop_.Unwatch(entry->child.pidfd.get());
    if (entry->child.output) loop_.Unwatch(entry->child.output.get());
    ::kill(-entry->child.pid, SIGKILL);
    Reap(entry->child);
  }
}

void Supervisor::Start(Program program) {
  const std::string name = program.name;
  const auto [at, is_new] =
      entries_.emplace(name, std::make_unique<Entry>(std::move(program), options_.restart));
  CHECK(is_new);
  Launch(*at->second);
}

void Supervisor::SetReady(const std::string& name) {
  const auto at = entries_.find(name);
  if (at != entries_.end()) at->second->ever_ready = true;
}

void Supervisor::SetArguments(const std::string& name, std::vector<std::string> arguments) {
  const auto at = entries_.find(name);
  if (at != entries_.end()) at->second->program.arguments = std::move(arguments);
}

pid_t Supervisor::PidOf(const std::string& name) const {
  const auto at = entries_.find(name);
  return at == entries_.end() ? -1 : at->second->child.pid;
}

void Supervisor::Launch(Entry& entry) {
  if (stopping_) return;
  if (!entry.program.ready_file.empty()) ::unlink(entry.program.ready_file.c_str());
  entry.started = loop_.Now();
  entry.lines =
      std::make_unique<LineBuffer>(options_.lines_kept, [this, &entry](std::string_view line) {
        if (events_.on_line) events_.on_line(entry.program.name, line);
      });
  absl::StatusOr<Child> child = Spawn(entry.program.arguments, entry.program.cpus);
  absl::Status watched = child.status();
  if (child.ok()) {
    entry.child = *std::move(child);
    watched = loop_.Watch(entry.child.output.get(), EPOLLIN,
                          [this, &entry](std::uint32_t) { OnOutput(entry); });
    if (watched.ok()) {
      watched = loop_.Watch(entry.child.pidfd.get(), EPOLLIN,
                            [this, &entry](std::uint32_t) { OnExit(entry); });
      if (!watched.ok()) loop_.Unwatch(entry.child.output.get());
    }
    if (!watched.ok()) {
      ::kill(-entry.child.pid, SIGKILL);
      Reap(entry.child);
      entry.child = {};
    }
  }
  if (watched.ok()) {
    if (events_.on_start) events_.on_start(entry.program.name, entry.child.pid);
    return;
  }
  loop_.Post([this, &entry, watched, life = std::weak_ptr(life_)] {
    if (!life.expired()) Decide(entry, std::string(watched.message()), /*by_itself=*/true);
  });
}

void Supervisor::OnOutput(Entry& entry) {
  char buffer[16384];
  const ssize_t got = ::read(entry.child.output.get(), buffer, sizeof(buffer));
  if (got > 0) return entry.lines->Add({buffer, static_cast<std::size_t>(got)});
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
  loop_.Unwatch(entry.child.output.get());  // It has closed both; its end comes on its own.
  entry.child.output.Reset();
}

// What it printed last, which is the most wanted.
void Supervisor::Drain(Entry& entry) {
  constexpr int kReadsMax = 64;  // Somebody else may hold the pipe, and write for ever.
  for (int i = 0; i < kReadsMax && entry.child.output; ++i) {
    char buffer[16384];
    const ssize_t got = ::read(entry.child.output.get(), buffer, sizeof(buffer));
    if (got == 0 || (got < 0 && errno != EINTR)) break;
    if (got > 0) entry.lines->Add({buffer, static_cast<std::size_t>(got)});
  }
  entry.lines->End();
  if (entry.child.output) loop_.Unwatch(entry.child.output.get());
  entry.child.output.Reset();
}

void Supervisor::OnExit(Entry& entry) {
  loop_.Unwatch(entry.child.pidfd.get());
  const siginfo_t info = Reap(entry.child);
  Drain(entry);
  entry.child = {};
  Decide(entry, HowItEnded(info), info.si_code == CLD_EXITED);
}

void Supervisor::Decide(Entry& entry, const std::string& how, bool by_itself) {
  if (stopping_) return StopNextRank();
  if (entry.first_life && !entry.ever_ready && by_itself) {
    return GiveUp(entry, absl::FailedPreconditionError(absl::StrCat(
                             entry.program.name, " ended before it was ready: ", how)));
  }
  entry.first_life = false;
  const std::optional<Duration> pause = entry.policy.OnExit(loop_.Now() - entry.started);
  if (!pause) {
    return GiveUp(entry, absl::UnavailableError(
                             absl::StrCat(entry.program.name, " failed ", entry.policy.failures(),
                                          " times in a row and is given up; at last: ", how)));
  }
  entry.timer_set = true;
  entry.timer = loop_.At(loop_.Now() + *pause, [this, &entry] {
    entry.timer_set = false;
    Launch(entry);
  });
  if (events_.on_restart) events_.on_restart(entry.program.name, how, *pause);
}

void Supervisor::GiveUp(Entry& entry, absl::Status why) {
  std::string message(why.message());
  if (!entry.lines->last_lines().empty()) absl::StrAppend(&message, "\nIts last lines:");
  for (const std::string& line : entry.lines->last_lines()) absl::StrAppend(&message, "\n  ", line);
  if (events_.on_give_up) events_.on_give_up(entry.program.name, absl::Status(why.code(), message));
}

void Supervisor::Stop(std::function<void()> done) {
  CHECK(!stopping_);
  stopping_ = true;
  stopped_ = std::move(done);
  for (auto& [name, entry] : entries_) {
    if (entry->timer_set) loop_.CancelTimer(entry->timer);
    entry->timer_set = false;
  }
  stopping_rank_ = INT_MIN;
  loop_.Post([this, life = std::weak_ptr(life_)] {
    if (!life.expired()) StopNextRank();
  });
}

void Supervisor::StopNextRank() {
  int next = INT_MAX;
  bool runs = false;
  for (const auto& [name, entry] : entries_) {
    if (entry->child.pid < 0) continue;
    runs = true;
    next = std::min(next, entry->program.stop_rank);
  }
  if (runs && next == stopping_rank_) return;  // Not all of it has ended.
  if (grace_timer_set_) loop_.CancelTimer(grace_timer_);
  grace_timer_set_ = false;
  if (!runs) {
    if (stopped_) std::exchange(stopped_, nullptr)();
    return;
  }
  stopping_rank_ = next;
  Signal(SIGTERM, next);
  grace_timer_set_ = true;
  grace_timer_ = loop_.At(loop_.Now() + options_.grace, [this, next] {
    grace_timer_set_ = false;
    Signal(SIGKILL, next);
  });
}

void Supervisor::Signal(int signal, int rank) {
  for (const auto& [name, entry] : entries_) {
    if (entry->child.pid < 0 || entry->program.stop_rank != rank) continue;
    ::kill(-entry->child.pid, signal);
  }
}

void Supervisor::Kill() {
  for (const auto& [name, entry] : entries_) {
    if (entry->child.pid >= 0) ::kill(-entry->child.pid, SIGKILL);
  }
}

}  // namespace penstock::launch
