// SPDX-License-Identifier: Apache-2.0
// What penstock doctor asks of a running cluster: who is there, and how fast its pairs are.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/time.h"

namespace penstock::cli {

struct RunningPair {
  std::string prefill = {};
  std::string decode = {};
  absl::Status status = {};  // Not OK: it is not used, and why.
  std::string transport = {};
  double bytes_per_s = 0;  // 0: not measured, as round_trip.
  Duration round_trip = {};
};

struct RunningCluster {
  std::string server;  // Who answered.
  std::set<std::string> workers;
  std::set<std::string> gateways;
  std::vector<RunningPair> pairs;  // By names.
};

// Asks the coordinator at `server`, "host:port"; where that stands by, the one that leads. Waits for
// two seconds each. UNAVAILABLE, DEADLINE_EXCEEDED: nobody answers; FAILED_PRECONDITION: nobody leads.
absl::StatusOr<RunningCluster> AskRunningCluster(const std::string& server);

}  // namespace penstock::cli
