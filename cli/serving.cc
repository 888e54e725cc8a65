// SPDX-License-Identifier: Apache-2.0
#include "cli/serving.h"

#include <unistd.h>

#include <cstdio>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace penstock::cli {
namespace {

sigset_t EndSignals() {
  sigset_t signals;
  ::sigemptyset(&signals);
  ::sigaddset(&signals, SIGINT);
  ::sigaddset(&signals, SIGTERM);
  return signals;
}

}  // namespace

void BlockSignals() {
  const sigset_t signals = EndSignals();
  ::pthread_sigmask(SIG_BLOCK, &signals, nullptr);
}

int WaitForSignal() {
  const sigset_t signals = EndSignals();
  int signal = 0;
  ::sigwait(&signals, &signal);
  return signal;
}

bool WaitForSignalFor(Duration patience) {
  const sigset_t signals = EndSignals();
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(patience);
  const timespec limit = {.tv_sec = seconds.count(), .tv_nsec = (patience - seconds).count()};
  return ::sigtimedwait(&signals, nullptr, &limit) > 0;
}

void RaiseEnd() { ::kill(::getpid(), SIGTERM); }

absl::Status WriteReadyFile(const std::string& path, const nlohmann::ordered_json& ready) {
  if (path.empty()) return absl::OkStatus();
  const std::string part = path + ".part";
  std::ofstream(part) << ready.dump() << "\n";
  if (std::rename(part.c_str(), path.c_str()) == 0) return absl::OkStatus();
  return absl::PermissionDeniedError(absl::StrCat("cannot write ", path));
}

}  // namespace penstock::cli
