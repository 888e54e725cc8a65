// SPDX-License-Identifier: Apache-2.0
// The coordinator: which workers serve a request, from its admission to its end, whoever fails in
// between. A state machine: what happened comes in as methods with `now`, what is to be done comes
// out as actions (actions.h). The states of a request are in request_state.h, costs in policy.h.
//
// All or nothing: the decode worker grants memory, then the prefill worker is started with the
// grant; if either refuses, dies or is silent, the other is released and the next best are tried,
// attempts_max times, under a new attempt number. After a loss in mid-answer the gateway is asked
// for another Route, with the tokens emitted so far. Whatever a worker reports of an attempt that
// is not live is ABORTED, and answered with a release.
//
// Bounded: requests_max live, queued_max of them waiting to be placed per model, ended_max
// remembered, and each of them ends by itself at its deadline. A request that cannot begin in time
// is refused at once with a hint when to come back.
//
// Models have workers, index and queue of their own. Store nodes serve all models: which copies
// they hold is in one index (store_index.h), and what a plan fetches from them in reuse.h.
//
// One thread owns it and calls everything on it. No I/O, clock, threads or chance inside: the same
// calls give the same actions.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/metrics.h"
#include "base/spans.h"
#include "base/time.h"
#include "coordinator/actions.h"
#include "coordinator/membership.h"
#include "coordinator/policy.h"
#include "coordinator/prefix_index.h"
#include "coordinator/replication.h"
#include "coordinator/request_state.h"
#include "coordinator/reuse.h"
#include "coordinator/store_index.h"
#include "coordinator/view.h"

namespace penstock::coordinator {

struct RouteQuery {
  std::string request = {};  // See Attempt.
  std::string gateway = {};  // Actions for it carry this name; at most 64 bytes.
  std::string model = {};
  std::vector<Chain> chains = {};   // Of full blocks, at most those of the prompt; first one first.
  std::uint32_t prompt_tokens = 0;  // At least 1. After a loss: with the tokens emitted.
  std::uint32_t output_tokens_max = 0;
  std::uint32_t tenant = 0;             // Passed on to the decode worker.
  std::int32_t priority = 0;            // Higher first.
  LossClass reuse = LossClass::kExact;  // Up to which blocks may be reused.
  // 0: the coordinator's own. From now.
  Duration first_token_within = {};
  Duration end_within = {};
  // 0: a new request, or the same once more. Else: attempt number so much was lost, a better one is
  // wanted. Unknown requests begin with the next number (this coordinator was restarted).
  std::uint32_t lost_attempt = 0;
};

struct RouteAnswer {
  // OK: it is queued or planned; actions tell the rest. INVALID_ARGUMENT: a field out of range.
  // ALREADY_EXISTS: another gateway's. NOT_FOUND: no such model. UNAVAILABLE: no worker is ready.
  // RESOURCE_EXHAUSTED: too much is waiting, or it could not begin in time. FAILED_PRECONDITION:
  // that request has ended.
  absl::Status status = {};
  Duration retry_after = {};  // Of RESOURCE_EXHAUSTED and UNAVAILABLE.
  RequestState state = RequestState::kEnded;
  std::uint32_t attempt = 0;  // The last one planned.
  Duration predicted_first_token = {};
};

// What a worker says of an attempt.
struct WorkerEvent {
  enum class Kind : std::uint8_t {
    kGranted,
    kAccepted,
    kComputed,
    kAdopted,
    kFinished,
    kRefused,  // Or gave it up: this worker holds nothing of it any more.
    kTransferFailed,
  };
  Kind kind = Kind::kGranted;
  Attempt id = {};
  std::uint64_t grant = 0;                 // Of kGranted.
  std::uint32_t decode_reused_tokens = 0;  // Of kGranted.
  absl::Status error = {};                 // Of kRefused, kTransferFailed and a failed kFinished.
};

// Why a request is where it is.
struct Explanation {
  struct Plan {
    std::uint32_t attempt = 0;
    std::string ended =
        {};  // Why this plan was left: "prefill refused: ..."; empty while it lives.
    Decision decision = {};
    std::vector<std::string> names = {};   // Prefill and decode worker of each candidate.
    std::vector<std::string> stores = {};  // Of each fetch of the first candidate.
    // Likewise: who answers can map it, raw as it lies in memory of its host, instead of copying it.
    std::vector<bool> mapped = {};
  };
  std::string request = {};
  std::string model = {};
  std::string policy = {};
  RequestState state = RequestState::kEnded;
  std::uint32_t prompt_tokens = 0;
  Duration waited = {};  // Queued, so far.
  absl::Status status = {};
  std::vector<Plan> plans = {};
};
std::string ToString(const Explanation& explanation);  // For people; several lines.

class Coordinator {
 public:
  struct Options {
    Membership::Options members = {};
    PrefixIndex::Options index = {};  // Of each model.
    StoreIndex::Options store_index = {};
    PolicyOptions policy = {};
    std::size_t requests_max = 65536;
    std::size_t queued_max = 4096;  // Of a model; requests that lost their worker come on top.
    std::size_t ended_max = 4096;
    std::uint32_t prompt_blocks_max = 65536;
    std::uint32_t attempts_max = 4;            // In a row without a new token.
    std::uint32_t output_tokens_booked = 256;  // Of an answer, at most: what it needs is not known.
    std::uint32_t overtaken_max = 64;          // By later requests that need less memory.
    Duration reserve_timeout = std::chrono::seconds(1);
    Duration start_timeout = std::chrono::seconds(1);
    Duration prefill_grace = std::chrono::seconds(5);  // Beyond 4 times what was predicted.
    Duration resume_timeout = std::chrono::seconds(10);
    Duration retry_pause = std::chrono::milliseconds(50);  // When all have refused; then doubled.
    Duration first_token_within = std::chrono::seconds(60);
    Duration end_within = std::chrono::minutes(10);
    Duration end_within_max = std::chrono::hours(24);
    // Whether a prefill and a decode worker get no request together before a preflight went well.
    bool verify_pairs = false;
    Replication::Options replication = {};
    Duration preflight_timeout = std::chrono::seconds(15);  // Then it is asked for again.
    Duration preflight_retry = std::chrono::seconds(5);     // After one that failed.
    SpanRing* spans = nullptr;  // Null: not traced. Outlives the coordinator.
  };

  // INVALID_ARGUMENT: no such policy.
  static absl::StatusOr<std::unique_ptr<Coordinator>> Make(const Options& options);
  ~Coordinator();

  // ---- Gateways.
  RouteAnswer Route(RouteQuery query, MonoTime now);
  // The client has gone, or has all it wants. Unknown and ended ones are ignored, and another
  // gateway's.
  void Cancel(const std::string& gateway, const std::string& request, MonoTime now);
  void Cancel(const std::string& request, MonoTime now);
  // Cancels all that it asked for.
  void GatewayGone(const std::string& gateway, MonoTime now);

  // ---- Workers. ABORTED: an ended life, or an attempt that is not live: drop it.
  // Errors of Membership::Check. A higher epoch ends the life before it. Store nodes, too: of a call
  // that they have no part in, INVALID_ARGUMENT.
  absl::Status Register(const Registration& registration, MonoTime now);
  // What Register would say.
  absl::Status CheckRegistration(const Registration& registration) const {
    return members_.Check(registration);
  }
  // An earlier coordinator, or the store, knows that this life and those before it have ended.
  void Restore(const WorkerRef& ended, MonoTime now);
  // Renews the session. `live`: what the worker has of requests; a request twice missing there is
  // taken as lost, and one that has ended here is released.
  absl::Status Report(const WorkerRef& ref, const LoadReport& load, std::span<const Attempt> live,
                      MonoTime now);
  absl::Status Blocks(const WorkerRef& ref, std::uint64_t first, std::span<const BlockEvent> events,
                      MonoTime now);
  // Of a store node, as Blocks.
  absl::Status Copies(const WorkerRef& ref, std::uint64_t first, std::span<const CopyEvent> events,
                      MonoTime now);
  absl::Status On(const WorkerRef& ref, const WorkerEvent& event, MonoTime now);
  // No new requests for it; what it still runs after `move_after` moves to others.
  absl::Status Drain(const WorkerRef& ref, Duration move_after, MonoTime now);
  absl::Status Leave(const WorkerRef& ref, MonoTime now);
  // Nobody reaches it: nothing new for it until its next report. Its session goes on to its end.
  // Unknown ones are ignored.
  void Disconnected(const WorkerRef& ref, MonoTime now);
  // What came of a PreflightAction; `decode_epoch` is the decode worker's transfer epoch.
  absl::Status Preflighted(const WorkerRef& prefill, const std::string& decode,
                           std::uint64_t decode_epoch, const PairReport& report, MonoTime now);

  // ---- Time. To be called at NextDeadline() or later, and after every call that may have changed
  // it; one call does a bounded amount and leaves the rest, due at once, for the next.
  void Tick(MonoTime now);
  MonoTime NextDeadline() const;

  // What is to be done since the last call, in order.
  std::vector<Action> TakeActions() { return std::exchange(actions_, {}); }

  // NOT_FOUND: never known, or ended too long ago.
  absl::StatusOr<Explanation> Explain(const std::string& request) const;
  // At least one decode worker of it could take a request; with verify_pairs, and a prefill worker
  // known, also one pair has been verified. A prefill worker that joins decode workers which answer
  // alone does not stop them.
  bool Ready(const std::string& model) const;
  std::vector<ModelView> Models() const;    // By name.
  std::vector<WorkerView> Workers() const;  // Without store nodes.
  std::vector<StoreView> Stores() const;    // By number.
  std::vector<PairView> Pairs() const;
  // Grows when what Models() says may have changed.
  std::uint64_t models_version() const { return models_version_; }
  absl::StatusOr<WorkerRef> FindWorker(const std::string& name) const;  // NOT_FOUND.

  struct Stats {
    std::size_t requests = 0;
    std::size_t queued = 0;
    std::size_t workers = 0;
    std::uint64_t admitted = 0;
    std::uint64_t refused = 0;
    std::uint64_t finished = 0;  // With OK.
    std::uint64_t failed = 0;    // Otherwise; cancelled ones too.
    std::uint64_t plans = 0;
    std::uint64_t stale = 0;           // Messages of attempts that were not live.
    std::size_t index_blocks = 0;      // That the prefix indexes list.
    std::size_t degraded_workers = 0;  // Whose blocks are known in part, until their snapshot.
    std::size_t store_blocks = 0;      // That the index of store nodes lists; of one group each.
    std::size_t store_copies = 0;      // Of those blocks.
    std::size_t degraded_stores = 0;
    // Full blocks of planned prompts, by where they were to come from: the prefill worker's pool,
    // a tier of a store node, or nowhere: they were to be computed.
    std::array<std::uint64_t, kTiers> planned_blocks = {};
    std::uint64_t prefetched_blocks = 0;  // Of groups, as waiting requests will want them.
    std::uint64_t replicated_blocks = 0;  // Of groups; that were asked for.
    std::uint64_t planned_compute_blocks = 0;
    // Booked on workers by requests; all zero at rest.
    std::uint64_t booked_prefills = 0;
    std::uint64_t booked_sequences = 0;
    std::uint64_t booked_blocks = 0;
    std::uint64_t booked_bytes = 0;
    std::uint64_t booked_fetch_bytes = 0;
  };
  Stats stats() const;
  const Histogram& queue_wait() const { return queue_wait_; }  // Seconds, of each plan.

 private:
  enum class Serial : std::uint64_t {};  // Of a request, in order of arrival.
  struct Request;
  struct Ended;
  struct Pool;
  struct Pair;
  using PairId = std::pair<WorkerId, WorkerId>;  // Prefill, decode.

  explicit Coordinator(const Options& options);

  // Gateways.
  absl::Status CheckQuery(const RouteQuery& query) const;
  RouteAnswer Admit(RouteQuery query, MonoTime now);
  RouteAnswer Resume(Request& request, RouteQuery query, MonoTime now);
  RouteAnswer AnswerOf(const Request& request) const;
  void Repeat(const Request& request, MonoTime now);
  RouteAnswer Refuse(absl::Status status, Duration retry_after);
  static void SetPrompt(Request& request, RouteQuery query);
  double QueueSeconds(const Pool& pool, const Work& work) const;

  // Transitions. Apply may destroy the request.
  void Apply(Request& request, RequestEvent event, absl::Status why, MonoTime now);
  void TraceAnswer(const Request& request, RequestEvent event, MonoTime now) const;
  void DoReserve(Request& request, MonoTime now);
  void DoStart(Request& request, MonoTime now);
  static std::optional<Chain> LastChainToCompute(const Request& request);
  void TellPlan(const Request& request, MonoTime now);
  void DoRetry(Request& request, RequestEvent event, const absl::Status& why, MonoTime now);
  void DoEnd(Request& request, RequestEvent event, absl::Status why, MonoTime now);
  void LeavePlan(Request& request, std::string_view reason, const absl::Status& why,
                 RequestEvent event, MonoTime now);
  void LeavePrefill(Request& request);
  void LetGo(const Request& request, WorkerId id);
  void SetAlarm(Request& request);
  void Ring(Request& request, MonoTime now);

  // Planning.
  void Pump(Pool& pool, MonoTime now);
  bool PumpOne(Pool& pool, Request& request, MonoTime now);
  Decision Decide(Pool& pool, const Request& request, MonoTime now);
  void Carry(Request& request, Decision decision, MonoTime now);
  Work WorkOf(const Pool& pool, const Request& request) const;
  void Enqueue(Request& request, MonoTime now);
  void Dequeue(Request& request);
  void CountBlocks(const Request& request, const Candidate& candidate);
  void Book(Request& request, const Candidate& candidate, MonoTime now);
  void UnbookPrefill(Request& request, MonoTime now);
  void BookFetches(Request& request, const Candidate& candidate, MonoTime now);
  void UnbookFetches(Request& request, std::size_t from);  // Those from number `from` on.
  void UnbookTransfer(Request& request);
  void UnbookDecode(Request& request, MonoTime now);

  // Workers.
  void EndWorker(WorkerId id, const absl::Status& why, MonoTime now);
  void MoveRequests(WorkerId id, const absl::Status& why, MonoTime now);
  void CheckDrained(WorkerId id);
  Pool* PoolOf(WorkerId id);  // Null: a store node.
  // Store nodes.
  absl::Status AddStore(WorkerId id);
  void ReportStore(Worker& store);
  const char* StateOf(const Worker& worker) const;
  // Whose blocks go to which store node: one of the worker's host, or else that which keeps for the
  // fewest. One that it has stays its own until it ends or drains, or one of its host comes.
  void AssignStores();
  void AssignStore(Worker& worker, bool tell_again);
  void RemoveStore(WorkerId id);
  void TakeFetchRates(Pool& pool, Worker& worker);
  const Reuse* FindReuse(const Pool& pool, const Request& request);  // Null: nothing to fetch.
  void Prefetch(const Pool& pool, const Request& request, MonoTime now);
  std::vector<FetchSource> SourcesOf(const Request& request) const;
  // Asks for another holder of what `fetch` brings, where its node is hot.
  void Replicate(const Request& request, const Fetch& fetch, MonoTime now);
  WorkerId ReplicaNode(const Request& request, const Fetch& fetch, const CopyName& name,
                       std::uint64_t bytes, MonoTime now);
  std::size_t AskForCopies(const Request& request, const Fetch& fetch, WorkerId to,
                           Replication::Range range);
  void LookUp(const Pool& pool, const Request& request);
  std::vector<FetchSource> DecodeSourcesOf(const Request& request) const;
  // Pairs.
  void AddPairs(Pool& pool, WorkerId id, MonoTime now);
  void RemovePairs(Pool& pool, WorkerId id);
  void AskPairs(Pool& pool, WorkerId prefill, MonoTime now);  // Those that are not verified.
  void AskPair(PairId id, Pair& pair, MonoTime now);
  void AskAt(PairId id, Pair& pair, MonoTime when);
  void TakeRate(Pool& pool, PairId id, double bytes_per_s);
  absl::Status CheckReady(const Pool& pool) const;
  bool IsLive(const Request& request, WorkerId id, std::uint32_t attempt) const;
  void ReleaseStale(WorkerId id, const Attempt& attempt);
  void Compare(WorkerId id, std::span<const Attempt> live, MonoTime now);
  Request* Find(const std::string& id);
  const Request* Find(const std::string& id) const;
  Peer PeerOf(WorkerId id) const;
  Explanation ExplainLive(const Request& request) const;

  const Options options_;
  Membership members_;
  StoreIndex store_index_;
  Replication replication_;
  StoreNodes stores_;  // Null: no store node, or none of that number.
  MonoTime sweep_at_ = MonoTime::min();
  std::map<std::string, std::unique_ptr<Pool>> pools_;
  absl::flat_hash_map<Serial, std::unique_ptr<Request>> requests_;
  absl::flat_hash_map<std::string, Serial> by_id_;
  std::set<std::pair<MonoTime, Serial>> alarms_;
  std::vector<std::set<Serial>> worker_requests_;          // By WorkerId.
  std::set<std::pair<MonoTime, WorkerId>> moves_;          // Draining workers, until they move.
  std::set<std::pair<MonoTime, PairId>> asks_;             // Preflights that are due.
  absl::flat_hash_map<std::string, std::uint64_t> ended_;  // Request -> number in ended_list_.
  std::map<std::uint64_t, Ended> ended_list_;
  std::uint64_t ended_next_ = 0;
  std::uint64_t serial_next_ = 0;
  std::uint64_t decisions_ = 0;
  std::uint64_t models_version_ = 1;
  Stats stats_;
  Histogram queue_wait_{LatencyBounds()};
  std::vector<Action> actions_;
  // Scratch of Decide.
  std::vector<std::uint32_t> usable_;
  std::vector<CopyName> names_;
  std::vector<StoreIndex::Found> found_;
  Reuse reuse_;
};

}  // namespace penstock::coordinator
