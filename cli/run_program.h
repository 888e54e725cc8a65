// SPDX-License-Identifier: Apache-2.0
// Runs another program and waits for it, without a shell.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"

namespace penstock::cli {

struct ProgramOptions {
  // Variables and values that the program gets besides or instead of ours.
  std::vector<std::pair<std::string, std::string>> environment;
  // Called some times a second while the program runs; false ends it. May be empty.
  std::function<bool()> watch;
};

// Runs arguments[0] (found in PATH) with nothing on its standard input. `output`: what it printed,
// stdout and stderr together, the last 16 KiB of it. UNAVAILABLE with the program's name when it
// cannot be run or ends with anything but 0; CANCELLED when `watch` ended it.
absl::Status RunProgram(const std::vector<std::string>& arguments, const ProgramOptions& options,
                        std::string* output);

}  // namespace penstock::cli
