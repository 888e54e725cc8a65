// SPDX-License-Identifier: Apache-2.0
#include "coordinator/messages_service.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "rpc/convert.h"

namespace penstock::coordinator {
namespace {

constexpr std::int64_t kEventsMax = 1 << 16;  // Of one message.
constexpr std::int64_t kLiveMax = 1 << 16;

std::int64_t SizeOf(const auto& x) { return static_cast<std::int64_t>(x.size()); }

absl::Status CheckEnum(std::string_view field, int value, int least, int most) {
  return CheckRange(field, value, least, most);
}

absl::Status CheckRate(std::string_view field, double value) {
  if (std::isfinite(value) && value >= 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(ToAbsl(field), " must be finite and not below 0, got ", value));
}

template <typename Message>
void SetError(const absl::Status& status, Message* message) {
  if (!status.ok()) rpc::ToProto(status, message->mutable_error());
}

}  // namespace

absl::Status CheckName(std::string_view field, std::string_view value, std::size_t bytes_max) {
  RETURN_IF_ERROR(CheckRange(absl::StrCat("length of ", ToAbsl(field)), SizeOf(value), 1,
                             static_cast<std::int64_t>(bytes_max)));
  const auto control = [](char c) { return static_cast<unsigned char>(c) < ' ' || c == 0x7f; };
  if (std::ranges::any_of(value, control)) {
    return absl::InvalidArgumentError(
        absl::StrCat(ToAbsl(field), " must have no control characters"));
  }
  return absl::OkStatus();
}

absl::StatusOr<Registration> FromProto(const v1::WorkerMessage::Register& message) {
  RETURN_IF_ERROR(CheckName("register.name", message.name(), 64));
  RETURN_IF_ERROR(CheckName("register.model", message.model(), 256));
  RETURN_IF_ERROR(CheckName("register.endpoint", message.endpoint(), 1024));
  RETURN_IF_ERROR(CheckName("register.transfer_address", message.transfer_address(), 4096));
  RETURN_IF_ERROR(CheckEnum("register.role", message.role(), v1::ROLE_PREFILL, v1::ROLE_DECODE));
  RETURN_IF_ERROR(CheckRange("register.block_tokens", message.block_tokens(), 1, 1 << 16));
  if (!message.device().empty()) {
    RETURN_IF_ERROR(CheckName("register.device", message.device(), 256));
  }
  Registration r;
  r.ref = {.name = message.name(), .epoch = message.session_epoch()};
  r.role = message.role() == v1::ROLE_PREFILL ? Role::kPrefill : Role::kDecode;
  r.model = message.model();
  RETURN_IF_ERROR(CheckRange("register.identity.fields", message.identity().fields_size(), 1, 64));
  for (const v1::Identity::Field& field : message.identity().fields()) {
    RETURN_IF_ERROR(CheckName("register.identity.fields.name", field.name(), 64));
    r.identity.emplace_back(field.name(), field.value());
  }
  r.block_tokens = static_cast<std::uint32_t>(message.block_tokens());
  r.endpoint = message.endpoint();
  r.transfer_address = message.transfer_address();
  r.transfer_epoch = message.transfer_epoch();
  r.context_tokens = message.context_tokens();
  r.kv_bytes_per_token = message.kv_bytes_per_token();
  r.blocks_total = message.blocks_total();
  r.sequences_max = message.sequences_max();
  r.device = message.device();
  r.pid = message.pid();
  return r;
}

absl::StatusOr<Load> FromProto(const v1::WorkerMessage::Load& message) {
  RETURN_IF_ERROR(CheckRange("load.live", message.live_size(), 0, kLiveMax));
  Load load;
  load.report = {.ready = message.ready(),
                 .sequences = message.sequences(),
                 .blocks_used = message.blocks_used(),
                 .prefill_tokens_per_s = message.prefill_tokens_per_s(),
                 .link_bytes_per_s = message.link_bytes_per_s(),
                 .step_seconds = message.step_seconds(),
                 .bytes_held = message.bytes_held(),
                 .bytes_draining = message.bytes_draining()};
  for (const v1::Attempt& live : message.live()) {
    ASSIGN_OR_RETURN(Attempt attempt, rpc::FromProto(live));
    load.live.push_back(std::move(attempt));
  }
  return load;
}

absl::StatusOr<std::vector<BlockEvent>> FromProto(const v1::WorkerMessage::Blocks& message) {
  RETURN_IF_ERROR(CheckRange("blocks.events", message.events_size(), 0, kEventsMax));
  std::vector<BlockEvent> events;
  events.reserve(static_cast<std::size_t>(message.events_size()));
  for (const v1::BlockEvent& from : message.events()) {
    RETURN_IF_ERROR(CheckEnum("blocks.events.kind", from.kind(), v1::BlockEvent::KIND_STORED,
                              v1::BlockEvent::KIND_SNAPSHOT_END));
    BlockEvent event = {.kind = static_cast<BlockEvent::Kind>(from.kind() - 1),
                        .ends_prefix = from.ends_prefix(),
                        .chain = {}};
    if (event.kind == BlockEvent::Kind::kStored || event.kind == BlockEvent::Kind::kRemoved) {
      RETURN_IF_ERROR(CheckRange("length of blocks.events.chain", SizeOf(from.chain()), 16, 16));
      std::copy(from.chain().begin(), from.chain().end(), event.chain.bytes.begin());
    }
    events.push_back(event);
  }
  return events;
}

absl::StatusOr<WorkerEvent> FromProto(const v1::AttemptEvent& message) {
  WorkerEvent event;
  ASSIGN_OR_RETURN(event.id, rpc::FromProto(message.attempt()));
  RETURN_IF_ERROR(CheckEnum("attempt.kind", message.kind(), v1::AttemptEvent::KIND_GRANTED,
                            v1::AttemptEvent::KIND_TRANSFER_FAILED));
  event.kind = static_cast<WorkerEvent::Kind>(message.kind() - 1);
  RETURN_IF_ERROR(CheckRange("attempt.reused_tokens", message.reused_tokens(), 0, 1 << 30));
  event.grant = message.grant();
  event.decode_reused_tokens = static_cast<std::uint32_t>(message.reused_tokens());
  if (message.has_error()) event.error = rpc::FromProto(message.error());
  return event;
}

absl::StatusOr<PairReport> FromProto(const v1::Preflight::Result& message) {
  PairReport report;
  RETURN_IF_ERROR(CheckName("preflight.peer", message.peer(), 64));
  RETURN_IF_ERROR(CheckRange("length of preflight.transport", SizeOf(message.transport()), 0, 64));
  ASSIGN_OR_RETURN(report.round_trip, rpc::FromProto("preflight.round_trip", message.round_trip()));
  RETURN_IF_ERROR(CheckRate("preflight.bytes_per_s", message.bytes_per_s()));
  report.bytes_per_s = message.bytes_per_s();
  report.status = rpc::FromProto(message.error());
  report.transport = message.transport();
  return report;
}

absl::StatusOr<RouteQuery> FromProto(const std::string& gateway,
                                     const v1::GatewayMessage::Route& message) {
  RouteQuery query;
  // The same rules as for attempts.
  v1::Attempt attempt;
  attempt.set_request_id(message.request_id());
  attempt.set_number(1);
  RETURN_IF_ERROR(rpc::FromProto(attempt).status());
  RETURN_IF_ERROR(CheckName("route.model", message.model(), 256));
  query.request = message.request_id();
  query.gateway = gateway;
  query.model = message.model();
  ASSIGN_OR_RETURN(query.chains, rpc::ChainsFromProto(message.chains()));
  query.prompt_tokens = message.prompt_tokens();
  query.output_tokens_max = message.output_tokens_max();
  query.priority = message.priority();
  ASSIGN_OR_RETURN(query.first_token_within,
                   rpc::FromProto("first_token_within", message.first_token_within()));
  ASSIGN_OR_RETURN(query.end_within, rpc::FromProto("end_within", message.end_within()));
  query.lost_attempt = message.lost_attempt();
  return query;
}

v1::WorkerCommand ToProto(const ReserveAction& action) {
  v1::WorkerCommand command;
  v1::WorkerCommand::Reserve& reserve = *command.mutable_reserve();
  rpc::ToProto(action.id, reserve.mutable_attempt());
  reserve.set_prompt_tokens(static_cast<std::int32_t>(action.prompt_tokens));
  *reserve.mutable_chains() = rpc::ChainsToProto(*action.chains);
  reserve.set_local(action.prefill.ref.name == action.worker.ref.name);
  rpc::ToProto(action.hold_for, reserve.mutable_hold_for());
  return command;
}

v1::WorkerCommand ToProto(const StartAction& action) {
  v1::WorkerCommand command;
  v1::WorkerCommand::Start& start = *command.mutable_start();
  rpc::ToProto(action.id, start.mutable_attempt());
  start.mutable_grant()->set_epoch(action.decode.transfer_epoch);
  start.mutable_grant()->set_number(action.grant);
  start.set_decode_name(action.decode.ref.name);
  start.set_decode_transfer_address(action.decode.transfer_address);
  start.set_prompt_tokens(static_cast<std::int32_t>(action.prompt_tokens));
  rpc::ToProto(action.transfer_within, start.mutable_transfer_within());
  rpc::ToProto(action.hold_for, start.mutable_hold_for());
  if (action.last_chain.has_value()) {
    start.set_last_chain(rpc::ChainsToProto(std::span(&*action.last_chain, 1)));
  }
  return command;
}

v1::WorkerCommand ToProto(const ReleaseAction& action) {
  v1::WorkerCommand command;
  rpc::ToProto(action.id, command.mutable_release()->mutable_attempt());
  return command;
}

v1::WorkerCommand ToProto(const PreflightAction& action) {
  v1::WorkerCommand command;
  v1::Preflight& preflight = *command.mutable_preflight();
  preflight.set_peer(action.decode.ref.name);
  preflight.set_peer_epoch(action.decode.transfer_epoch);
  preflight.set_peer_transfer_address(action.decode.transfer_address);
  return command;
}

v1::GatewayEvent ToProto(const PlannedAction& action) {
  v1::GatewayEvent event;
  v1::GatewayEvent::Planned& planned = *event.mutable_planned();
  rpc::ToProto(action.id, planned.mutable_attempt());
  planned.set_decode_name(action.decode.ref.name);
  planned.set_decode_endpoint(action.decode.endpoint);
  planned.set_prefill_name(action.prefill.ref.name);
  planned.set_prefill_endpoint(action.prefill.endpoint);
  planned.set_prompt_tokens(action.prompt_tokens);
  planned.set_reused_tokens(action.reused_tokens);
  rpc::ToProto(action.prefill_within, planned.mutable_prefill_within());
  return event;
}

v1::GatewayEvent ToProto(const LostAction& action) {
  v1::GatewayEvent event;
  rpc::ToProto(action.id, event.mutable_lost()->mutable_attempt());
  rpc::ToProto(action.reply_within, event.mutable_lost()->mutable_reply_within());
  return event;
}

v1::GatewayEvent ToProto(const EndedAction& action) {
  v1::GatewayEvent event;
  event.mutable_ended()->set_request_id(action.request);
  SetError(action.status, event.mutable_ended());
  rpc::ToProto(action.retry_after, event.mutable_ended()->mutable_retry_after());
  return event;
}

v1::GatewayEvent ToProto(const std::string& request, const RouteAnswer& answer) {
  v1::GatewayEvent event;
  event.mutable_routed()->set_request_id(request);
  SetError(answer.status, event.mutable_routed());
  rpc::ToProto(answer.retry_after, event.mutable_routed()->mutable_retry_after());
  return event;
}

void ToProto(const ModelView& from, v1::GatewayEvent::Model* to) {
  to->set_name(from.name);
  to->set_ready(from.ready);
  to->set_block_tokens(static_cast<std::int32_t>(from.block_tokens));
  to->set_context_tokens(from.context_tokens);
  for (const auto& [name, value] : from.identity) {
    v1::Identity::Field* const field = to->mutable_identity()->add_fields();
    field->set_name(name);
    field->set_value(value);
  }
}

void ToProto(const WorkerView& from, v1::StatusResponse::WorkerStatus* to) {
  to->set_name(from.info.ref.name);
  to->set_role(from.info.role == Role::kPrefill ? v1::ROLE_PREFILL : v1::ROLE_DECODE);
  to->set_model(from.info.model);
  to->set_state(from.state);
  to->set_endpoint(from.info.endpoint);
  to->set_device(from.info.device);
  to->set_pid(from.info.pid);
  to->set_sequences(from.load.sequences);
  to->set_sequences_max(from.info.sequences_max);
  to->set_prefills(from.prefills);
  to->set_blocks_used(from.load.blocks_used);
  to->set_blocks_total(from.info.blocks_total);
  to->set_blocks_known(from.blocks_known);
  to->set_prefill_tokens_per_s(from.load.prefill_tokens_per_s);
  to->set_step_seconds(from.load.step_seconds);
  to->set_bytes_held(from.load.bytes_held);
  to->set_bytes_draining(from.load.bytes_draining);
}

void ToProto(const PairView& from, v1::StatusResponse::Pair* to) {
  to->set_prefill(from.prefill);
  to->set_decode(from.decode);
  to->set_transport(from.report.transport);
  rpc::ToProto(from.report.round_trip, to->mutable_round_trip());
  to->set_bytes_per_s(from.report.bytes_per_s);
  SetError(from.report.status, to);
}

}  // namespace penstock::coordinator
