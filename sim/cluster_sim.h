// SPDX-License-Identifier: Apache-2.0
// A whole cluster under a virtual clock: clients, gateways, the coordinator, prefill and decode
// workers, in half of the runs store nodes, the network between them, and faults, all drawn from one
// seed, which replays the run.
//
// Real: the coordinator, the gateways' relays, the workers' states, handoffs between them (bytes,
// checksums, plans between unlike page sizes). Simulated: engines (they take time, fill memory with
// hashes and answer with them), what is fetched (it takes time), links, streams, processes, and the
// thin parts that are gRPC's.
//
// After a run: every request has ended once, whole or with a clear status; no token was lost,
// repeated or wrong; and soon after the last request and the last fault nobody holds or books
// anything: at once where nothing was lost on its way, else when the last hold has ended. In half
// of the runs all clients leave in the same moment. Failures are GoogleTest's.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "base/time.h"
#include "transfer/fault_link.h"

namespace penstock::sim {

// Probabilities are of an event between two requests, or of one message.
struct ClusterFaults {
  transfer::FaultPlan link = {};
  double refuse = 0;         // Of engines.
  double slow_messages = 0;  // Of streams.
  double break_stream = 0;
  double kill_worker = 0;
  double kill_coordinator = 0;
  double kill_gateway = 0;
  double stop_process = 0;  // As SIGSTOP, for up to 3 s.
  double drain_worker = 0;
  double client_leaves = 0;
  double slow_reader = 0;
};
// A different mix for every seed; none at all in some.
ClusterFaults FaultsOf(std::uint32_t seed);

struct ClusterResult {
  int requests = 0;
  int answered = 0;        // OK, with every token.
  int resumed = 0;         // Of those, on more than one attempt.
  int fetches = 0;         // Sources that gave blocks.
  std::uint64_t hash = 0;  // Of all that clients saw, and when: equal for equal runs.
  // From when the last request had ended, and the last fault, until nobody held anything.
  Duration rest = {};
};

// `log` hears of every event in a line, unless it is null.
ClusterResult RunCluster(std::uint32_t seed, const ClusterFaults& faults,
                         const std::function<void(const std::string&)>& log);

}  // namespace penstock::sim
