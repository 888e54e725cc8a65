// SPDX-License-Identifier: Apache-2.0
// Which two workers serve a request, and why.
//
// A candidate is a decode worker and a prefill worker, or a decode worker that prefills for itself.
// Its cost is predicted seconds: until the first token, and a few that others lose by it.
//
//   prefill_wait  until the prefill worker has computed what it was given before
//   fetch         of the blocks that it gets from store nodes (reuse.h), of slow ones as beside
//                 computing them (base/fetch_pace.h); then it computes the rest
//   compute       of the tokens that it cannot reuse, at its measured rate
//   transfer      what is left of sending the KV that the decode worker lacks when compute ends:
//                 sending runs beside it, layer by layer, so at least one layer's share is left
//   decode_wait   until the decode worker can run one more sequence
//   decode_load   what its running answers lose by one more sequence
//   memory        the nearer its pool is to full, the nearer is preemption
//   disturbance   what its running answers, and those to come, lose while it prefills for itself:
//                 much, beyond a chunk or so, for which there are prefill workers
//
// What was decided is booked on the workers at once (worker.h), so the next decision sees it, and
// equal workers get equal shares; of costs that differ by less than `tie_seconds` and `tie_share`
// the worker that was chosen longest ago wins.
//
// Policies are owned by the coordinator's loop; not thread-safe; the same calls, the same choices.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "base/time.h"
#include "coordinator/reuse.h"
#include "coordinator/worker.h"

namespace penstock::coordinator {

struct CostTerms {
  double prefill_wait = 0;
  double fetch = 0;
  double compute = 0;
  double transfer = 0;
  double decode_wait = 0;
  double decode_load = 0;
  double memory = 0;
  double disturbance = 0;

  double first_token() const { return prefill_wait + fetch + compute + transfer + decode_wait; }
  double total() const { return first_token() + decode_load + memory + disturbance; }
};

struct Candidate {
  WorkerId prefill = kNoWorker;  // Equal to `decode`: it prefills for itself.
  WorkerId decode = kNoWorker;
  std::uint32_t prefill_reused_tokens = 0;
  std::uint32_t decode_reused_tokens = 0;
  std::uint32_t fetched_tokens = 0;  // By the prefill worker, behind those that it reuses.
  std::vector<Fetch> fetches = {};   // In order, without holes; of the chosen candidate alone.
  CostTerms terms = {};
  bool local() const { return prefill == decode; }
};

// One choice: the candidates that were compared at last, the chosen one first. Under `round-robin`
// and `least-loaded` the terms are computed all the same, to show what was passed over.
struct Decision {
  MonoTime at = {};
  std::vector<Candidate> candidates = {};
};

// Prefill and decode workers that get no request together.
using PairSet = absl::flat_hash_set<std::pair<WorkerId, WorkerId>>;

// What pairs measured, in bytes per second; none of one that did not.
using PairRates = absl::flat_hash_map<std::pair<WorkerId, WorkerId>, double>;

// What is to be placed.
struct Work {
  std::uint32_t prompt_tokens = 0;
  std::uint32_t block_tokens = 0;
  std::uint64_t blocks = 0;  // To be had at the decode worker, its answer included.
  std::uint64_t kv_bytes_per_token = 0;
  // Leading blocks that each worker can use, by id; may be shorter: 0 for the rest.
  std::span<const std::uint32_t> usable_blocks = {};
  std::span<const WorkerId> excluded = {};  // They refused this request.
  const PairSet* forbidden = nullptr;       // Null: none.
  const PairRates* rates = nullptr;         // Null: none. A pair is no faster than that.
  const ReuseSituation* reuse = nullptr;    // Null: no store node has any of it.
};

struct PolicyOptions {
  std::string name = "cost";  // "round-robin", "least-loaded", "cost".
  // Beyond these a worker gets no prompt: it waits here, where the choice is still open.
  std::uint32_t prefills_max = 32;
  double prefill_backlog_seconds = 2;
  double tie_seconds = 0.0002;
  double tie_share = 0.01;
  double layers = 24;            // A transfer's last layer cannot hide.
  double load_tokens = 8;        // Steps of a full batch that a full worker's next sequence costs.
  double memory_seconds = 0.05;  // At a half-full pool; doubles as the free half halves.
  double disturbance_share = 0.05;  // Of the prefill's time, for each answer there and one to come.
  // Of what takes longer than so many tokens. More than rates that nothing but a start has measured
  // may be off by, which is not what should bring a long prompt to a decode worker.
  double long_disturbance_share = 0.5;
  std::uint32_t long_tokens = 512;
  std::uint32_t shortlist = 8;  // Workers of each role that are compared in pairs.
  std::uint32_t candidates_kept = 8;
  ReuseOptions reuse = {};
};

class Policy {
 public:
  virtual ~Policy() = default;
  // "round-robin", "least-loaded", "cost"; nullptr for another name.
  static std::unique_ptr<Policy> Make(const PolicyOptions& options);
  // Workers of one model, in the order of their ids. No candidates: no two have room now.
  virtual Decision Choose(const Work& work, std::span<const Worker* const> prefills,
                          std::span<const Worker* const> decodes, MonoTime now) = 0;
};

// Could the work be placed at all, now? Much cheaper than Choose as long as few pairs are
// forbidden, and true exactly when that finds a candidate.
bool HasRoom(const Work& work, const PolicyOptions& options,
             std::span<const Worker* const> prefills, std::span<const Worker* const> decodes,
             MonoTime now);

}  // namespace penstock::coordinator
