// SPDX-License-Identifier: Apache-2.0
// What workers say, and what becomes of their requests when they go.
#include <algorithm>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "coordinator/coordinator_impl.h"

namespace penstock::coordinator {
namespace {

// Requests and blocks of one message.
constexpr std::int64_t kItemsMax = 1 << 20;
// Reports in which a running request may be missing before it is taken as lost: the first may have
// been written before it was adopted.
constexpr std::uint32_t kMissedMost = 1;

bool ById(const Worker* worker, WorkerId id) { return worker->id < id; }

// A measurement replaces what was known only if it is one.
void Take(double& value, double measured) {
  if (std::isfinite(measured) && measured > 0) value = measured;
}

}  // namespace

Peer Coordinator::PeerOf(WorkerId id) const {
  const Registration& info = members_.at(id).info;
  return {info.ref, info.endpoint, info.transfer_address, info.transfer_epoch};
}

Coordinator::Pool* Coordinator::PoolOf(WorkerId id) {
  const Registration& info = members_.at(id).info;
  return info.role == Role::kStore ? nullptr : pools_.at(info.model).get();
}

absl::Status Coordinator::Register(const Registration& registration, MonoTime now) {
  RETURN_IF_ERROR(members_.Check(registration));
  if (const WorkerId lives = members_.Find(registration.ref.name); lives != kNoWorker) {
    if (members_.at(lives).info.ref.epoch == registration.ref.epoch) {
      members_.Renew(lives, now);
      AssignStore(members_.at(lives), true);
      return absl::OkStatus();
    }
    EndWorker(lives, absl::UnavailableError("the worker began a new life"), now);
  }
  if (registration.role == Role::kStore) {
    const WorkerId id = members_.Add(registration, now);
    if (IndexOf(id) >= worker_requests_.size()) worker_requests_.resize(IndexOf(id) + 1);
    if (absl::Status status = AddStore(id); !status.ok()) {
      members_.End(id);
      return status;
    }
    return absl::OkStatus();
  }
  std::unique_ptr<Pool>& pool = pools_[registration.model];
  if (pool == nullptr) pool = std::make_unique<Pool>(registration.model, options_);
  pool->used_at = now;
  const WorkerId id = members_.Add(registration, now);
  if (absl::Status status = pool->index.Add(IndexOf32(id)); !status.ok()) {
    members_.End(id);
    return status;
  }
  pool->block_tokens = registration.block_tokens;
  pool->kv_bytes_per_token = registration.kv_bytes_per_token;
  if (!registration.groups.empty()) {
    pool->groups = registration.groups;
    pool->codecs = registration.codecs;
  }
  auto& workers = registration.role == Role::kPrefill ? pool->prefills : pool->decodes;
  workers.insert(std::lower_bound(workers.begin(), workers.end(), id, ById), &members_.at(id));
  if (IndexOf(id) >= worker_requests_.size()) worker_requests_.resize(IndexOf(id) + 1);
  AddPairs(*pool, id, now);
  AssignStore(members_.at(id), false);
  ++models_version_;
  return absl::OkStatus();
}

void Coordinator::Restore(const WorkerRef& ended, MonoTime now) {
  const WorkerId lives = members_.Find(ended.name);
  if (lives != kNoWorker && members_.at(lives).info.ref.epoch <= ended.epoch) {
    EndWorker(lives, absl::UnavailableError("the worker's life has ended elsewhere"), now);
  }
  members_.Restore(ended);
}

absl::Status Coordinator::Report(const WorkerRef& ref, const LoadReport& load,
                                 std::span<const Attempt> live, MonoTime now) {
  ASSIGN_OR_RETURN(const WorkerId id, members_.Resolve(ref));
  RETURN_IF_ERROR(
      CheckRange("live requests", static_cast<std::int64_t>(live.size()), 0, kItemsMax));
  members_.Renew(id, now);
  Worker& worker = members_.at(id);
  const bool changes = worker.ready != load.ready;
  worker.ready = load.ready;
  worker.load = load;
  if (PoolOf(id) == nullptr) {
    worker.away = false;
    ReportStore(worker);
    if (changes) AssignStores();
    return absl::OkStatus();
  }
  if (changes) ++models_version_;
  Pool& pool = *PoolOf(id);
  TakeFetchRates(pool, worker);
  if (std::exchange(worker.away, false)) AskPairs(pool, id, now);
  worker.sequences.Report(load.sequences);
  worker.blocks.Report(std::min(load.blocks_used, worker.blocks_total));
  Take(worker.prefill_tokens_per_s, load.prefill_tokens_per_s);
  Take(worker.link_bytes_per_s, load.link_bytes_per_s);
  Take(worker.step_seconds, load.step_seconds);
  // The first time it may have been lost on its way.
  if (pool.index.degraded(IndexOf32(id))) actions_.emplace_back(SnapshotAction{PeerOf(id)});
  Compare(id, live, now);
  Pump(pool, now);
  return absl::OkStatus();
}

// What the worker has against what it should have.
void Coordinator::Compare(WorkerId id, std::span<const Attempt> live, MonoTime now) {
  absl::flat_hash_set<Serial> listed;
  for (const Attempt& attempt : live) {
    const Request* const request = Find(attempt.request_id);
    // One that was never known here is of a gateway that outlived an earlier coordinator.
    if (request == nullptr && !ended_.contains(attempt.request_id)) continue;
    if (request != nullptr && IsLive(*request, id, attempt.number)) {
      listed.insert(request->serial);
    } else {
      ReleaseStale(id, attempt);
    }
  }
  const std::vector<Serial> mine(worker_requests_[IndexOf(id)].begin(),
                                 worker_requests_[IndexOf(id)].end());
  for (const Serial serial : mine) {
    Request& request = *requests_.at(serial);
    if (request.state != RequestState::kDecoding || request.decode != id) continue;
    if (listed.contains(serial)) {
      request.missed_reports = 0;
    } else if (++request.missed_reports > kMissedMost) {
      Apply(request, RequestEvent::kDecodeLost,
            absl::UnavailableError("the worker no longer lists the request"), now);
    }
  }
}

bool Coordinator::IsLive(const Request& request, WorkerId id, std::uint32_t attempt) const {
  return HasWorkers(request.state) && request.attempt == attempt &&
         (request.prefill == id || request.decode == id);
}

void Coordinator::ReleaseStale(WorkerId id, const Attempt& attempt) {
  ++stats_.stale;
  actions_.emplace_back(ReleaseAction{PeerOf(id), attempt});
}

absl::Status Coordinator::Blocks(const WorkerRef& ref, std::uint64_t first,
                                 std::span<const BlockEvent> events, MonoTime now) {
  ASSIGN_OR_RETURN(const WorkerId id, members_.Resolve(ref));
  RETURN_IF_ERROR(
      CheckRange("block events", static_cast<std::int64_t>(events.size()), 0, kItemsMax));
  if (first == 0 || first > UINT64_MAX / 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("block events are numbered from 1 to 2^63, got ", first));
  }
  if (PoolOf(id) == nullptr) return NoWorker(ref);
  members_.Renew(id, now);
  PrefixIndex& index = PoolOf(id)->index;
  if (index.Apply(IndexOf32(id), first, events) == PrefixIndex::Applied::kGap) {
    actions_.emplace_back(SnapshotAction{PeerOf(id)});
  }
  index.Sweep();
  return absl::OkStatus();
}

absl::Status Coordinator::On(const WorkerRef& ref, const WorkerEvent& event, MonoTime now) {
  ASSIGN_OR_RETURN(const WorkerId id, members_.Resolve(ref));
  if (PoolOf(id) == nullptr) return NoWorker(ref);
  using Kind = WorkerEvent::Kind;
  Request* const request = Find(event.id.request_id);
  if (request == nullptr || !IsLive(*request, id, event.id.number)) {
    // Who refused or finished holds nothing; and what was never known here is of a gateway that
    // outlived an earlier coordinator, as in Compare.
    const bool unknown = request == nullptr && !ended_.contains(event.id.request_id);
    if (event.kind == Kind::kRefused || event.kind == Kind::kFinished || unknown) {
      ++stats_.stale;
    } else {
      ReleaseStale(id, event.id);
    }
    return absl::AbortedError(absl::StrCat("attempt ", event.id.number, " of request '",
                                           event.id.request_id.substr(0, 64), "' is not live on '",
                                           ref.name, "'"));
  }
  const bool by_prefill = id == request->prefill;
  const bool by_decode = id == request->decode;
  RequestEvent what{};
  switch (event.kind) {
    case Kind::kGranted:
      what = RequestEvent::kGranted;
      break;
    case Kind::kAccepted:
      what = RequestEvent::kAccepted;
      break;
    case Kind::kComputed:
      what = RequestEvent::kComputed;
      break;
    case Kind::kAdopted:
      what = RequestEvent::kAdopted;
      break;
    case Kind::kFinished:
      what = RequestEvent::kFinished;
      break;
    case Kind::kRefused:
      what = by_decode ? RequestEvent::kDecodeRefused : RequestEvent::kPrefillRefused;
      break;
    case Kind::kTransferFailed:
      what = RequestEvent::kTransferFailed;
      break;
  }
  const bool of_prefill = event.kind == Kind::kAccepted || event.kind == Kind::kComputed;
  const bool of_decode =
      event.kind == Kind::kGranted || event.kind == Kind::kAdopted || event.kind == Kind::kFinished;
  if ((of_prefill && !by_prefill) || (of_decode && !by_decode)) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", ref.name, "' is the ", by_prefill ? "prefill" : "decode",
                     " worker of that attempt and cannot say '", ToAbsl(ToString(what)), "'"));
  }
  if (event.kind == Kind::kGranted && request->state == RequestState::kReserving) {
    request->grant = event.grant;
    request->decode_reused_tokens = std::min(event.decode_reused_tokens, request->prompt_tokens);
  }
  Pool& pool = *request->pool;
  Apply(*request, what, event.error, now);
  Pump(pool, now);
  return absl::OkStatus();
}

absl::Status Coordinator::Drain(const WorkerRef& ref, Duration move_after, MonoTime now) {
  ASSIGN_OR_RETURN(const WorkerId id, members_.Resolve(ref));
  Worker& worker = members_.at(id);
  if (worker.draining) return absl::OkStatus();
  worker.draining = true;
  ++models_version_;
  // What is to be fetched from a store node is soon fetched, or computed.
  Pool* const pool = PoolOf(id);
  if (pool == nullptr) {
    AssignStores();
  } else {
    moves_.emplace(After(now, std::max(move_after, Duration())), id);
  }
  CheckDrained(id);
  if (pool != nullptr) Pump(*pool, now);
  return absl::OkStatus();
}

void Coordinator::CheckDrained(WorkerId id) {
  if (id == kNoWorker) return;
  Worker& worker = members_.at(id);
  if (!worker.draining || worker.gone || !worker_requests_[IndexOf(id)].empty()) return;
  std::erase_if(moves_, [&](const auto& move) { return move.second == id; });
  actions_.emplace_back(DrainedAction{PeerOf(id)});
}

absl::Status Coordinator::Leave(const WorkerRef& ref, MonoTime now) {
  ASSIGN_OR_RETURN(const WorkerId id, members_.Resolve(ref));
  EndWorker(id, absl::UnavailableError("the worker has left"), now);
  return absl::OkStatus();
}

void Coordinator::Disconnected(const WorkerRef& ref, MonoTime now) {
  const absl::StatusOr<WorkerId> id = members_.Resolve(ref);
  if (!id.ok()) return;
  Worker& worker = members_.at(*id);
  worker.ready = false;
  worker.away = true;
  ++models_version_;
  if (PoolOf(*id) != nullptr) Pump(*PoolOf(*id), now);
}

void Coordinator::MoveRequests(WorkerId id, const absl::Status& why, MonoTime now) {
  const std::vector<Serial> mine(worker_requests_[IndexOf(id)].begin(),
                                 worker_requests_[IndexOf(id)].end());
  for (const Serial serial : mine) {
    Request& request = *requests_.at(serial);
    Apply(request, request.decode == id ? RequestEvent::kDecodeLost : RequestEvent::kPrefillLost,
          why, now);
  }
}

void Coordinator::EndWorker(WorkerId id, const absl::Status& why, MonoTime now) {
  Worker& worker = members_.at(id);
  worker.gone = true;
  if (PoolOf(id) == nullptr) {
    RemoveStore(id);
    CHECK(worker_requests_[IndexOf(id)].empty());
    actions_.emplace_back(SessionEndedAction{PeerOf(id)});
    members_.End(id);
    return;
  }
  MoveRequests(id, why, now);
  CHECK(worker_requests_[IndexOf(id)].empty());
  std::erase_if(moves_, [&](const auto& move) { return move.second == id; });
  Pool& pool = *PoolOf(id);
  if (worker.keeper != kNoWorker) --members_.at(worker.keeper).keeps_for;
  std::erase(pool.prefills, &worker);
  std::erase(pool.decodes, &worker);
  pool.index.Drop(IndexOf32(id));
  RemovePairs(pool, id);
  ++models_version_;
  actions_.emplace_back(SessionEndedAction{PeerOf(id)});
  members_.End(id);
  Pump(pool, now);
}

}  // namespace penstock::coordinator
