// SPDX-License-Identifier: Apache-2.0
// What penstock doctor asks of a running cluster: who is there, how fast its pairs are,
// and what its stores hold.
#pragma once

#include <cstdint>
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

struct RunningStore {
  struct Tier {
    std::string name = {};  // "host", ...
    std::uint64_t copies = 0;
    std::uint64_t bytes = 0;
    std::uint64_t bytes_max = 0;
    std::uint64_t hits = 0;
  };
  std::string name = {};
  std::string state = {};
  std::vector<Tier> tiers = {};
};

struct RunningCluster {
  std::string server;  // Who answered.
  std::set<std::string> workers;
  std::set<std::string> gateways;
  std::vector<RunningPair> pairs;  // By names.
  std::vector<RunningStore> stores;
};

// Asks the coordinator at `server`, "host:port"; where that stands by, the one that leads. Waits for
// two seconds each. UNAVAILABLE, DEADLINE_EXCEEDED: nobody answers; FAILED_PRECONDITION: nobody leads.
absl::StatusOr<RunningCluster> AskRunningCluster(const std::string& server);

}  // namespace penstock::cli
