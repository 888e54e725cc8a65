// SPDX-License-Identifier: Apache-2.0
// Hours of traffic over a hundred workers in seconds: how a policy places what a trace asks.
//
// Real: the coordinator (admission, prefix index, policies, states of requests, membership), every
// event and action of each request, load reports of every worker each second.
// Modelled: a prefill worker computes one prompt after another, what it has not cached at a fixed
// rate; KV moves beside that at the link's rate, one layer's share of it after; a decode worker's
// step takes a fixed time and a little for each sequence, and steps are counted in one go between
// arrivals and ends; caches are LRU over whole blocks; each message takes `message_delay`.
// Not modelled: bytes, engines, tokens, contention on links, what a prompt computed on a decode
// worker costs its running answers, faults (cluster_sim.h has those).
//
// Deterministic; one thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/time.h"
#include "sim/trace.h"

namespace penstock::sim {

struct HourOptions {
  std::string policy = "cost";
  int prefills = 50;
  int decodes = 50;
  double prefill_tokens_per_s = 4000;
  double link_bytes_per_s = 5e9;
  std::uint64_t kv_bytes_per_token = 131072;  // 32 layers of 8 heads of 128, K and V, F16.
  double layers = 32;
  std::uint64_t blocks = 800;  // Of a worker's pool, of kTraceBlockTokens each.
  std::uint32_t sequences_max = 64;
  double step_seconds = 0.02;              // Of one sequence ...
  double step_seconds_per_other = 0.0005;  // ... and for each beside it.
  Duration message_delay = std::chrono::microseconds(200);
};

struct HourResult {
  std::size_t requests = 0;
  std::size_t answered = 0;
  std::size_t refused = 0;                // Of those a client gave up on.
  std::vector<double> ttft_seconds = {};  // Of those answered; ascending.
  std::uint64_t prompt_tokens = 0;
  std::uint64_t reused_tokens = 0;  // Of prompts, at the worker that computed the rest.
  std::uint64_t local = 0;          // Prompts that their decode worker computed.
  std::uint64_t decisions = 0;
  std::uint64_t events = 0;  // Of the simulation.
  // Prompt tokens computed by each prefill worker, answer tokens of each decode worker; ascending.
  std::vector<std::uint64_t> prefill_tokens = {};
  std::vector<std::uint64_t> decode_tokens = {};
  double simulated_seconds = 0;
};

// INVALID_ARGUMENT: no such policy, or no workers.
absl::StatusOr<HourResult> RunHour(const std::vector<TraceRequest>& trace,
                                   const HourOptions& options);

}  // namespace penstock::sim
