// SPDX-License-Identifier: Apache-2.0
// One run of a benchmark against a cluster that serves.
#pragma once

#include <cstdint>
#include <string>

#include "CLI/App.hpp"
#include "absl/status/statusor.h"
#include "base/epoll_loop.h"
#include "cli/bench_report.h"
#include "cli/bench_target_client.h"
#include "cli/terminal.h"

namespace penstock::cli {

// What is sent, and how it is judged.
struct BenchFlags {
  std::string model;
  std::int32_t requests = 100;
  std::int32_t concurrency = 8;
  double rate = 0;
  std::string trace;
  double speedup = 1;
  std::size_t limit = 0;
  std::string prompt = "512";
  std::string output = "64";
  std::int32_t prefix_tokens = 0;
  std::int32_t prefixes = 1;
  std::int32_t prompt_max = 0;
  std::int32_t output_max = 0;
  std::uint64_t seed = 1;
  double send_for_s = 0;
  double timeout_s = 600;
  double temperature = 0;
  std::int32_t vocab = 256;
  Slo slo;
};
void AddBenchFlags(CLI::App& command, BenchFlags& flags);

// The requests that the flags mean. INVALID_ARGUMENT naming the flag, or the line of the trace.
absl::StatusOr<std::vector<BenchRequest>> MakeRequests(const BenchFlags& flags);

// Sends `requests` to the gateway at `server` and waits for their ends; Ctrl-C ends it early, and
// what was measured still counts. Not from the loop's thread. Errors of FindBenchModel.
absl::StatusOr<BenchReport> RunBench(const std::string& server, const BenchFlags& flags,
                                     std::vector<BenchRequest> requests, EpollLoop& loop,
                                     InterruptWatch& interrupts);

// PERMISSION_DENIED naming the file.
absl::Status WriteWholeFile(const std::string& path, const std::string& text);

}  // namespace penstock::cli
