// SPDX-License-Identifier: Apache-2.0
// Which prefill worker can move KV to which decode worker, and what is shown of workers and models.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "coordinator/coordinator_impl.h"

namespace penstock::coordinator {

void Coordinator::AddPairs(Pool& pool, WorkerId id, MonoTime now) {
  const bool prefills = members_.at(id).info.role == Role::kPrefill;
  // Decode workers that answer alone go on while the first prefill worker is still being tried.
  pool.prefilled |= prefills && !CheckReady(pool).ok();
  if (!options_.verify_pairs) return;
  for (const Worker* other : prefills ? pool.decodes : pool.prefills) {
    const PairId pair = prefills ? PairId(id, other->id) : PairId(other->id, id);
    pool.forbidden.insert(pair);
    AskPair(pair, pool.pairs[pair], now);
  }
}

void Coordinator::RemovePairs(Pool& pool, WorkerId id) {
  std::erase_if(pool.pairs, [&](const auto& entry) {
    const auto& [pair, state] = entry;
    if (pair.first != id && pair.second != id) return false;
    asks_.erase({state.ask_at, pair});
    pool.forbidden.erase(pair);
    pool.rates.erase(pair);
    return true;
  });
}

void Coordinator::AskPairs(Pool& pool, WorkerId prefill, MonoTime now) {
  for (auto at = pool.pairs.lower_bound({prefill, WorkerId{0}});
       at != pool.pairs.end() && at->first.first == prefill; ++at) {
    if (!at->second.report.status.ok()) AskPair(at->first, at->second, now);
  }
}

void Coordinator::AskPair(PairId id, Pair& pair, MonoTime now) {
  actions_.emplace_back(PreflightAction{PeerOf(id.first), PeerOf(id.second)});
  AskAt(id, pair, After(now, options_.preflight_timeout));
}

void Coordinator::AskAt(PairId id, Pair& pair, MonoTime when) {
  asks_.erase({pair.ask_at, id});
  pair.ask_at = when;
  if (when != MonoTime::max()) asks_.emplace(when, id);
}

absl::Status Coordinator::Preflighted(const WorkerRef& prefill, const std::string& decode,
                                      std::uint64_t decode_epoch, const PairReport& report,
                                      MonoTime now) {
  ASSIGN_OR_RETURN(const WorkerId from, members_.Resolve(prefill));
  const WorkerId to = members_.Find(decode);
  if (PoolOf(from) == nullptr) return NoWorker(prefill);
  Pool& pool = *PoolOf(from);
  const PairId id(from, to);
  const auto pair = to == kNoWorker ? pool.pairs.end() : pool.pairs.find(id);
  if (pair == pool.pairs.end() || members_.at(to).info.transfer_epoch != decode_epoch) {
    return absl::AbortedError(absl::StrCat("'", decode.substr(0, 64), "' in transfer epoch ",
                                           decode_epoch, " is not a decode worker for '",
                                           prefill.name, "'"));
  }
  pair->second.report = report;
  ++models_version_;
  if (report.status.ok()) {
    pool.forbidden.erase(id);
    pool.paired = true;
    if (report.bytes_per_s > 0) TakeRate(pool, id, report.bytes_per_s);
    AskAt(id, pair->second, MonoTime::max());
  } else {
    pool.forbidden.insert(id);
    // Unlike workers stay unlike.
    const bool final = report.status.code() == absl::StatusCode::kFailedPrecondition;
    AskAt(id, pair->second, final ? MonoTime::max() : After(now, options_.preflight_retry));
  }
  Pump(pool, now);
  return absl::OkStatus();
}

// Workers' links are as fast as the best of their pairs, until they have metered requests.
void Coordinator::TakeRate(Pool& pool, PairId id, double bytes_per_s) {
  pool.rates[id] = bytes_per_s;
  for (const WorkerId end : {id.first, id.second}) {
    Worker& worker = members_.at(end);
    if (worker.load.link_bytes_per_s > 0) continue;
    worker.pair_bytes_per_s = std::max(worker.pair_bytes_per_s, bytes_per_s);
    worker.link_bytes_per_s = worker.pair_bytes_per_s;
  }
}

absl::Status Coordinator::CheckReady(const Pool& pool) const {
  if (std::none_of(pool.decodes.begin(), pool.decodes.end(),
                   [](const Worker* w) { return w->usable(); })) {
    return absl::UnavailableError(
        absl::StrCat("no decode worker of model '", pool.model, "' is ready"));
  }
  if (options_.verify_pairs && pool.prefilled && !pool.paired) {
    return absl::UnavailableError(absl::StrCat("no prefill worker of model '", pool.model,
                                               "' has reached a decode worker yet"));
  }
  return absl::OkStatus();
}

bool Coordinator::Ready(const std::string& model) const {
  const auto found = pools_.find(model);
  return found != pools_.end() && CheckReady(*found->second).ok();
}

std::vector<ModelView> Coordinator::Models() const {
  std::vector<ModelView> models;
  for (const auto& [name, pool] : pools_) {
    ModelView view = {.name = name,
                      .ready = CheckReady(*pool).ok(),
                      .block_tokens = pool->block_tokens,
                      .context_tokens = 0,
                      .identity = {}};
    for (const Worker* worker : pool->prefills) view.identity = worker->info.identity;
    for (const Worker* worker : pool->decodes) {
      view.identity = worker->info.identity;
      const std::int32_t tokens = worker->info.context_tokens;
      view.context_tokens =
          view.context_tokens == 0 ? tokens : std::min(view.context_tokens, tokens);
    }
    models.push_back(std::move(view));
  }
  return models;
}

const char* Coordinator::StateOf(const Worker& worker) const {
  if (worker.away) return "away";
  if (worker.draining) {
    return worker_requests_[IndexOf(worker.id)].empty() ? "drained" : "draining";
  }
  return worker.ready ? "ready" : "loading";
}

std::vector<WorkerView> Coordinator::Workers() const {
  std::vector<WorkerView> views;
  for (const auto& [name, pool] : pools_) {
    for (const auto* workers : {&pool->prefills, &pool->decodes}) {
      for (const Worker* worker : *workers) {
        views.push_back({.info = worker->info,
                         .load = worker->load,
                         .state = StateOf(*worker),
                         .prefills = worker->prefills,
                         .blocks_known = pool->index.blocks_of(IndexOf32(worker->id))});
      }
    }
  }
  return views;
}

std::vector<PairView> Coordinator::Pairs() const {
  std::vector<PairView> views;
  for (const auto& [name, pool] : pools_) {
    for (const auto& [id, pair] : pool->pairs) {
      views.push_back({.prefill = members_.at(id.first).info.ref.name,
                       .decode = members_.at(id.second).info.ref.name,
                       .report = pair.report});
    }
  }
  return views;
}

absl::StatusOr<WorkerRef> Coordinator::FindWorker(const std::string& name) const {
  const WorkerId id = members_.Find(name);
  if (id == kNoWorker) {
    return absl::NotFoundError(absl::StrCat("no worker '", name.substr(0, 64), "' is registered"));
  }
  return members_.at(id).info.ref;
}

}  // namespace penstock::coordinator
