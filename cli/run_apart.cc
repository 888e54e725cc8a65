// SPDX-License-Identifier: Apache-2.0
#include "cli/run_apart.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <optional>

#include "absl/strings/str_cat.h"
#include "base/unique_fd.h"

namespace penstock::cli {
namespace {

constexpr std::size_t kTextMax = std::size_t{1} << 20;
constexpr Duration kEndMax = std::chrono::seconds(2);  // Behind its answer, or its kill.

[[noreturn]] void WriteAndEnd(int fd, std::string_view text) {
  text = text.substr(0, kTextMax);
  while (!text.empty()) {
    const ssize_t wrote = ::write(fd, text.data(), text.size());
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote <= 0) ::_exit(1);
    text.remove_prefix(static_cast<std::size_t>(wrote));
  }
  ::_exit(0);
}

// To the other end's close. False: not by `deadline`.
bool ReadAll(int fd, MonoTime deadline, std::string& text) {
  for (;;) {
    const Duration left = deadline - SteadyClock().Now();
    if (left <= Duration::zero()) return false;
    pollfd ready = {.fd = fd, .events = POLLIN, .revents = 0};
    const auto ms = std::chrono::ceil<std::chrono::milliseconds>(left).count();
    if (::poll(&ready, 1, static_cast<int>(std::min<std::int64_t>(ms, 60000))) <= 0) continue;
    char buffer[4096];
    const ssize_t got = ::read(fd, buffer, sizeof(buffer));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return true;
    text.append(buffer, static_cast<std::size_t>(got));
  }
}

// Its status; none where it has not ended in kEndMax, such as one that hangs in a driver, which no
// signal ends: it is left to itself.
std::optional<int> AwaitEnd(pid_t pid) {
  const UniqueFd process(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  const MonoTime deadline = SteadyClock().Now() + kEndMax;
  for (;;) {
    int status = 0;
    const pid_t reaped = ::waitpid(pid, &status, WNOHANG);
    if (reaped == pid) return status;
    const Duration left = deadline - SteadyClock().Now();
    if (left <= Duration() || (reaped < 0 && errno != EINTR)) return std::nullopt;
    pollfd ended = {.fd = process.get(), .events = POLLIN, .revents = 0};
    const auto ms = std::chrono::ceil<std::chrono::milliseconds>(left).count();
    (void)::poll(&ended, 1, static_cast<int>(ms));
  }
}

}  // namespace

absl::StatusOr<std::string> RunApart(absl::FunctionRef<std::string()> work, Duration patience) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) {
    return absl::UnavailableError(absl::StrCat("no pipe: ", std::strerror(errno)));
  }
  const UniqueFd from(ends[0]);
  UniqueFd to(ends[1]);
  const pid_t pid = ::fork();
  if (pid < 0) return absl::UnavailableError(absl::StrCat("no process: ", std::strerror(errno)));
  if (pid == 0) WriteAndEnd(to.get(), work());
  to.Reset();
  std::string text;
  const bool in_time = ReadAll(from.get(), SteadyClock().Now() + patience, text);
  if (!in_time) ::kill(pid, SIGKILL);
  const std::optional<int> ended = AwaitEnd(pid);
  if (!in_time) {
    return absl::DeadlineExceededError(
        absl::StrCat("no answer within ", ToSeconds(patience), " s"));
  }
  if (!ended.has_value()) return absl::UnavailableError("the process does not end");
  const int status = *ended;
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return text;
  return absl::UnavailableError(WIFSIGNALED(status)
                                    ? absl::StrCat("the process died by signal ", WTERMSIG(status))
                                    : absl::StrCat("the process ended with ", WEXITSTATUS(status)));
}

}  // namespace penstock::cli
