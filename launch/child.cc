// SPDX-License-Identifier: Apache-2.0
#include "launch/child.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "launch/values.h"

namespace penstock::launch {
namespace {

// What the child tells us when it does not come as far as the program.
struct SpawnError {
  enum class Step { kNone, kCpus, kRun } step = Step::kNone;
  int error = 0;
};

// Everything that the child needs, made before the fork: behind it, only calls that are safe in the
// child of a program with threads.
struct Prepared {
  std::vector<char*> arguments;
  cpu_set_t cpus;
  bool pinned = false;
  int input_fd = -1;
  int output_fd = -1;
  int error_fd = -1;
  pid_t parent = -1;
};

[[noreturn]] void Fail(const Prepared& prepared, SpawnError::Step step) {
  const SpawnError error = {.step = step, .error = errno};
  (void)!::write(prepared.error_fd, &error, sizeof(error));
  ::_exit(127);
}

[[noreturn]] void RunChild(const Prepared& prepared) {
  ::setpgid(0, 0);
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != prepared.parent) ::_exit(127);  // It had already gone.
  if (prepared.pinned && ::sched_setaffinity(0, sizeof(prepared.cpus), &prepared.cpus) != 0) {
    Fail(prepared, SpawnError::Step::kCpus);
  }
  ::dup2(prepared.input_fd, STDIN_FILENO);
  ::dup2(prepared.output_fd, STDOUT_FILENO);
  ::dup2(prepared.output_fd, STDERR_FILENO);
  ::close_range(STDERR_FILENO + 1, ~0u, CLOSE_RANGE_CLOEXEC);
  for (const int ignored : {SIGPIPE, SIGINT, SIGTERM, SIGHUP, SIGCHLD}) ::signal(ignored, SIG_DFL);
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  ::execvp(prepared.arguments[0], prepared.arguments.data());
  Fail(prepared, SpawnError::Step::kRun);
}

absl::Status Refused(const char* what) {
  return absl::UnavailableError(absl::StrCat(what, ": ", std::strerror(errno)));
}

void Reap(pid_t pid) {
  while (::waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
  }
}

}  // namespace

absl::StatusOr<Child> Spawn(const std::vector<std::string>& arguments, const std::vector<int>& cpus,
                            int input) {
  Prepared prepared;
  for (const std::string& argument : arguments) {
    prepared.arguments.push_back(
        const_cast<char*>(argument.c_str()));  // execvp does not write them.
  }
  prepared.arguments.push_back(nullptr);
  CPU_ZERO(&prepared.cpus);
  for (const int cpu : cpus) CPU_SET(static_cast<std::size_t>(cpu), &prepared.cpus);
  prepared.pinned = !cpus.empty();
  prepared.parent = ::getpid();
  const UniqueFd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  int output[2], error[2];
  if (!null || ::pipe2(output, O_CLOEXEC) != 0) return Refused("no descriptors are left");
  UniqueFd output_read(output[0]);
  const UniqueFd output_write(output[1]);
  if (::pipe2(error, O_CLOEXEC) != 0) return Refused("no descriptors are left");
  const UniqueFd error_read(error[0]);
  UniqueFd error_write(error[1]);
  prepared.input_fd = input >= 0 ? input : null.get();
  prepared.output_fd = output_write.get();
  prepared.error_fd = error_write.get();

  const pid_t pid = ::fork();
  if (pid < 0) return Refused("cannot make a process");
  if (pid == 0) RunChild(prepared);
  ::setpgid(pid, pid);  // Whoever of the two is first; before anybody signals the group.
  error_write.Reset();
  SpawnError failure;
  ssize_t got = 0;
  while ((got = ::read(error_read.get(), &failure, sizeof(failure))) < 0 && errno == EINTR) {
  }
  if (got == sizeof(failure)) {
    Reap(pid);
    if (failure.step == SpawnError::Step::kCpus) {
      return absl::InvalidArgumentError(
          absl::StrCat("none of the CPUs ", CpusToString(cpus),
                       " can be used here: ", std::strerror(failure.error)));
    }
    return absl::UnavailableError(
        absl::StrCat("cannot run ", arguments[0], ": ", std::strerror(failure.error)));
  }
  Child child = {.pid = pid,
                 .pidfd = UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0))),
                 .output = std::move(output_read)};
  if (!child.pidfd) {
    const absl::Status refused = Refused("no descriptors are left");
    ::kill(-pid, SIGKILL);
    Reap(pid);
    return refused;
  }
  ::fcntl(child.output.get(), F_SETFL, O_NONBLOCK);
  return child;
}

}  // namespace penstock::launch
