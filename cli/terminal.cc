// SPDX-License-Identifier: Apache-2.0
#include "cli/terminal.h"

#include <sys/signalfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>

#include "absl/strings/str_format.h"
#include "base/status.h"

namespace penstock::cli {
namespace {

Style StyleFor(bool terminal) {
  const char* no_color = std::getenv("NO_COLOR");
  const char* term = std::getenv("TERM");
  const bool plain = (no_color != nullptr && *no_color != 0) || term == nullptr ||
                     std::string_view(term) == "dumb";
  if (!terminal || plain) return {};
  return {"\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[0m"};
}

}  // namespace

bool StdinIsTerminal() { return ::isatty(STDIN_FILENO) == 1; }
bool StdoutIsTerminal() { return ::isatty(STDOUT_FILENO) == 1; }
bool StderrIsTerminal() { return ::isatty(STDERR_FILENO) == 1; }

const Style& StdoutStyle() {
  static const Style style = StyleFor(StdoutIsTerminal());
  return style;
}

const Style& StderrStyle() {
  static const Style style = StyleFor(StderrIsTerminal());
  return style;
}

void ProgressLine::Update(std::string_view text, std::size_t done, std::size_t total) {
  if (!StderrIsTerminal()) return;
  const int percent =
      total == 0 ? 0
                 : static_cast<int>(100.0 * static_cast<double>(done) / static_cast<double>(total));
  if (percent == percent_) return;
  percent_ = percent;
  absl::FPrintF(stderr, "\r\x1b[K%s%s  %d %%%s", ToAbsl(StderrStyle().dim), ToAbsl(text), percent,
                ToAbsl(StderrStyle().reset));
}

void ProgressLine::Clear() {
  if (percent_ >= 0) std::fputs("\r\x1b[K", stderr);
  percent_ = -1;
}

InterruptWatch::InterruptWatch() {
  sigset_t interrupt;
  sigemptyset(&interrupt);
  sigaddset(&interrupt, SIGINT);
  pthread_sigmask(SIG_BLOCK, &interrupt, &before_);
  fd_ = ::signalfd(-1, &interrupt, SFD_NONBLOCK | SFD_CLOEXEC);
}

InterruptWatch::~InterruptWatch() {
  (void)Requested();  // One more would end the process the moment it is let through.
  if (fd_ >= 0) ::close(fd_);
  pthread_sigmask(SIG_SETMASK, &before_, nullptr);
}

bool InterruptWatch::Requested() {
  signalfd_siginfo info;
  bool requested = false;
  while (fd_ >= 0 && ::read(fd_, &info, sizeof(info)) == sizeof(info)) requested = true;
  return requested;
}

bool WriteStdout(std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(STDOUT_FILENO, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return false;
    text.remove_prefix(static_cast<std::size_t>(written));
  }
  return true;
}

std::string FormatBytes(std::size_t bytes) {
  const auto value = static_cast<double>(bytes);
  if (bytes < 1000) return absl::StrFormat("%d B", bytes);
  if (value < 1e6) return absl::StrFormat("%.1f kB", value / 1e3);
  if (value < 1e9) return absl::StrFormat("%.1f MB", value / 1e6);
  return absl::StrFormat("%.2f GB", value / 1e9);
}

}  // namespace penstock::cli
