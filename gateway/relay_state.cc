// SPDX-License-Identifier: Apache-2.0
#include "gateway/relay_state.h"

#include <algorithm>
#include <charconv>
#include <utility>

#include "base/status.h"

namespace penstock::gateway {
namespace {

// Asking once more would end the same way.
bool IsFinal(const absl::Status& status) {
  return status.code() == absl::StatusCode::kInvalidArgument ||
         status.code() == absl::StatusCode::kOutOfRange ||
         status.code() == absl::StatusCode::kUnimplemented ||
         status.code() == absl::StatusCode::kUnauthenticated ||
         status.code() == absl::StatusCode::kPermissionDenied;
}

absl::Status NoCoordinator() { return absl::UnavailableError("the coordinator cannot be reached"); }

}  // namespace

std::string RelayState::LegId(const std::string& id, std::size_t choice) {
  return absl::StrCat(id, ".", choice);
}

std::optional<std::string> RelayState::OwnerOfLeg(const std::string& id) {
  const std::size_t dot = id.rfind('.');
  if (dot == std::string::npos || dot == 0) return std::nullopt;
  std::size_t choice = 0;
  const char* const end = id.data() + id.size();
  const auto [after, error] = std::from_chars(id.data() + dot + 1, end, choice);
  if (error != std::errc() || after != end) return std::nullopt;
  if (LegId(id.substr(0, dot), choice) != id) return std::nullopt;  // "a.01"
  return id.substr(0, dot);
}

RelayState::RelayState(Loop& loop, Coordinator& coordinator, Workers& workers, Sink& sink,
                       Prepared request, Options options, std::function<void()> over)
    : loop_(loop),
      coordinator_(coordinator),
      workers_(workers),
      sink_(sink),
      request_(std::move(request)),
      options_(options),
      over_(std::move(over)) {
  usage_.prompt_tokens = static_cast<std::int32_t>(request_.prompt.size());
}

RelayState::~RelayState() {
  for (auto& [id, leg] : legs_) Disarm(leg);
  if (deadline_timer_.has_value()) loop_.CancelTimer(*deadline_timer_);
}

void RelayState::Start() {
  deadline_timer_ = loop_.At(request_.deadline, [this] {
    End(absl::DeadlineExceededError(absl::StrCat("the answer was not complete after ",
                                                 ToSeconds(request_.deadline - request_.arrived),
                                                 " s")));
  });
  std::vector<std::size_t> all;
  for (std::int32_t i = 0; i < request_.n; ++i) {
    Choice& choice = choices_.emplace_back();
    all.push_back(all.size());
    if (request_.tokens_only && request_.stops.empty()) continue;
    absl::StatusOr<std::unique_ptr<model::TextStream>> text = model::TextStream::Make(
        request_.model->tokenizer(), {.stops = request_.stops, .after = request_.prompt.back()});
    if (!text.ok()) return End(text.status());
    choice.text = *std::move(text);
  }
  Leg& leg = AddLeg(request_.id, std::move(all));
  leg.chains = request_.chains;
  Route(leg);
}

// The request was taken. Whether the client still listens.
bool RelayState::TellStarted() {
  if (std::exchange(started_, true)) return !ended_;
  Started started{.request_id = request_.id,
                  .prompt_tokens = usage_.prompt_tokens,
                  .seed = *request_.sampling.seed,
                  .prompt = {}};
  if (request_.prompt_ids) started.prompt = request_.prompt;
  return Tell(std::move(started));
}

void RelayState::Cancel(const absl::Status& why) { End(why); }

RelayState::Leg& RelayState::AddLeg(std::string id, std::vector<std::size_t> choices) {
  Leg& leg = legs_[id];
  leg.id = std::move(id);
  leg.choices = std::move(choices);
  return leg;
}

RelayState::Leg* RelayState::Find(const std::string& id) {
  const auto it = legs_.find(id);
  return ended_ || it == legs_.end() || it->second.state == State::kEnded ? nullptr : &it->second;
}

RelayState::Leg* RelayState::FindOpen(const Attempt& attempt) {
  Leg* const leg = Find(attempt.request_id);
  return leg == nullptr || leg->state == State::kRouting || leg->attempt != attempt.number ? nullptr
                                                                                           : leg;
}

bool RelayState::IsComplete(const Leg& leg) const {
  return std::ranges::all_of(leg.choices, [this](std::size_t c) { return choices_[c].finished; });
}

bool RelayState::HasEmitted(const Leg& leg) const {
  return std::ranges::any_of(leg.choices,
                             [this](std::size_t c) { return !choices_[c].emitted.empty(); });
}

// Of a leg with one answer, or with nothing emitted.
std::vector<TokenId> RelayState::TokensOf(const Leg& leg) const {
  std::vector<TokenId> tokens = request_.prompt;
  if (leg.choices.size() == 1) {
    const std::vector<TokenId>& emitted = choices_[leg.choices[0]].emitted;
    tokens.insert(tokens.end(), emitted.begin(), emitted.end());
  }
  return tokens;
}

void RelayState::Route(Leg& leg) {
  leg.state = State::kRouting;
  leg.answered = false;
  Disarm(leg);
  if (!coordinator_.attending()) return AwaitCoordinator(leg);
  leg.asked = loop_.Now();
  const std::vector<TokenId> tokens = TokensOf(leg);
  const auto block = static_cast<std::size_t>(request_.block_tokens);
  for (std::size_t at = leg.chains.size() * block; at + block <= tokens.size(); at += block) {
    const Chain parent = leg.chains.empty() ? request_.root : leg.chains.back();
    leg.chains.push_back(NextChain(parent, std::span(tokens).subspan(at, block)));
  }
  const std::size_t emitted = tokens.size() - request_.prompt.size();
  Arm(leg, loop_.Now() + options_.route_timeout, [this] {
    End(absl::UnavailableError(absl::StrCat("the coordinator did not answer within ",
                                            ToSeconds(options_.route_timeout), " s")));
  });
  coordinator_.Route({.request_id = leg.id,
                      .model = request_.model->name(),
                      .chains = leg.chains,
                      .prompt_tokens = static_cast<std::uint32_t>(tokens.size()),
                      .output_tokens_max = static_cast<std::uint32_t>(request_.max_tokens) -
                                           static_cast<std::uint32_t>(emitted),
                      .tenant = request_.tenant,
                      .priority = request_.priority,
                      .reuse = request_.reuse,
                      .end_within = std::max(request_.deadline - loop_.Now(), Duration(1)),
                      .lost_attempt = leg.attempt});
}

void RelayState::AwaitCoordinator(Leg& leg) {
  // A client that has nothing yet can ask elsewhere.
  if (!HasEmitted(leg)) return End(NoCoordinator(), options_.retry_pause);
  leg.outage = true;
  leg.answered = false;
  leg.resume_by = std::max(leg.resume_by, loop_.Now() + options_.resume_timeout);
  Arm(leg, leg.resume_by, [this] { End(NoCoordinator(), options_.retry_pause); });
}

void RelayState::OnAttending() {
  for (auto& [id, leg] : legs_) {
    if (!ended_ && leg.state == State::kRouting && leg.outage && !leg.answered) Route(leg);
  }
}

void RelayState::OnDetached() {
  for (auto& [id, leg] : legs_) {
    if (!ended_ && leg.state == State::kRouting) AwaitCoordinator(leg);
  }
}

bool RelayState::MayRetry(const Leg& leg, const absl::Status& status, Duration pause) const {
  if (!HasEmitted(leg) || loop_.Now() + pause >= leg.resume_by) return false;
  if (status.code() == absl::StatusCode::kResourceExhausted) return true;
  // A coordinator that was away meets its workers again one by one.
  return leg.outage && (status.code() == absl::StatusCode::kUnavailable ||
                        status.code() == absl::StatusCode::kNotFound);
}

void RelayState::OnRouted(const std::string& id, const absl::Status& status, Duration retry_after) {
  Leg* const leg = Find(id);
  if (leg == nullptr || leg->state != State::kRouting || leg->answered) return;
  if (status.ok()) {
    leg->answered = true;
    Disarm(*leg);
    TellStarted();
    return;
  }
  if (status.code() == absl::StatusCode::kFailedPrecondition) {
    if (leg->attempt == 0 && !HasEmitted(*leg)) {
      return End(absl::AlreadyExistsError(
          absl::StrCat("request_id '", id, "' was used a moment ago: choose another")));
    }
    leg->over = true;
    return Split(*leg, status);
  }
  const Duration pause = std::max(retry_after, options_.retry_pause);
  if (!MayRetry(*leg, status, pause)) {
    if (status.code() != absl::StatusCode::kNotFound) return End(status, retry_after);
    // The gateway serves this model: what is missing is workers, until they have joined again.
    return End(absl::UnavailableError(status.message()), pause);
  }
  leg->answered = true;
  Arm(*leg, loop_.Now() + pause, [this, leg] { Route(*leg); });
}

void RelayState::OnPlanned(const Plan& plan) {
  Leg* const leg = Find(plan.attempt.request_id);
  if (leg == nullptr || plan.attempt.number <= leg->attempt) return;
  CloseCalls(*leg);
  leg->attempt = plan.attempt.number;
  if (leg->choices.size() > 1 && HasEmitted(*leg)) {
    return Split(*leg, absl::AbortedError("planned anew"));
  }
  // Tokens came after this was planned.
  const std::size_t emitted = HasEmitted(*leg) ? choices_[leg->choices[0]].emitted.size() : 0;
  if (plan.prompt_tokens != request_.prompt.size() + emitted) return Route(*leg);
  Open(*leg, plan);
}

void RelayState::Open(Leg& leg, const Plan& plan) {
  Disarm(leg);
  if (!TellStarted()) return;
  leg.state = State::kPlanned;
  leg.plan = plan;
  TracePlanned(leg, plan);
  leg.outage = false;
  leg.cut = false;
  leg.fresh = !HasEmitted(leg);
  if (leg.fresh) {
    usage_.cached_tokens = static_cast<std::int32_t>(
        std::min<std::size_t>(plan.reused_tokens, request_.prompt.size()));
  }
  usage_.handoff.reset();
  DecodeOrder order{.attempt = plan.attempt,
                    .prompt = TokensOf(leg),
                    .sampling = request_.sampling,
                    .n = static_cast<std::int32_t>(leg.choices.size()),
                    .first_choice = static_cast<std::int32_t>(leg.choices[0]),
                    .stop_tokens = request_.stop_tokens,
                    .ignore_eos = request_.ignore_eos,
                    .priority = request_.priority,
                    .root = request_.root,
                    .tenant = request_.tenant};
  order.emitted_tokens = static_cast<std::int32_t>(order.prompt.size() - request_.prompt.size());
  order.max_tokens = request_.max_tokens - order.emitted_tokens;
  workers_.Decode(plan.decode_endpoint, order, request_.deadline);
  if (plan.local() || order.prompt.size() < 2) return;
  workers_.Prefill(
      plan.prefill_endpoint,
      {.attempt = plan.attempt,
       .tokens = std::span(order.prompt).first(order.prompt.size() - 1),
       .root = request_.root,
       .tenant = request_.tenant,
       .priority = request_.priority,
       .timeout = std::min(
           plan.prefill_within > Duration() ? plan.prefill_within : request_.deadline - loop_.Now(),
           std::max(request_.deadline - loop_.Now(), Duration(1)))});
}

// Ends what an attempt has open, for another to take its place.
void RelayState::CloseCalls(Leg& leg) {
  if (leg.state == State::kRouting) return;
  TraceStream(leg);
  workers_.Cancel(leg.plan.attempt);
  leg.state = State::kRouting;
  ++usage_.attempts;
}

void RelayState::OnLost(const Attempt& attempt) {
  if (Leg* const leg = FindOpen(attempt)) {
    Recover(*leg, absl::UnavailableError("the decode worker was lost"));
  }
}

void RelayState::OnEnded(const std::string& id, const absl::Status& status, Duration retry_after) {
  Leg* const leg = Find(id);
  if (leg == nullptr) return;
  leg->over = true;
  if (status.ok() && leg->state != State::kRouting) return;
  if (IsComplete(*leg)) return EndLeg(*leg);
  // It does not know how far this got, or cancelled what nobody here wanted cancelled.
  if (HasEmitted(*leg) && (status.ok() || status.code() == absl::StatusCode::kCancelled)) {
    return Split(*leg, status.ok() ? absl::UnavailableError("ended too early") : status);
  }
  End(status.ok() ? absl::UnavailableError("the request ended without an answer") : status,
      retry_after);
}

void RelayState::OnDecodeEnd(const Attempt& attempt, const absl::Status& status) {
  Leg* const leg = FindOpen(attempt);
  if (leg == nullptr) return;
  if (IsComplete(*leg)) {
    leg->over |= status.ok();  // The worker tells the coordinator itself.
    return EndLeg(*leg);
  }
  if (IsFinal(status)) return End(status);
  Recover(*leg, status.ok() ? absl::UnavailableError("the answer broke off") : status);
}

void RelayState::Recover(Leg& leg, const absl::Status& why) {
  if (IsComplete(leg)) return EndLeg(leg);
  CloseCalls(leg);
  if (++leg.failures > options_.failures_max) {
    return End(absl::UnavailableError(absl::StrCat(leg.failures,
                                                   " attempts failed without a new token, the last "
                                                   "one with: ",
                                                   why.message())));
  }
  leg.resume_by = loop_.Now() + options_.resume_timeout;
  if (leg.over || (leg.choices.size() > 1 && HasEmitted(leg))) return Split(leg, why);
  Route(leg);
}

// The answers of a leg that cannot go on go on as legs of their own.
void RelayState::Split(Leg& leg, const absl::Status& why) {
  CloseCalls(leg);
  const std::string longest = LegId(request_.id, leg.choices.back());
  if (leg.id != request_.id || longest.size() > kRequestIdBytesMax) {
    return End(absl::UnavailableError(
        absl::StrCat("the request was lost in mid-answer: ", why.message())));
  }
  Disarm(leg);
  leg.state = State::kEnded;
  if (!leg.over) coordinator_.Cancel(leg.id);
  for (const std::size_t choice : leg.choices) {
    if (choices_[choice].finished) continue;
    Leg& next = AddLeg(LegId(request_.id, choice), {choice});
    next.chains = request_.chains;
    next.failures = leg.failures;
    next.outage = leg.outage;
    next.resume_by = loop_.Now() + options_.resume_timeout;
    Route(next);
    if (ended_) return;
  }
}

void RelayState::EndLeg(Leg& leg) {
  TraceStream(leg);
  if (leg.state == State::kPlanned || leg.state == State::kStreaming) {
    workers_.Cancel(leg.plan.attempt);
  }
  if (!leg.over) coordinator_.Cancel(leg.id);
  leg.state = State::kEnded;
  Disarm(leg);
  if (!std::ranges::all_of(choices_, [](const Choice& c) { return c.finished; })) return;
  if (std::ranges::any_of(legs_, [](const auto& l) { return l.second.state != State::kEnded; })) {
    return;
  }
  if (first_token_.has_value()) usage_.ttft = *first_token_ - request_.arrived;
  if (Tell(usage_)) End(absl::OkStatus());
}

void RelayState::OnStep(const Attempt& attempt, DecodeStep step) {
  Leg* const leg = FindOpen(attempt);
  if (leg == nullptr) return;
  if (leg->fresh) {
    usage_.cached_tokens =
        std::max(usage_.cached_tokens, std::min(step.reused_tokens, usage_.prompt_tokens));
  }
  if (step.handoff.has_value()) usage_.handoff = std::move(step.handoff);
  for (Output& output : step.outputs) {
    Take(*leg, std::move(output), step.sampled_unix_ns);
    if (ended_ || leg->state == State::kEnded) return;
  }
}

void RelayState::Take(Leg& leg, Output output, std::int64_t sampled_unix_ns) {
  std::size_t index = leg.choices[0];
  if (leg.choices.size() > 1) {
    if (output.choice < 0 || static_cast<std::size_t>(output.choice) >= leg.choices.size()) return;
    index = leg.choices[static_cast<std::size_t>(output.choice)];
  }
  Choice& choice = choices_[index];
  if (choice.finished) return;
  if (output.finish == Output::Finish::kError) {
    return End(absl::InternalError(
        "the model gave no usable logits: the file is damaged or not supported"));
  }
  Delta delta{.choice = static_cast<std::int32_t>(index)};
  bool stopped = false;
  const auto add_text = [&](model::TextStream::Output text) {
    if (!request_.tokens_only) delta.text += text.text;
    stopped = text.stopped;
  };
  if (output.token.has_value()) {
    leg.state = State::kStreaming;
    leg.failures = 0;
    if (options_.spans != nullptr) TraceToken(leg);
    if (!first_token_.has_value()) first_token_ = loop_.Now();
    ++usage_.completion_tokens;
    choice.emitted.push_back(output.token->token);
    if (choice.text != nullptr) add_text(choice.text->Add(output.token->token));
    if (request_.sampling.logprobs >= 0) AddPieces(*output.token);
    delta.tokens.push_back(*std::move(output.token));
    delta.sampled_unix_ns = sampled_unix_ns;
  }
  std::optional<FinishReason> finish;
  if (output.finish == Output::Finish::kStop) finish = FinishReason::kStop;
  // A worker that forgets to say so must not make more than was asked for.
  if (output.finish == Output::Finish::kLength ||
      choice.emitted.size() >= static_cast<std::size_t>(request_.max_tokens)) {
    finish = finish.value_or(FinishReason::kLength);
  }
  const bool by_text = stopped && output.finish == Output::Finish::kGoesOn;
  if (!stopped && finish.has_value() && choice.text != nullptr) add_text(choice.text->Finish());
  if (stopped) finish = FinishReason::kStop;
  if (!delta.tokens.empty() || !delta.text.empty()) {
    if (!Tell(std::move(delta))) return;
  }
  if (finish.has_value()) Finish(leg, index, *finish, by_text);
}

void RelayState::Finish(Leg& leg, std::size_t choice, FinishReason reason, bool by_text) {
  choices_[choice].finished = true;
  Finished finished{.choice = static_cast<std::int32_t>(choice), .reason = reason};
  if (choices_[choice].text != nullptr) finished.stopped_by = choices_[choice].text->stopped_by();
  if (!Tell(std::move(finished))) return;
  // The worker does not know of stop strings: it would go on.
  leg.cut |= by_text;
  if (leg.cut && IsComplete(leg)) return EndLeg(leg);
  if (!by_text) return;
  workers_.StopChoice(leg.plan.decode_endpoint, leg.plan.attempt,
                      static_cast<std::int32_t>(choice - leg.choices[0]));
}

void RelayState::AddPieces(SampledToken& token) const {
  const model::Tokenizer& tokenizer = request_.model->tokenizer();
  token.piece = tokenizer.Piece(token.token, /*special=*/true);
  for (TokenLogprob& top : token.top) top.piece = tokenizer.Piece(top.token, /*special=*/true);
}

void RelayState::Arm(Leg& leg, MonoTime when, std::function<void()> task) {
  Disarm(leg);
  leg.timer = loop_.At(when, [&leg, task = std::move(task)] {
    leg.timer.reset();
    task();
  });
}

void RelayState::Disarm(Leg& leg) {
  if (leg.timer.has_value()) loop_.CancelTimer(*std::exchange(leg.timer, std::nullopt));
}

bool RelayState::Tell(Event event) {
  if (ended_) return false;
  if (sink_.OnEvent(std::move(event))) return true;
  End(absl::ResourceExhaustedError("the client reads its answer too slowly"));
  return false;
}

void RelayState::End(const absl::Status& status, Duration retry_after) {
  if (ended_) return;
  ended_ = true;
  for (auto& [id, leg] : legs_) {
    Disarm(leg);
    if (leg.state == State::kEnded) continue;
    TraceStream(leg);
    if (leg.state != State::kRouting) workers_.Cancel(leg.plan.attempt);
    if (!leg.over) coordinator_.Cancel(leg.id);
    leg.state = State::kEnded;
  }
  if (deadline_timer_.has_value()) {
    loop_.CancelTimer(*std::exchange(deadline_timer_, std::nullopt));
  }
  TraceRequest();
  sink_.OnEnd(status, retry_after);
  over_();
}

}  // namespace penstock::gateway
