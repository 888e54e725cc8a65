// SPDX-License-Identifier: Apache-2.0
#include "launch/log_printer.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace penstock::launch {
namespace {

// Cyan, green, yellow, blue, magenta and their bright kin; red is for errors.
constexpr int kColors[] = {36, 32, 33, 34, 35, 96, 92, 93, 94, 95};

}  // namespace

LogPrinter::LogPrinter(int fd, const std::vector<std::string>& names, bool colors)
    : fd_(fd), colors_(colors) {
  for (const std::string& name : names) {
    width_ = std::max(width_, name.size());
    order_.emplace(name, order_.size());
  }
}

std::string LogPrinter::Format(const std::string& name, std::string_view line) const {
  const std::string padding(width_ - std::min(width_, name.size()), ' ');
  const auto at = order_.find(name);
  if (!colors_ || at == order_.end()) {
    return absl::StrCat(name, padding, " | ", ToAbsl(line), "\n");
  }
  return absl::StrCat("\x1b[", kColors[at->second % std::size(kColors)], "m", name, padding,
                      " |\x1b[0m ", ToAbsl(line), "\n");
}

void LogPrinter::Print(const std::string& name, std::string_view line) {
  const std::string text = Format(name, line);
  for (std::size_t done = 0; done < text.size();) {
    const ssize_t wrote = ::write(fd_, text.data() + done, text.size() - done);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote < 0) return;
    done += static_cast<std::size_t>(wrote);
  }
}

}  // namespace penstock::launch
