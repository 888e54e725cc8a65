// SPDX-License-Identifier: Apache-2.0
// What every command that serves does: leaves signals to one thread, says where it is, and waits
// for its end.
#pragma once

#include <csignal>
#include <string>

#include "absl/status/status.h"
#include "base/time.h"
#include "nlohmann/json_fwd.hpp"

namespace penstock::cli {

// Before any thread is made, so that all of them leave SIGINT and SIGTERM to WaitForSignal.
void BlockSignals();
// The first of the two that came.
int WaitForSignal();
// Whether one came within `patience`.
bool WaitForSignalFor(Duration patience);
// As if SIGTERM had come; from any thread.
void RaiseEnd();

// Whoever waits for the file finds it whole. An empty path: none. PERMISSION_DENIED.
absl::Status WriteReadyFile(const std::string& path, const nlohmann::ordered_json& ready);

}  // namespace penstock::cli
