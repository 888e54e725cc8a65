// SPDX-License-Identifier: Apache-2.0
// What the files of the coordinator share; included by them alone.
#pragma once

#include <deque>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "coordinator/coordinator.h"

namespace penstock::coordinator {

// Higher priority first, then order of arrival.
using QueueKey = std::tuple<std::int64_t, std::uint64_t>;

struct Coordinator::Request {
  Serial serial{};
  std::string id;
  std::string gateway;
  Pool* pool = nullptr;
  RequestState state = RequestState::kQueued;

  ChainList chains;
  std::uint32_t tenant = 0;
  std::uint32_t prompt_tokens = 0;
  std::uint32_t output_tokens_max = 0;
  std::int32_t priority = 0;
  LossClass reuse = LossClass::kExact;
  bool prefetched = false;  // Its copies are on their way to memory, as it waits.
  MonoTime arrived{};
  Duration waited{};  // Queued, before `waited_since`.
  MonoTime waited_since{};
  MonoTime asked{};                 // The worker whose answer is awaited; for traces.
  std::uint64_t queued_tokens = 0;  // As they are counted in the pool.
  MonoTime first_token_by{};
  MonoTime end_by{};

  std::uint32_t attempt = 0;  // The last one planned.
  std::uint32_t tries = 0;    // Attempts without a new token.
  MonoTime booked_at{};
  WorkerId prefill = kNoWorker;
  WorkerId decode = kNoWorker;
  std::uint64_t grant = 0;
  std::uint32_t decode_reused_tokens = 0;
  std::vector<WorkerId> excluded;
  std::vector<Explanation::Plan> plans;

  MonoTime state_end = MonoTime::max();
  MonoTime hold_end{};                    // Of the live attempt, until it is adopted.
  MonoTime not_before = MonoTime::min();  // All have refused: a pause.
  MonoTime alarm = MonoTime::max();       // As it is in alarms_.
  std::uint32_t overtaken = 0;
  std::uint32_t missed_reports = 0;
  RequestState timed_out_at = RequestState::kQueued;

  // What is booked on the workers for the live attempt.
  bool prefill_booked = false;
  bool transfer_booked = false;
  bool decode_booked = false;
  std::uint64_t booked_tokens = 0;
  std::uint64_t booked_bytes = 0;
  std::uint64_t booked_blocks = 0;
  std::vector<Fetch> fetches;  // Of the live attempt, until the prefill is computed.

  QueueKey queue_key() const {
    return {-static_cast<std::int64_t>(priority), static_cast<std::uint64_t>(serial)};
  }
};

struct Coordinator::Ended {
  Explanation explanation;
  std::uint32_t attempt = 0;
};

// A prefill and a decode worker of one model; only with verify_pairs.
struct Coordinator::Pair {
  PairReport report;                  // The last one; UNAVAILABLE before the first.
  MonoTime ask_at = MonoTime::max();  // As it is in asks_.
};

struct Coordinator::Pool {
  Pool(std::string name, const Options& options)
      : model(std::move(name)), index(options.index), policy(Policy::Make(options.policy)) {}

  const std::string model;
  PrefixIndex index;
  std::unique_ptr<Policy> policy;
  std::uint32_t block_tokens = 0;
  std::uint64_t kv_bytes_per_token = 0;
  std::vector<const Worker*> prefills;  // By id; whatever their state.
  std::vector<const Worker*> decodes;
  std::map<PairId, Pair> pairs;
  PairSet forbidden;       // Of those, the ones not verified.
  PairRates rates;         // Of those, the ones that measured.
  bool prefilled = false;  // One has registered, ever, while no decode worker answered alone.
  bool paired = false;     // A pair was verified, ever.
  std::set<std::pair<QueueKey, Serial>> queue;
  std::uint64_t queued_tokens = 0;
  std::size_t requests = 0;  // Live ones.
  MonoTime used_at{};
  MonoTime pump_at = MonoTime::min();  // Room comes with time alone, too.
  std::vector<StoredGroup> groups;     // Of its workers; none: no blocks in stores.
  std::vector<CodecLoss> codecs;       // Likewise.
  FetchMeans fetch_means;
  double hold_seconds = 1.0;  // Of a sequence at its decode worker; a moving mean.
};

inline absl::Status NoWorker(const WorkerRef& ref) {
  return absl::InvalidArgumentError(
      absl::StrCat("'", ref.name, "' is a store node and has no part in requests"));
}

// Of a request; older ones are forgotten.
inline constexpr std::size_t kPlansKept = 16;

inline PrefixIndex::Worker IndexOf32(WorkerId id) { return static_cast<PrefixIndex::Worker>(id); }
inline MonoTime After(MonoTime now, Duration d) {
  return now > MonoTime::max() - d ? MonoTime::max() : now + d;
}

}  // namespace penstock::coordinator
