// SPDX-License-Identifier: Apache-2.0
// Admission, and the transitions of requests.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "coordinator/coordinator_impl.h"

namespace penstock::coordinator {
namespace {

constexpr std::int64_t kAttemptsMost = 1 << 20;  // Of one request: far from where numbers wrap.
constexpr Duration kRetryAfterMin = std::chrono::milliseconds(50);
constexpr Duration kRetryAfterMax = std::chrono::seconds(60);

}  // namespace

absl::Status Coordinator::CheckQuery(const RouteQuery& query) const {
  const auto size = [](const auto& x) { return static_cast<std::int64_t>(x.size()); };
  RETURN_IF_ERROR(CheckRange("request bytes", size(query.request), 1, 64));
  RETURN_IF_ERROR(CheckRange("gateway bytes", size(query.gateway), 0, 64));
  const Pool* const pool = [&] {
    const auto found = pools_.find(query.model);
    return found == pools_.end() ? nullptr : found->second.get();
  }();
  if (pool == nullptr) {
    return absl::NotFoundError(
        absl::StrCat("no worker has registered for model '", query.model.substr(0, 256), "'"));
  }
  const std::int64_t tokens_max =
      std::int64_t{options_.prompt_blocks_max} * std::int64_t{pool->block_tokens};
  RETURN_IF_ERROR(CheckRange("prompt_tokens", query.prompt_tokens, 1, tokens_max));
  RETURN_IF_ERROR(
      CheckRange("chains", size(query.chains), 0, query.prompt_tokens / pool->block_tokens));
  RETURN_IF_ERROR(CheckRange("lost_attempt", query.lost_attempt, 0, kAttemptsMost));
  RETURN_IF_ERROR(CheckRange("first_token_within ns", query.first_token_within.count(), 0,
                             options_.end_within_max.count()));
  return CheckRange("end_within ns", query.end_within.count(), 0, options_.end_within_max.count());
}

RouteAnswer Coordinator::Refuse(absl::Status status, Duration retry_after) {
  ++stats_.refused;
  return {.status = std::move(status),
          .retry_after = std::clamp(retry_after, kRetryAfterMin, kRetryAfterMax)};
}

RouteAnswer Coordinator::Route(RouteQuery query, MonoTime now) {
  if (absl::Status status = CheckQuery(query); !status.ok()) {
    ++stats_.refused;
    return {.status = std::move(status)};
  }
  if (Request* const request = Find(query.request)) {
    if (request->pool->model != query.model) {
      return {.status = absl::InvalidArgumentError(
                  absl::StrCat("request '", query.request, "' is of model '", request->pool->model,
                               "', got '", query.model, "'"))};
    }
    if (request->gateway != query.gateway) {
      return {.status = absl::AlreadyExistsError(
                  absl::StrCat("request '", query.request, "' is another gateway's"))};
    }
    // An attempt before the last was left already.
    if (query.lost_attempt == 0 || query.lost_attempt < request->attempt) {
      Repeat(*request, now);
      return AnswerOf(*request);
    }
    return Resume(*request, std::move(query), now);
  }
  if (ended_.contains(query.request)) {
    return {.status = absl::FailedPreconditionError(
                absl::StrCat("request '", query.request, "' has ended"))};
  }
  return Admit(std::move(query), now);
}

// Predicted seconds until what waits has been placed.
double Coordinator::QueueSeconds(const Pool& pool, const Work& work) const {
  double prefill_rate = 0;
  double sequences = 0;
  bool decode_room = false;
  for (const Worker* worker : pool.prefills) {
    if (worker->usable()) prefill_rate += worker->prefill_tokens_per_s;
  }
  for (const Worker* worker : pool.decodes) {
    if (!worker->usable()) continue;
    if (pool.prefills.empty()) prefill_rate += worker->prefill_tokens_per_s;
    sequences += worker->sequences_max;
    decode_room |=
        worker->sequences.value() < worker->sequences_max && worker->blocks_free() >= work.blocks;
  }
  double seconds = 0;
  if (prefill_rate > 0) {
    seconds = static_cast<double>(pool.queued_tokens + work.prompt_tokens) / prefill_rate;
  }
  if (!decode_room && sequences > 0) {
    seconds = std::max(seconds,
                       static_cast<double>(pool.queue.size() + 1) * pool.hold_seconds / sequences);
  }
  return seconds;
}

RouteAnswer Coordinator::Admit(RouteQuery query, MonoTime now) {
  Pool& pool = *pools_.at(query.model);
  if (absl::Status status = CheckReady(pool); !status.ok()) {
    return Refuse(std::move(status), options_.members.ttl);
  }
  auto owned = std::make_unique<Request>();
  Request& request = *owned;
  request.serial = Serial{serial_next_};
  request.id = query.request;
  request.pool = &pool;
  request.arrived = now;
  const Duration first_token_within = query.first_token_within > Duration()
                                          ? query.first_token_within
                                          : options_.first_token_within;
  request.first_token_by = After(now, first_token_within);
  request.end_by =
      After(now, query.end_within > Duration() ? query.end_within : options_.end_within);
  SetPrompt(request, std::move(query));
  const Work work = WorkOf(pool, request);
  std::uint64_t blocks_most = 0;
  for (const Worker* worker : pool.decodes) {
    if (worker->usable()) blocks_most = std::max(blocks_most, worker->blocks_total);
  }
  if (work.blocks > blocks_most) {
    ++stats_.refused;
    return {.status = absl::InvalidArgumentError(
                absl::StrCat("the prompt and its answer need ", work.blocks,
                             " blocks, the largest worker has ", blocks_most))};
  }
  if (requests_.size() >= options_.requests_max) {
    return Refuse(absl::ResourceExhaustedError(absl::StrCat(
                      "requests_max is ", options_.requests_max, ", and all are in use")),
                  FromSeconds(QueueSeconds(pool, work)));
  }
  const bool waits =
      !pool.queue.empty() || !HasRoom(work, options_.policy, pool.prefills, pool.decodes, now);
  const double queue_seconds = waits ? QueueSeconds(pool, work) : 0;
  if (waits && pool.queue.size() >= options_.queued_max) {
    return Refuse(absl::ResourceExhaustedError(absl::StrCat("queued_max is ", options_.queued_max,
                                                            ", and ", pool.queue.size(), " wait")),
                  FromSeconds(queue_seconds));
  }
  if (waits && FromSeconds(queue_seconds) > first_token_within) {
    return Refuse(absl::ResourceExhaustedError(absl::StrCat("would wait ", queue_seconds,
                                                            " s, the first token is wanted within ",
                                                            ToSeconds(first_token_within), " s")),
                  FromSeconds(queue_seconds) - first_token_within);
  }
  Decision decision;
  if (!waits) {
    decision = Decide(pool, request, now);
    CHECK(!decision.candidates.empty());
    const Duration predicted = FromSeconds(decision.candidates[0].terms.first_token());
    if (predicted > first_token_within) {
      return Refuse(absl::ResourceExhaustedError(absl::StrCat(
                        "the first token is predicted after ", ToSeconds(predicted),
                        " s, and wanted within ", ToSeconds(first_token_within), " s")),
                    predicted - first_token_within);
    }
  }
  ++serial_next_;
  ++pool.requests;
  ++stats_.admitted;
  by_id_.emplace(request.id, request.serial);
  requests_.emplace(request.serial, std::move(owned));
  Enqueue(request, now);
  SetAlarm(request);
  if (waits) {
    Pump(pool, now);  // There may be room for this one, if not for those before it.
  } else {
    Carry(request, std::move(decision), now);
  }
  RouteAnswer answer = AnswerOf(request);  // It lives: it has not been tried too often.
  if (request.plans.empty()) answer.predicted_first_token = FromSeconds(queue_seconds);
  return answer;
}

// Says once more what the gateway was last told, and may have missed.
void Coordinator::Repeat(const Request& request, MonoTime now) {
  if (request.state == RequestState::kLost) {
    actions_.emplace_back(LostAction{request.gateway,
                                     {request.id, request.attempt},
                                     std::max(request.state_end - now, Duration())});
  } else if (HasWorkers(request.state) && request.state != RequestState::kReserving) {
    TellPlan(request, now);
  }
}

RouteAnswer Coordinator::AnswerOf(const Request& request) const {
  RouteAnswer answer = {.state = request.state, .attempt = request.attempt};
  if (!request.plans.empty()) {
    answer.predicted_first_token =
        FromSeconds(request.plans.back().decision.candidates[0].terms.first_token());
  }
  return answer;
}

void Coordinator::SetPrompt(Request& request, RouteQuery query) {
  request.gateway = std::move(query.gateway);
  request.chains = std::make_shared<const std::vector<Chain>>(std::move(query.chains));
  request.prompt_tokens = query.prompt_tokens;
  request.tenant = query.tenant;
  request.output_tokens_max = query.output_tokens_max;
  request.priority = query.priority;
  request.reuse = query.reuse;
  request.attempt = std::max(request.attempt, query.lost_attempt);
  request.tries = 0;
  request.excluded.clear();
}

RouteAnswer Coordinator::Resume(Request& request, RouteQuery query, MonoTime now) {
  if (!HasWorkers(request.state) && request.state != RequestState::kLost &&
      request.prompt_tokens == query.prompt_tokens) {
    return AnswerOf(request);  // Waits already, with that prompt.
  }
  Dequeue(request);
  LeavePlan(request, "resumed by the gateway", absl::OkStatus(), RequestEvent::kResumed, now);
  const bool more = query.prompt_tokens > request.prompt_tokens;
  const std::uint32_t tries = request.tries;
  SetPrompt(request, std::move(query));
  // Without a new token it counts as one more failure in a row.
  if (!more) request.tries = tries;
  const std::string id = request.id;
  Pool& pool = *request.pool;
  Apply(request, RequestEvent::kResumed, absl::OkStatus(), now);
  Pump(pool, now);
  if (const Request* const live = Find(id)) return AnswerOf(*live);
  return {.status = absl::UnavailableError("no attempt is left"), .retry_after = kRetryAfterMin};
}

void Coordinator::Cancel(const std::string& gateway, const std::string& id, MonoTime now) {
  const Request* const request = Find(id);
  if (request != nullptr && request->gateway == gateway) Cancel(id, now);
}

void Coordinator::GatewayGone(const std::string& gateway, MonoTime now) {
  std::set<Serial> left;
  for (const auto& [serial, request] : requests_) {
    if (request->gateway == gateway) left.insert(serial);
  }
  for (const Serial serial : left) Cancel(requests_.at(serial)->id, now);
}

void Coordinator::Cancel(const std::string& id, MonoTime now) {
  Request* const request = Find(id);
  if (request == nullptr) return;
  Pool& pool = *request->pool;
  Apply(*request, RequestEvent::kCancelled, absl::CancelledError("cancelled"), now);
  Pump(pool, now);
}

// The one place where a request changes its state.
void Coordinator::Apply(Request& request, RequestEvent event, absl::Status why, MonoTime now) {
  const RequestTransition* const transition = FindTransition(request.state, event);
  if (transition == nullptr) return;
  const RequestState from = request.state;
  request.state = transition->to;
  request.state_end = MonoTime::max();
  if (from == RequestState::kQueued) Dequeue(request);
  TraceAnswer(request, event, now);
  switch (transition->effect) {
    case RequestEffect::kNone:
      break;
    case RequestEffect::kReserve:
      DoReserve(request, now);
      break;
    case RequestEffect::kStart:
      DoStart(request, now);
      break;
    case RequestEffect::kWatch:
      request.state_end = request.hold_end;
      if (request.state == RequestState::kTransferring) UnbookPrefill(request, now);
      break;
    case RequestEffect::kDecode:
      UnbookPrefill(request, now);
      UnbookTransfer(request);
      LeavePrefill(request);
      break;
    case RequestEffect::kRetry:
      DoRetry(request, event, why, now);
      break;
    case RequestEffect::kAskGateway:
      LeavePlan(request, ToString(event), why, event, now);
      request.state_end = After(now, options_.resume_timeout);
      actions_.emplace_back(
          LostAction{request.gateway, {request.id, request.attempt}, options_.resume_timeout});
      break;
    case RequestEffect::kRequeue:
      Enqueue(request, now);
      break;
    case RequestEffect::kEnd:
      DoEnd(request, event, std::move(why), now);
      return;
  }
  SetAlarm(request);
}

// What a worker has just said yes to.
void Coordinator::TraceAnswer(const Request& request, RequestEvent event, MonoTime now) const {
  const bool granted = event == RequestEvent::kGranted;
  if (options_.spans == nullptr || (!granted && event != RequestEvent::kAccepted)) return;
  options_.spans->Record(
      {.name = granted ? SpanName::kReserve : SpanName::kStart,
       .request_id = request.id,
       .attempt = request.attempt,
       .begin = request.asked,
       .end = now,
       .peer = members_.at(granted ? request.decode : request.prefill).info.ref.name});
}

void Coordinator::DoReserve(Request& request, MonoTime now) {
  request.state_end = After(now, options_.reserve_timeout);
  request.asked = now;
  actions_.emplace_back(ReserveAction{PeerOf(request.decode),
                                      {request.id, request.attempt},
                                      request.prompt_tokens,
                                      request.chains,
                                      PeerOf(request.prefill),
                                      options_.reserve_timeout,
                                      request.hold_end - now,
                                      DecodeSourcesOf(request),
                                      request.reuse,
                                      request.tenant});
}

// Of the live attempt, whose workers are both known.
void Coordinator::TellPlan(const Request& request, MonoTime now) {
  const Candidate& candidate = request.plans.back().decision.candidates[0];
  actions_.emplace_back(
      PlannedAction{request.gateway,
                    {request.id, request.attempt},
                    PeerOf(request.prefill == kNoWorker ? request.decode : request.prefill),
                    PeerOf(request.decode),
                    request.prompt_tokens,
                    candidate.prefill_reused_tokens + candidate.fetched_tokens,
                    std::max(request.hold_end - now, Duration())});
}

void Coordinator::DoStart(Request& request, MonoTime now) {
  TellPlan(request, now);
  request.state_end = After(now, options_.start_timeout);
  request.asked = now;
  const CostTerms& terms = request.plans.back().decision.candidates[0].terms;
  const Duration transfer_within =
      std::min(FromSeconds(terms.first_token()), request.hold_end - now);
  actions_.emplace_back(StartAction{PeerOf(request.prefill),
                                    {request.id, request.attempt},
                                    request.prompt_tokens,
                                    request.chains,
                                    PeerOf(request.decode),
                                    request.grant,
                                    request.decode_reused_tokens,
                                    transfer_within,
                                    options_.start_timeout,
                                    request.hold_end - now,
                                    LastChainToCompute(request),
                                    SourcesOf(request),
                                    request.reuse});
}

// KV is computed of all tokens but the last.
std::optional<Chain> Coordinator::LastChainToCompute(const Request& request) {
  const std::size_t blocks = (request.prompt_tokens - 1) / request.pool->block_tokens;
  if (blocks == 0 || request.chains->size() < blocks) return std::nullopt;
  return (*request.chains)[blocks - 1];
}

void Coordinator::DoRetry(Request& request, RequestEvent event, const absl::Status& why,
                          MonoTime now) {
  const bool decode_at_fault =
      event == RequestEvent::kDecodeRefused || event == RequestEvent::kDecodeLost ||
      (event == RequestEvent::kTimedOut && request.timed_out_at == RequestState::kReserving);
  request.excluded.push_back(decode_at_fault ? request.decode : request.prefill);
  LeavePlan(request, ToString(event), why, event, now);
  Enqueue(request, now);
}

// The decode worker has it all.
void Coordinator::LeavePrefill(Request& request) {
  if (request.prefill == request.decode) return;
  const WorkerId left = std::exchange(request.prefill, kNoWorker);
  LetGo(request, left);
  worker_requests_[IndexOf(left)].erase(request.serial);
  CheckDrained(left);
}

void Coordinator::LetGo(const Request& request, WorkerId id) {
  if (id == kNoWorker || members_.at(id).gone) return;
  actions_.emplace_back(ReleaseAction{PeerOf(id), {request.id, request.attempt}});
}

// Ends the live attempt, if there is one: both are told, except who said that it holds nothing or
// is gone, and nothing is booked any more.
void Coordinator::LeavePlan(Request& request, std::string_view reason, const absl::Status& why,
                            RequestEvent event, MonoTime now) {
  if (request.decode == kNoWorker) return;
  request.plans.back().ended =
      why.ok() ? std::string(reason) : absl::StrCat(ToAbsl(reason), ": ", why.message());
  const bool decode_knows =
      event == RequestEvent::kDecodeRefused || event == RequestEvent::kFinished;
  UnbookPrefill(request, now);
  UnbookTransfer(request);
  UnbookDecode(request, now);
  if (!decode_knows) LetGo(request, request.decode);
  if (request.prefill != request.decode && event != RequestEvent::kPrefillRefused) {
    LetGo(request, request.prefill);
  }
  const WorkerId left[] = {std::exchange(request.prefill, kNoWorker),
                           std::exchange(request.decode, kNoWorker)};
  for (const WorkerId id : left) {
    if (id == kNoWorker) continue;
    worker_requests_[IndexOf(id)].erase(request.serial);
    CheckDrained(id);
  }
}

void Coordinator::DoEnd(Request& request, RequestEvent event, absl::Status why, MonoTime now) {
  LeavePlan(request, ToString(event), why, event, now);
  const bool come_again = why.code() == absl::StatusCode::kResourceExhausted ||
                          why.code() == absl::StatusCode::kUnavailable;
  ++(why.ok() ? stats_.finished : stats_.failed);
  actions_.emplace_back(
      EndedAction{request.gateway, request.id, why, come_again ? kRetryAfterMin : Duration()});
  Ended ended = {.explanation = ExplainLive(request), .attempt = request.attempt};
  ended.explanation.status = std::move(why);
  ended_.insert_or_assign(request.id, ended_next_);
  ended_list_.emplace_hint(ended_list_.end(), ended_next_++, std::move(ended));
  if (ended_list_.size() > options_.ended_max) {
    ended_.erase(ended_list_.begin()->second.explanation.request);
    ended_list_.erase(ended_list_.begin());
  }
  --request.pool->requests;
  alarms_.erase({request.alarm, request.serial});
  by_id_.erase(request.id);
  const Serial serial = request.serial;
  requests_.erase(serial);
}

void Coordinator::SetAlarm(Request& request) {
  MonoTime alarm = std::min(request.state_end, request.end_by);
  if (request.state == RequestState::kQueued) {
    if (request.not_before > MonoTime::min()) alarm = std::min(alarm, request.not_before);
  }
  if (alarm == request.alarm) return;
  alarms_.erase({request.alarm, request.serial});
  request.alarm = alarm;
  alarms_.emplace(alarm, request.serial);
}

}  // namespace penstock::coordinator
