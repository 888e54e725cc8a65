// SPDX-License-Identifier: Apache-2.0
#include "cli/run_program.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"

extern char** environ;

namespace penstock::cli {
namespace {

constexpr std::size_t kOutputBytesMax = 16384;
constexpr int kWatchMillis = 200;

std::vector<char*> Pointers(std::vector<std::string>* texts) {
  std::vector<char*> pointers;
  for (std::string& text : *texts) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  return pointers;
}

// As NAME=VALUE, ours where `options` has no other value.
std::vector<std::string> Environment(const ProgramOptions& options) {
  std::vector<std::string> all;
  for (const auto& [name, value] : options.environment) {
    all.push_back(absl::StrCat(name, "=", value));
  }
  for (char** at = environ; *at != nullptr; ++at) {
    const std::string_view variable = *at;
    bool replaced = false;
    for (const auto& entry : options.environment) {
      replaced = replaced || variable.substr(0, variable.find('=')) == entry.first;
    }
    if (!replaced) all.emplace_back(variable);
  }
  return all;
}

// With `output_fd` as its stdout and stderr.
absl::StatusOr<pid_t> Spawn(std::vector<std::string> arguments, const ProgramOptions& options,
                            int output_fd) {
  std::vector<std::string> environment = Environment(options);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, output_fd, STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, output_fd, STDERR_FILENO);
  // Ctrl-C ends the child even while we hold it off ourselves.
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none;
  sigemptyset(&none);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
  pid_t child = 0;
  const int error = ::posix_spawnp(&child, arguments[0].c_str(), &actions, &attributes,
                                   Pointers(&arguments).data(), Pointers(&environment).data());
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&actions);
  if (error == 0) return child;
  return absl::UnavailableError(
      absl::StrCat("cannot run ", arguments[0], ": ", std::strerror(error)));
}

// Whether `child` has ended, and how. `block`: waits until then.
bool HasEnded(pid_t child, bool block, int* status) {
  for (;;) {
    const pid_t ended = ::waitpid(child, status, block ? 0 : WNOHANG);
    if (ended == child) return true;
    if (ended == 0 || errno != EINTR) return false;
  }
}

// Reads until nobody can write any more, or the child has ended and left something running that
// holds the pipe. False when `watch` said so.
bool Follow(pid_t child, int fd, const ProgramOptions& options, std::string* output, bool* ended,
            int* status) {
  char buffer[4096];
  for (;;) {
    pollfd readable = {fd, POLLIN, 0};
    const int ready = ::poll(&readable, 1, kWatchMillis);
    if (options.watch && !options.watch()) return false;
    if (ready > 0) {
      const ssize_t count = ::read(fd, buffer, sizeof(buffer));
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) return true;
      output->append(buffer, static_cast<std::size_t>(count));
      if (output->size() > kOutputBytesMax) output->erase(0, output->size() - kOutputBytesMax);
    } else if (HasEnded(child, /*block=*/false, status)) {
      *ended = true;
      return true;
    }
  }
}

}  // namespace

absl::Status RunProgram(const std::vector<std::string>& arguments, const ProgramOptions& options,
                        std::string* output) {
  output->clear();
  int pipe[2];
  if (::pipe2(pipe, O_CLOEXEC) != 0) {
    return absl::ResourceExhaustedError(absl::StrCat("cannot make a pipe: ", std::strerror(errno)));
  }
  const absl::StatusOr<pid_t> child = Spawn(arguments, options, pipe[1]);
  ::close(pipe[1]);
  if (!child.ok()) {
    ::close(pipe[0]);
    return child.status();
  }
  bool ended = false;
  int status = 0;
  const bool wanted = Follow(*child, pipe[0], options, output, &ended, &status);
  ::close(pipe[0]);
  if (!wanted) ::kill(*child, SIGKILL);
  if (!ended) HasEnded(*child, /*block=*/true, &status);
  if (!wanted) return absl::CancelledError(absl::StrCat(arguments[0], " was ended"));
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat(arguments[0], " ended with ",
                                             WIFEXITED(status)
                                                 ? absl::StrCat("exit code ", WEXITSTATUS(status))
                                                 : absl::StrCat("signal ", WTERMSIG(status))));
}

}  // namespace penstock::cli
