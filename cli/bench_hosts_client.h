// SPDX-License-Identifier: Apache-2.0
// penstock bench scale --hosts: the same load for each worker, on clusters over more and more hosts.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "base/epoll_loop.h"
#include "cli/bench_run_client.h"
#include "cli/bench_scale.h"
#include "cli/flags.h"
#include "cli/terminal.h"

namespace penstock::cli {

struct HostScaleOptions {
  std::string file;   // The same path on every host, as this program's own.
  std::string hosts;  // "1,2,4"
  std::string on;     // "ssh {host}"
  ModelFlags device;
  BenchFlags bench;  // For each worker.
};

// For each count: starts `penstock up` on the first so many of the file's hosts, waits until every
// worker is ready and every pair verified, sends the load from here, and ends them again. Errors of
// the file and the flags; UNAVAILABLE with its last lines when a host's command ends too early;
// DEADLINE_EXCEEDED says what was missing; CANCELLED on Ctrl-C while waiting.
absl::StatusOr<ScaleReport> ScaleByHosts(const HostScaleOptions& options, EpollLoop& loop,
                                         InterruptWatch& interrupts);

}  // namespace penstock::cli
