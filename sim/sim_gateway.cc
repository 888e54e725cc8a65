// SPDX-License-Identifier: Apache-2.0
#include "sim/sim_gateway.h"

#include <algorithm>

namespace penstock::sim {

namespace co = coordinator;
using std::chrono::milliseconds;
using std::chrono::seconds;

namespace {

constexpr Duration kPauseMin = milliseconds(100);
constexpr Duration kPauseMax = seconds(2);

}  // namespace

SimGateway::SimGateway(VirtualLoop& clock, Network& network, std::mt19937& random,
                       const std::string& name)
    : network_(network), random_(random), process_(clock, name), pause_(kPauseMin) {
  process_.Post([this] { Connect(); });
}

SimGateway::~SimGateway() { network_.Die(process_); }

void SimGateway::Submit(gateway::Prepared request, gateway::Sink& sink) {
  // Of std::function, which copies.
  const auto shared = std::make_shared<gateway::Prepared>(std::move(request));
  process_.Post([this, shared, &sink] {
    if (!served_) {
      return sink.OnEnd(absl::UnavailableError("no worker of the model is there"), kPauseMin);
    }
    const std::string id = shared->id;
    gateway::Coordinator& coordinator = *this;
    gateway::Workers& workers = *this;
    std::unique_ptr<gateway::RelayState>& relay = relays_[id];
    relay = std::make_unique<gateway::RelayState>(
        process_, coordinator, workers, sink, std::move(*shared), gateway::RelayState::Options(),
        [this, id] { process_.Post([this, id] { relays_.erase(id); }); });
    relay->Start();
  });
}

void SimGateway::Leave(const std::string& id) {
  process_.Post([this, id] {
    if (gateway::RelayState* const relay = Find(id)) {
      relay->Cancel(absl::CancelledError("the client left"));
    }
  });
}

gateway::RelayState* SimGateway::Find(const std::string& leg) {
  auto found = relays_.find(leg);
  if (found == relays_.end()) {
    const auto owner = gateway::RelayState::OwnerOfLeg(leg);
    if (!owner.has_value()) return nullptr;
    found = relays_.find(*owner);
  }
  return found == relays_.end() ? nullptr : found->second.get();
}

// ---- The coordinator.

void SimGateway::Connect() {
  stream_ = network_.Connect<AttendStream>(process_, kCoordinatorAddress);
  stream_->on_down = [this](const GatewayEvent& event) { OnEvent(event); };
  stream_->OnClosed(StreamCore::kClient, [this](const absl::Status&) { OnClosed(); });
  stream_->SendUp(Hello{process_.name()});
}

void SimGateway::OnClosed() {
  const bool was_attending = std::exchange(attending_, false);
  served_ = false;
  stream_->on_down = nullptr;
  stream_ = nullptr;
  if (was_attending) pause_ = kPauseMin;
  const Duration pause = pause_ * 3 / 4 + Duration(random_() % (pause_.count() / 2));
  pause_ = std::min(pause_ * 2, kPauseMax);
  process_.At(process_.Now() + pause, [this] { Connect(); });
  if (!was_attending) return;
  for (const auto& [id, relay] : relays_) relay->OnDetached();
}

void SimGateway::OnEvent(const GatewayEvent& event) {
  if (const auto* attending = std::get_if<Attending>(&event)) {
    served_ = std::ranges::any_of(attending->models,
                                  [](const auto& model) { return model.context_tokens > 0; });
    if (!std::exchange(attending_, true)) {
      pause_ = kPauseMin;
      for (const std::string& id : cancels_.Kept(process_.Now())) {
        stream_->SendUp(CancelRequest{id});
      }
    }
    for (const auto& [id, relay] : relays_) relay->OnAttending();
  } else if (const auto* routed = std::get_if<Routed>(&event)) {
    if (gateway::RelayState* const relay = Find(routed->request)) {
      relay->OnRouted(routed->request, routed->answer.status, routed->answer.retry_after);
    }
  } else if (const auto* planned = std::get_if<co::PlannedAction>(&event)) {
    gateway::RelayState* const relay = Find(planned->id.request_id);
    // As in gateway/gateway.cc: it may be of an earlier life of this gateway.
    if (relay == nullptr) return Cancel(planned->id.request_id);
    relay->OnPlanned({.attempt = planned->id,
                      .decode_name = planned->decode.ref.name,
                      .decode_endpoint = planned->decode.endpoint,
                      .prefill_name = planned->prefill.ref.name,
                      .prefill_endpoint = planned->prefill.endpoint,
                      .prompt_tokens = planned->prompt_tokens,
                      .reused_tokens = planned->reused_tokens,
                      .prefill_within = planned->prefill_within});
  } else if (const auto* lost = std::get_if<co::LostAction>(&event)) {
    gateway::RelayState* const relay = Find(lost->id.request_id);
    if (relay == nullptr) return Cancel(lost->id.request_id);
    relay->OnLost(lost->id);
  } else if (const auto* ended = std::get_if<co::EndedAction>(&event)) {
    if (gateway::RelayState* const relay = Find(ended->request)) {
      relay->OnEnded(ended->request, ended->status, ended->retry_after);
    }
  }
}

void SimGateway::Route(const gateway::RouteOrder& order) {
  cancels_.Remove(order.request_id);
  if (!attending_) {
    process_.Post([this, id = order.request_id] {
      if (gateway::RelayState* const relay = Find(id)) {
        relay->OnRouted(id, absl::UnavailableError("the coordinator cannot be reached"), kPauseMin);
      }
    });
    return;
  }
  co::RouteQuery query;
  query.request = order.request_id;
  query.gateway = process_.name();
  query.model = kModel;
  query.chains = order.chains;
  query.prompt_tokens = order.prompt_tokens;
  query.output_tokens_max = order.output_tokens_max;
  query.priority = order.priority;
  query.end_within = order.end_within;
  query.lost_attempt = order.lost_attempt;
  stream_->SendUp(std::move(query));
}

void SimGateway::Cancel(const std::string& id) {
  cancels_.Add(id, process_.Now());
  if (attending_) stream_->SendUp(CancelRequest{id});
}

// ---- Workers.

void SimGateway::Decode(const std::string& endpoint, const gateway::DecodeOrder& order,
                        MonoTime deadline) {
  Calls& calls = calls_[order.attempt];
  calls.decode = network_.Connect<CallStream>(process_, endpoint);
  calls.decode->on_down = [this, attempt = order.attempt](const gateway::DecodeStep& step) {
    if (gateway::RelayState* const relay = Find(attempt.request_id)) relay->OnStep(attempt, step);
  };
  calls.decode->OnClosed(StreamCore::kClient,
                         [this, attempt = order.attempt](const absl::Status& status) {
                           OnDecodeClosed(attempt, status);
                         });
  calls.decode->SendUp(order);
  calls.decode_timer = process_.At(deadline, [this, attempt = order.attempt] {
    const auto found = calls_.find(attempt);
    found->second.decode->End(StreamCore::kClient, absl::CancelledError("too late"));
    OnDecodeClosed(attempt, absl::DeadlineExceededError("the call's deadline passed"));
  });
}

void SimGateway::OnDecodeClosed(const Attempt& attempt, const absl::Status& status) {
  const auto found = calls_.find(attempt);
  if (found == calls_.end()) return;
  process_.CancelTimer(found->second.decode_timer);
  found->second.decode->on_down = nullptr;
  found->second.decode = nullptr;
  if (found->second.prefill == nullptr) calls_.erase(found);
  if (gateway::RelayState* const relay = Find(attempt.request_id)) {
    relay->OnDecodeEnd(attempt, status);
  }
}

void SimGateway::Prefill(const std::string& endpoint, const gateway::PrefillOrder& order) {
  Calls& calls = calls_[order.attempt];
  calls.prefill = network_.Connect<CallStream>(process_, endpoint);
  calls.prefill->OnClosed(
      StreamCore::kClient,
      [this, attempt = order.attempt](const absl::Status&) { OnPrefillClosed(attempt); });
  calls.prefill->SendUp(PrefillCall{.attempt = order.attempt,
                                    .tokens = {order.tokens.begin(), order.tokens.end()},
                                    .timeout = order.timeout});
  calls.prefill_timer =
      process_.At(process_.Now() + order.timeout, [this, attempt = order.attempt] {
        const auto found = calls_.find(attempt);
        found->second.prefill->End(StreamCore::kClient, absl::CancelledError("too late"));
        OnPrefillClosed(attempt);
      });
}

void SimGateway::OnPrefillClosed(const Attempt& attempt) {
  const auto found = calls_.find(attempt);
  if (found == calls_.end()) return;
  process_.CancelTimer(found->second.prefill_timer);
  found->second.prefill = nullptr;
  if (found->second.decode == nullptr) calls_.erase(found);
}

void SimGateway::StopChoice(const std::string& endpoint, const Attempt& attempt,
                            std::int32_t choice) {
  network_.Connect<CallStream>(process_, endpoint)->SendUp(StopCall{attempt, choice});
}

void SimGateway::Cancel(const Attempt& attempt) {
  const auto found = calls_.find(attempt);
  if (found == calls_.end()) return;
  const Calls calls = std::move(found->second);
  calls_.erase(found);
  process_.CancelTimer(calls.decode_timer);
  process_.CancelTimer(calls.prefill_timer);
  for (const auto& call : {calls.decode, calls.prefill}) {
    if (call == nullptr) continue;
    call->on_down = nullptr;
    call->End(StreamCore::kClient, absl::CancelledError("cancelled"));
  }
}

}  // namespace penstock::sim
