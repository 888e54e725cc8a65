// SPDX-License-Identifier: Apache-2.0
#include "gateway/relay_world.h"

#include <algorithm>

#include "base/check.h"
#include "base/status.h"

namespace penstock::gateway {

using std::chrono::microseconds;
using std::chrono::milliseconds;

bool RecordingSink::OnEvent(Event event) {
  CHECK(ends == 0 && usages == 0);
  if (++events_ > events_max_) return false;
  if (std::holds_alternative<Started>(event)) {
    CHECK(choices.empty());
    ++started;
  } else if (const auto* const delta = std::get_if<Delta>(&event)) {
    Choice& choice = choices[delta->choice];
    CHECK(started == 1 && choice.finished == 0);
    for (const SampledToken& token : delta->tokens) choice.tokens.push_back(token.token);
    choice.text += delta->text;
  } else if (const auto* const finished = std::get_if<Finished>(&event)) {
    Choice& choice = choices[finished->choice];
    ++choice.finished;
    choice.reason = finished->reason;
    choice.stopped_by = finished->stopped_by;
  } else {
    usage = std::get<Usage>(event);
    ++usages;
  }
  return true;
}

void RecordingSink::OnEnd(const absl::Status& end_status, Duration after) {
  ++ends;
  status = end_status;
  retry_after = after;
}

TokenId NextToken(std::span<const TokenId> tokens, std::int32_t choice, std::uint64_t seed) {
  std::uint64_t hash = seed * 0x9E3779B97F4A7C15U + static_cast<std::uint64_t>(choice);
  for (const TokenId token : tokens) {
    hash = (hash ^ static_cast<std::uint64_t>(token)) * 0x100000001B3U;
  }
  return static_cast<TokenId>(3 + (hash >> 33) % 230);
}

bool EndsAnswer(TokenId token) { return token % 23 == 0; }

RecordingSink::Choice Alone(const Prepared& request, std::int32_t choice) {
  RecordingSink::Choice answer{.finished = 1, .reason = FinishReason::kLength};
  std::vector<TokenId> tokens = request.prompt;
  const auto text = *model::TextStream::Make(
      request.model->tokenizer(), {.stops = request.stops, .after = request.prompt.back()});
  for (std::int32_t i = 0; i < request.max_tokens; ++i) {
    const TokenId token = NextToken(tokens, choice, *request.sampling.seed);
    tokens.push_back(token);
    answer.tokens.push_back(token);
    answer.text += text->Add(token).text;
    if (text->stopped() || EndsAnswer(token)) {
      answer.reason = FinishReason::kStop;
      break;
    }
  }
  const model::TextStream::Output rest = text->Finish();
  answer.text += rest.text;
  if (rest.stopped) answer.reason = FinishReason::kStop;
  answer.stopped_by = text->stopped_by();
  return answer;
}

std::size_t RelayWorld::live_requests() const {
  return static_cast<std::size_t>(
      std::ranges::count_if(requests_, [](const auto& r) { return !r.second.ended; }));
}

// Says something after a random time, at times twice.
void RelayWorld::Later(std::function<void(RelayState&)> task) {
  for (int i = Chance(faults_.repeated) ? 2 : 1; i > 0; --i) {
    const Duration delay = microseconds(std::uniform_int_distribution(0, 3000)(random_));
    loop_.At(loop_.Now() + delay, [this, task] {
      if (relay_ != nullptr) task(*relay_);
    });
  }
}

void RelayWorld::Route(const RouteOrder& order) {
  log_.push_back(absl::StrCat("route ", order.request_id, " ", order.prompt_tokens, " after ",
                              order.lost_attempt));
  const auto& prepared = relay_->request();
  CHECK(order.chains.size() ==
        order.prompt_tokens / static_cast<std::uint32_t>(prepared.block_tokens));
  Request& request = requests_[order.request_id];
  if (order.lost_attempt > 0 && !request.ended && Chance(faults_.forgotten)) request.ended = true;
  if (request.ended) {
    loop_.Post([this, id = order.request_id] {
      relay_->OnRouted(id, absl::FailedPreconditionError("has ended"), {});
    });
    return;
  }
  loop_.Post([this, id = order.request_id] {
    if (attending_) relay_->OnRouted(id, absl::OkStatus(), {});
  });
  if (order.lost_attempt != 0 && order.lost_attempt < request.attempt) {
    // It plans anew when nobody comes for what it has reserved.
    loop_.At(loop_.Now() + milliseconds(200), [this, id = order.request_id, was = request.attempt] {
      if (!requests_[id].ended && requests_[id].attempt == was) PlanLater(id);
    });
    return;
  }
  request.prompt_tokens = order.prompt_tokens;
  std::erase_if(streams_, [&](const auto& s) { return s.first.request_id == order.request_id; });
  PlanLater(order.request_id);
}

void RelayWorld::PlanLater(const std::string& id) {
  const Request& request = requests_[id];
  const Plan plan{.attempt = {id, ++requests_[id].attempt},
                  .decode_name = "d",
                  .decode_endpoint = "d:1",
                  .prefill_name = Chance(0.3) ? "d" : "p",
                  .prefill_endpoint = "p:1",
                  .prompt_tokens = request.prompt_tokens,
                  .reused_tokens = 0,
                  .prefill_within = std::chrono::seconds(5)};
  Later([this, plan](RelayState& relay) {
    if (attending_ && !requests_[plan.attempt.request_id].ended) relay.OnPlanned(plan);
  });
}

void RelayWorld::Cancel(const std::string& request_id) {
  log_.push_back("cancel " + request_id);
  requests_[request_id].ended = true;
}

void RelayWorld::Decode(const std::string& endpoint, const DecodeOrder& order, MonoTime) {
  CHECK(endpoint == "d:1");
  log_.push_back(absl::StrCat("decode ", ToString(order.attempt), " n ", order.n, " choice ",
                              order.first_choice, " emitted ", order.emitted_tokens));
  // Exactly what this answer had emitted, by the rule.
  const std::vector<TokenId>& prompt = relay_->request().prompt;
  CHECK(std::ranges::equal(prompt, std::span(order.prompt).first(prompt.size())));
  CHECK(order.prompt.size() == prompt.size() + static_cast<std::size_t>(order.emitted_tokens));
  CHECK(order.max_tokens + order.emitted_tokens == relay_->request().max_tokens);
  CHECK(order.n == 1 || order.emitted_tokens == 0);
  for (std::size_t i = prompt.size(); i < order.prompt.size(); ++i) {
    CHECK(order.prompt[i] ==
          NextToken(std::span(order.prompt).first(i), order.first_choice, *order.sampling.seed));
  }
  Stream& stream = streams_[order.attempt];
  stream.order = order;
  stream.tokens.assign(static_cast<std::size_t>(order.n), order.prompt);
  stream.finished.assign(static_cast<std::size_t>(order.n), false);
  Step(order.attempt);
}

void RelayWorld::Prefill(const std::string& endpoint, const PrefillOrder& order) {
  CHECK(endpoint == "p:1");
  CHECK(streams_.contains(order.attempt));
  CHECK(order.tokens.size() + 1 == streams_[order.attempt].order.prompt.size());
}

void RelayWorld::StopChoice(const std::string&, const Attempt& attempt, std::int32_t choice) {
  log_.push_back(absl::StrCat("stop ", ToString(attempt), " ", choice));
  const auto it = streams_.find(attempt);
  if (it != streams_.end()) it->second.finished[static_cast<std::size_t>(choice)] = true;
}

void RelayWorld::Cancel(const Attempt& attempt) {
  log_.push_back("close " + ToString(attempt));
  streams_.erase(attempt);
  while (Chance(faults_.late)) SayLate(attempt);
}

constexpr TokenId kNoSuchToken = 1;  // NextToken gives none below 3.

// What comes of an attempt that the relay has left, when another may be open by now: none of it is
// right, so that whatever is believed is seen.
void RelayWorld::SayLate(const Attempt& attempt) {
  const auto what = std::uniform_int_distribution(0, 4)(random_);
  const Duration after = std::chrono::microseconds(std::uniform_int_distribution(0, 9000)(random_));
  const std::uint32_t prompt_tokens = requests_[attempt.request_id].prompt_tokens;
  loop_.At(loop_.Now() + after, [this, attempt, what, prompt_tokens] {
    if (relay_ == nullptr) return;
    switch (what) {
      case 0: {
        DecodeStep step;
        step.outputs.emplace_back().token = SampledToken{.token = kNoSuchToken};
        return relay_->OnStep(attempt, std::move(step));
      }
      case 1:
        return relay_->OnDecodeEnd(attempt, absl::UnavailableError("late"));
      case 2:
        return relay_->OnDecodeEnd(attempt, absl::InvalidArgumentError("late"));
      case 3:
        return relay_->OnLost(attempt);
      default:
        return relay_->OnPlanned({.attempt = attempt,
                                  .decode_name = "d",
                                  .decode_endpoint = "late:1",
                                  .prefill_name = "d",
                                  .prompt_tokens = prompt_tokens});
    }
  });
}

void RelayWorld::Detach() {
  attending_ = false;
  relay_->OnDetached();
  loop_.At(loop_.Now() + milliseconds(50), [this] {
    attending_ = true;
    if (relay_ != nullptr) relay_->OnAttending();
  });
}

// Whether the stream is to end here.
bool RelayWorld::Trouble(const Attempt& attempt) {
  if (attending_ && Chance(faults_.detached)) Detach();
  if (Chance(faults_.broken)) {
    streams_.erase(attempt);
    ++losses_;
    relay_->OnDecodeEnd(attempt, absl::UnavailableError("broken"));
    return true;
  }
  if (!attending_ || requests_[attempt.request_id].ended) return false;
  if (Chance(faults_.lost)) {
    ++losses_;
    Later([attempt](RelayState& relay) { relay.OnLost(attempt); });
  } else if (Chance(faults_.replanned) && requests_[attempt.request_id].attempt == attempt.number) {
    ++losses_;
    PlanLater(attempt.request_id);
  }
  return false;
}

void RelayWorld::Step(const Attempt& attempt) {
  Later([this, attempt](RelayState& relay) {
    if (!streams_.contains(attempt) || Trouble(attempt)) return;
    const auto it = streams_.find(attempt);
    if (it == streams_.end()) return;
    Stream& stream = it->second;
    DecodeStep step;
    for (std::size_t i = 0; i < stream.tokens.size(); ++i) {
      if (stream.finished[i]) continue;
      const TokenId token =
          NextToken(stream.tokens[i], stream.order.first_choice + static_cast<std::int32_t>(i),
                    *stream.order.sampling.seed);
      stream.tokens[i].push_back(token);
      Output& output = step.outputs.emplace_back();
      output.choice = static_cast<std::int32_t>(i);
      output.token = SampledToken{.token = token};
      if (EndsAnswer(token)) {
        output.finish = Output::Finish::kStop;
      } else if (stream.tokens[i].size() ==
                 stream.order.prompt.size() + static_cast<std::size_t>(stream.order.max_tokens)) {
        output.finish = Output::Finish::kLength;
      }
      stream.finished[i] = output.finish != Output::Finish::kGoesOn;
    }
    const bool last = std::ranges::all_of(stream.finished, [](bool f) { return f; });
    relay.OnStep(attempt, step);
    if (!streams_.contains(attempt)) {
      relay.OnStep(attempt, step);  // A late one, of an attempt that was left.
      return;
    }
    if (!last) return Step(attempt);
    streams_.erase(attempt);
    requests_[attempt.request_id].ended = true;
    if (Chance(0.5)) relay.OnEnded(attempt.request_id, absl::OkStatus(), {});
    relay.OnDecodeEnd(attempt, absl::OkStatus());
    relay.OnEnded(attempt.request_id, absl::OkStatus(), {});
  });
}

}  // namespace penstock::gateway
