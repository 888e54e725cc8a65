// SPDX-License-Identifier: Apache-2.0
// One child process that cannot outlive us.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/unique_fd.h"

namespace penstock::launch {

struct Child {
  pid_t pid = -1;   // Also its process group's.
  UniqueFd pidfd;   // Readable once it has ended; it stays a zombie until it is waited for.
  UniqueFd output;  // Non-blocking: its stdout and stderr.
};

// Runs arguments[0], a path or a name that is found in PATH, in a process group of its own, so that a
// terminal's Ctrl-C is ours alone; with `input` as its standard input (-1: nothing), no signal blocked or ignored, and on `cpus` where
// there are any. The kernel kills it when the thread that called this ends, in whatever way: so
// call it on one that lives as long as the program. UNAVAILABLE: it could not be started, naming
// the program; INVALID_ARGUMENT: none of the CPUs can be used here.
absl::StatusOr<Child> Spawn(const std::vector<std::string>& arguments, const std::vector<int>& cpus,
                            int input = -1);

}  // namespace penstock::launch
