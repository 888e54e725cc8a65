// SPDX-License-Identifier: Apache-2.0
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status.h"
#include "coordinator/sessions_service.h"
#include "rpc/convert.h"

namespace penstock::coordinator {
namespace {

// Kept for a gateway that is away; one that misses more has missed too much.
constexpr std::size_t kMissedMax = 16384;

}  // namespace

GatewaySessions::~GatewaySessions() {
  for (auto& [name, gateway] : gateways_) loop_.CancelTimer(gateway.timer);
}

void GatewaySessions::Open(std::uint64_t id, std::shared_ptr<GatewayStream> stream) {
  sessions_.emplace(id, Session{.stream = std::move(stream), .name = {}});
}

void GatewaySessions::OnMessage(std::uint64_t id, const v1::GatewayMessage& message) {
  const auto it = sessions_.find(id);
  if (it == sessions_.end()) return;
  const absl::Status status = Handle(id, it->second, message);
  if (!status.ok()) {
    LOG_WARNING("gateway's stream ends",
                {{"gateway", it->second.name}, {"reason", status.ToString()}});
    it->second.stream->End(status);
  }
  settler_.Settle();
}

absl::Status GatewaySessions::Handle(std::uint64_t id, Session& session,
                                     const v1::GatewayMessage& message) {
  if (message.has_hello()) return Hello(id, session, message.hello());
  if (session.name.empty()) return absl::InvalidArgumentError("the first message must be hello");
  switch (message.message_case()) {
    case v1::GatewayMessage::kRoute: {
      const std::string& request = message.route().request_id();
      absl::StatusOr<RouteQuery> query = FromProto(session.name, message.route());
      const RouteAnswer answer = query.ok() ? machine_.Route(*std::move(query), loop_.Now())
                                            : RouteAnswer{.status = query.status()};
      // Before what the state machine says of it.
      session.stream->Send(ToProto(request, answer));
      return absl::OkStatus();
    }
    case v1::GatewayMessage::kCancel:
      machine_.Cancel(session.name, message.cancel().request_id(), loop_.Now());
      return absl::OkStatus();
    case v1::GatewayMessage::kHello:
    case v1::GatewayMessage::MESSAGE_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError("message is not set, or of a kind that is not known here");
}

absl::Status GatewaySessions::Hello(std::uint64_t id, Session& session,
                                    const v1::GatewayMessage::Hello& message) {
  if (!session.name.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("hello must come once, '", session.name, "' has said it"));
  }
  RETURN_IF_ERROR(CheckName("hello.name", message.name(), 64));
  RETURN_IF_ERROR(settler_.TermFor(message.term()).status());
  session.name = message.name();
  Gateway& gateway = gateways_[session.name];
  loop_.CancelTimer(gateway.timer);
  if (gateway.stream != 0) {
    // Its own earlier stream, that has not broken yet; or another of that name, which sees why.
    sessions_.at(gateway.stream)
        .stream->End(absl::AbortedError(
            absl::StrCat("gateway '", session.name, "' attends over another stream")));
  }
  gateway.stream = id;
  LOG_INFO("gateway attends", {{"gateway", session.name}});
  session.stream->Send(Attending());
  for (v1::GatewayEvent& event : gateway.missed) session.stream->Send(std::move(event));
  gateway.missed.clear();
  return absl::OkStatus();
}

void GatewaySessions::OnClosed(std::uint64_t id) {
  const auto it = sessions_.find(id);
  if (it == sessions_.end()) return;
  const std::string name = std::move(it->second.name);
  sessions_.erase(it);
  const auto gateway = gateways_.find(name);
  if (gateway == gateways_.end() || gateway->second.stream != id) return;
  LOG_WARNING("gateway is away", {{"gateway", name}});
  gateway->second.stream = 0;
  gateway->second.timer = loop_.At(loop_.Now() + grace_, [this, name] { Gone(name); });
}

void GatewaySessions::Gone(const std::string& name) {
  const auto gateway = gateways_.find(name);
  if (gateway == gateways_.end()) return;
  loop_.CancelTimer(gateway->second.timer);
  gateways_.erase(gateway);
  LOG_WARNING("gateway is gone", {{"gateway", name}});
  machine_.GatewayGone(name, loop_.Now());
  settler_.Settle();
}

void GatewaySessions::EndAll(const absl::Status& why, const std::string& leader) {
  for (auto& [id, session] : sessions_) {
    SendElsewhere(*session.stream, v1::GatewayEvent(), leader, why);
  }
}

void GatewaySessions::Send(const std::string& name, v1::GatewayEvent event) {
  const auto gateway = gateways_.find(name);
  if (gateway == gateways_.end()) return;
  if (gateway->second.stream != 0) {
    sessions_.at(gateway->second.stream).stream->Send(std::move(event));
  } else if (gateway->second.missed.size() < kMissedMax) {
    gateway->second.missed.push_back(std::move(event));
  } else if (gateway->second.missed.size() == kMissedMax) {
    gateway->second.missed.push_back({});  // Once.
    loop_.CancelTimer(gateway->second.timer);
    gateway->second.timer = loop_.At(loop_.Now(), [this, name] { Gone(name); });
  }
}

v1::GatewayEvent GatewaySessions::Attending() {
  v1::GatewayEvent event;
  v1::GatewayEvent::Attending& attending = *event.mutable_attending();
  attending.set_term(settler_.TermFor(0).value_or(0));
  for (const ModelView& model : models_) ToProto(model, attending.add_models());
  return event;
}

void GatewaySessions::TellModels() {
  if (std::exchange(models_version_, machine_.models_version()) == machine_.models_version()) {
    return;
  }
  std::vector<ModelView> models = machine_.Models();
  if (models == models_) return;
  models_ = std::move(models);
  for (const auto& [name, gateway] : gateways_) {
    if (gateway.stream != 0) sessions_.at(gateway.stream).stream->Send(Attending());
  }
}

std::vector<std::string> GatewaySessions::names() const {
  std::vector<std::string> names;
  for (const auto& [name, gateway] : gateways_) {
    if (gateway.stream != 0) names.push_back(name);
  }
  return names;
}

}  // namespace penstock::coordinator
