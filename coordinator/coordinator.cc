// SPDX-License-Identifier: Apache-2.0
// Making one, time, and what can be asked of it.
#include "coordinator/coordinator.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/fetch_pace.h"
#include "base/status.h"
#include "coordinator/coordinator_impl.h"

namespace penstock::coordinator {
namespace {

// Of one Tick; the rest is due at once.
constexpr int kSessionsPerTick = 4;
constexpr int kAlarmsPerTick = 256;
constexpr int kAsksPerTick = 64;
// Of what is left of ended store nodes, a part.
constexpr Duration kSweepEvery = std::chrono::milliseconds(5);
// A model that has lost its last worker: whoever asks for it meanwhile may come again.
constexpr Duration kModelKept = std::chrono::minutes(10);

std::string Seconds(double seconds) {
  return seconds < 1 ? absl::StrFormat("%.1f ms", seconds * 1e3)
                     : absl::StrFormat("%.1f s", seconds);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Coordinator>> Coordinator::Make(const Options& options) {
  if (Policy::Make(options.policy) == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(
        "policy must be cost, least-loaded or round-robin, got '", options.policy.name, "'"));
  }
  return std::unique_ptr<Coordinator>(new Coordinator(options));
}

Coordinator::Coordinator(const Options& options)
    : options_(options),
      members_(options.members),
      store_index_(options.store_index),
      replication_(options.replication) {}
Coordinator::~Coordinator() = default;

void Coordinator::Tick(MonoTime now) {
  for (int i = 0; i < kSessionsPerTick; ++i) {
    const WorkerId id = members_.FirstExpired(now);
    if (id == kNoWorker) break;
    EndWorker(id, absl::UnavailableError("the worker's session has expired"), now);
  }
  for (int i = 0; i < kSessionsPerTick && !moves_.empty() && moves_.begin()->first <= now; ++i) {
    const WorkerId id = moves_.begin()->second;
    moves_.erase(moves_.begin());
    MoveRequests(id, absl::UnavailableError("the worker drains"), now);
  }
  for (int i = 0; i < kAlarmsPerTick && !alarms_.empty() && alarms_.begin()->first <= now; ++i) {
    Ring(*requests_.at(alarms_.begin()->second), now);
  }
  for (int i = 0; i < kAsksPerTick && !asks_.empty() && asks_.begin()->first <= now; ++i) {
    const PairId id = asks_.begin()->second;
    AskPair(id, pools_.at(members_.at(id.first).info.model)->pairs.at(id), now);
  }
  store_index_.Sweep();
  sweep_at_ = After(now, kSweepEvery);
  for (auto at = pools_.begin(); at != pools_.end();) {
    Pool& pool = *at->second;
    pool.index.Sweep();
    Pump(pool, now);
    if (pool.requests > 0 || !pool.prefills.empty() || !pool.decodes.empty()) pool.used_at = now;
    if (pool.used_at + kModelKept < now) {
      at = pools_.erase(at);
      ++models_version_;
    } else {
      ++at;
    }
  }
}

// Some deadline of the request has come.
void Coordinator::Ring(Request& request, MonoTime now) {
  if (request.end_by <= now) {
    Apply(request, RequestEvent::kExpired,
          absl::DeadlineExceededError(
              absl::StrCat("request took longer than ", ToSeconds(now - request.arrived), " s")),
          now);
  } else if (request.state_end <= now) {
    request.timed_out_at = request.state;
    const std::string what =
        absl::StrCat("nothing came in time while ", ToAbsl(ToString(request.state)));
    Apply(request, RequestEvent::kTimedOut,
          request.state == RequestState::kQueued ? absl::ResourceExhaustedError(what)
                                                 : absl::UnavailableError(what),
          now);
  } else {
    request.not_before = MonoTime::min();
    SetAlarm(request);
  }
}

MonoTime Coordinator::NextDeadline() const {
  MonoTime next = members_.NextExpiry();
  if (!alarms_.empty()) next = std::min(next, alarms_.begin()->first);
  if (!moves_.empty()) next = std::min(next, moves_.begin()->first);
  if (!asks_.empty()) next = std::min(next, asks_.begin()->first);
  if (!store_index_.swept()) next = std::min(next, sweep_at_);
  for (const auto& [name, pool] : pools_) {
    if (!pool->queue.empty()) next = std::min(next, pool->pump_at);
    if (!pool->index.swept()) next = std::min(next, pool->pump_at);
  }
  return next;
}

Coordinator::Stats Coordinator::stats() const {
  Stats stats = stats_;
  stats.requests = requests_.size();
  stats.workers = members_.live();
  for (const auto& [name, pool] : pools_) {
    stats.queued += pool->queue.size();
    stats.index_blocks += pool->index.blocks();
    stats.degraded_workers += pool->index.degraded();
  }
  stats.store_blocks = store_index_.blocks();
  for (const Worker* store : stores_) {
    if (store != nullptr) stats.store_copies += store_index_.copies_of(IndexOf32(store->id));
  }
  stats.degraded_stores = store_index_.degraded();
  return stats;
}

Coordinator::Request* Coordinator::Find(const std::string& id) {
  return const_cast<Request*>(std::as_const(*this).Find(id));
}

const Coordinator::Request* Coordinator::Find(const std::string& id) const {
  const auto found = by_id_.find(id);
  return found == by_id_.end() ? nullptr : requests_.at(found->second).get();
}

Explanation Coordinator::ExplainLive(const Request& request) const {
  return {.request = request.id,
          .model = request.pool->model,
          .policy = options_.policy.name,
          .state = request.state,
          .prompt_tokens = request.prompt_tokens,
          .waited = request.waited,
          .plans = request.plans};
}

absl::StatusOr<Explanation> Coordinator::Explain(const std::string& id) const {
  if (const Request* const request = Find(id)) return ExplainLive(*request);
  if (const auto found = ended_.find(id); found != ended_.end()) {
    return ended_list_.at(found->second).explanation;
  }
  return absl::NotFoundError(
      absl::StrCat("request '", id.substr(0, 64), "' is not known, or ended too long ago"));
}

std::string ToString(const Explanation& e) {
  std::string text = absl::StrFormat(
      "request %s, model %s, policy %s: %s, %d prompt tokens, queued %.1f ms\n", e.request, e.model,
      e.policy, ToAbsl(ToString(e.state)), e.prompt_tokens, ToMillis(e.waited));
  if (e.state == RequestState::kEnded) absl::StrAppend(&text, e.status.ToString(), "\n");
  for (const Explanation::Plan& plan : e.plans) {
    absl::StrAppend(&text, "attempt ", plan.attempt,
                    plan.ended.empty() ? "" : absl::StrCat(" (", plan.ended, ")"), "\n");
    text +=
        "   cost s    wait   fetch compute transfer d.wait d.load memory disturb  reused p/d  "
        "workers\n";
    for (std::size_t i = 0; i < plan.decision.candidates.size(); ++i) {
      const Candidate& c = plan.decision.candidates[i];
      const CostTerms& t = c.terms;
      absl::StrAppendFormat(&text,
                            "%s%8.4f %7.4f %7.4f %7.4f %8.4f %6.4f %6.4f %6.4f %7.4f %6d/%-6d %s\n",
                            i == 0 ? "* " : "  ", t.total(), t.prefill_wait, t.fetch, t.compute,
                            t.transfer, t.decode_wait, t.decode_load, t.memory, t.disturbance,
                            c.prefill_reused_tokens, c.decode_reused_tokens, plan.names[i]);
    }
    FetchPace pace;
    for (std::size_t i = 0; i < plan.stores.size(); ++i) {
      const Fetch& fetch = plan.decision.candidates[0].fetches[i];
      const std::string codec = CodecName(fetch.codec);
      absl::StrAppendFormat(
          &text, "  blocks %d..%d from %s %s%s%s%s%s: %s, computing them %s\n", fetch.first,
          fetch.end - 1, plan.stores[i], ToAbsl(ToString(fetch.tier)), codec.empty() ? "" : " ",
          codec,
          fetch.loss == LossClass::kExact ? ""
                                          : absl::StrCat(" (", ToAbsl(ToString(fetch.loss)), ")"),
          plan.mapped[i] ? " mapped" : "", Seconds(fetch.seconds), Seconds(fetch.compute_seconds));
      pace.fetch += fetch.seconds;
      pace.compute += fetch.compute_seconds;
    }
    if (pace.beside()) {
      absl::StrAppend(&text, "  the first of these are computed while the last ones come: ",
                      Seconds(pace.together()), " for all\n");
    }
  }
  return text;
}

}  // namespace penstock::coordinator
