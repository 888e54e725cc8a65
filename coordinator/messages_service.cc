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
constexpr std::int64_t kGroupsMax = 64;
constexpr std::int64_t kRatesMax = 1 << 14;
constexpr std::int64_t kTiersMax = 8;

std::int64_t SizeOf(const auto& x) { return static_cast<std::int64_t>(x.size()); }

absl::Status CheckEnum(std::string_view field, int value, int least, int most) {
  return CheckRange(field, value, least, most);
}

Role RoleOf(v1::Role role) {
  return role == v1::ROLE_PREFILL  ? Role::kPrefill
         : role == v1::ROLE_DECODE ? Role::kDecode
                                   : Role::kStore;
}

absl::Status CheckRate(std::string_view field, double value) {
  if (std::isfinite(value) && value >= 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(ToAbsl(field), " must be finite and not below 0, got ", value));
}

template <typename Tag>
absl::Status TakeDigest(std::string_view field, const std::string& from, Digest128<Tag>& to) {
  RETURN_IF_ERROR(CheckRange(absl::StrCat("length of ", ToAbsl(field)), SizeOf(from), 16, 16));
  std::copy(from.begin(), from.end(), to.bytes.begin());
  return absl::OkStatus();
}

// Of the classes behind the exact one; or none.
absl::Status TakeLossySpaces(const std::string& from, std::array<Namespace, kLossClasses>& to) {
  constexpr std::size_t kBytes = sizeof(Namespace::bytes);
  if (from.empty()) return absl::OkStatus();
  constexpr std::int64_t kAll = kBytes * (kLossClasses - 1);
  RETURN_IF_ERROR(
      CheckRange("length of register.groups.lossy_copy_spaces", SizeOf(from), kAll, kAll));
  for (std::size_t i = 1; i < kLossClasses; ++i) {
    RETURN_IF_ERROR(TakeDigest("register.groups.lossy_copy_spaces",
                               from.substr((i - 1) * kBytes, kBytes), to[i]));
  }
  return absl::OkStatus();
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
  RETURN_IF_ERROR(CheckEnum("register.role", message.role(), v1::ROLE_PREFILL, v1::ROLE_STORE));
  RETURN_IF_ERROR(CheckName("register.transfer_address", message.transfer_address(), 4096));
  if (!message.device().empty()) {
    RETURN_IF_ERROR(CheckName("register.device", message.device(), 256));
  }
  Registration r;
  r.ref = {.name = message.name(), .epoch = message.session_epoch()};
  r.role = RoleOf(message.role());
  r.transfer_address = message.transfer_address();
  r.transfer_epoch = message.transfer_epoch();
  r.device = message.device();
  r.pid = message.pid();
  r.endpoint = message.endpoint();
  if (r.role == Role::kStore) {
    RETURN_IF_ERROR(CheckRange("length of register.model", SizeOf(message.model()), 0, 0));
    if (!r.endpoint.empty()) RETURN_IF_ERROR(CheckName("register.endpoint", r.endpoint, 1024));
    return r;
  }
  RETURN_IF_ERROR(CheckName("register.model", message.model(), 256));
  RETURN_IF_ERROR(CheckName("register.endpoint", message.endpoint(), 1024));
  RETURN_IF_ERROR(CheckRange("register.block_tokens", message.block_tokens(), 1, 1 << 16));
  r.model = message.model();
  RETURN_IF_ERROR(CheckRange("register.identity.fields", message.identity().fields_size(), 1, 64));
  for (const v1::Identity::Field& field : message.identity().fields()) {
    RETURN_IF_ERROR(CheckName("register.identity.fields.name", field.name(), 64));
    r.identity.emplace_back(field.name(), field.value());
  }
  r.block_tokens = static_cast<std::uint32_t>(message.block_tokens());
  r.context_tokens = message.context_tokens();
  r.kv_bytes_per_token = message.kv_bytes_per_token();
  r.blocks_total = message.blocks_total();
  r.sequences_max = message.sequences_max();
  RETURN_IF_ERROR(CheckRange("register.groups", message.groups_size(), 0, kGroupsMax));
  for (const v1::WorkerMessage::StoredGroup& from : message.groups()) {
    StoredGroup group = {.block_bytes = from.block_bytes()};
    RETURN_IF_ERROR(
        TakeDigest("register.groups.copy_space", from.copy_space(), group.copy_spaces[0]));
    RETURN_IF_ERROR(TakeLossySpaces(from.lossy_copy_spaces(), group.copy_spaces));
    RETURN_IF_ERROR(CheckRange("register.groups.window_tokens", from.window_tokens(), 0, 1 << 30));
    group.window_tokens = static_cast<std::uint32_t>(from.window_tokens());
    r.groups.push_back(group);
  }
  RETURN_IF_ERROR(CheckRange("register.codecs", message.codecs_size(), 0, 255));
  for (const v1::WorkerMessage::CodecLoss& from : message.codecs()) {
    CodecLoss codec;
    RETURN_IF_ERROR(CheckRange("register.codecs.codec", from.codec(), 1, 255));
    ASSIGN_OR_RETURN(codec.loss, rpc::FromProto("register.codecs.loss", from.loss()));
    codec.codec = static_cast<std::uint8_t>(from.codec());
    r.codecs.push_back(codec);
  }
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
  RETURN_IF_ERROR(CheckRange("load.fetches", message.fetches_size(), 0, kRatesMax));
  for (const v1::WorkerMessage::FetchRate& from : message.fetches()) {
    FetchRate rate = {.store = from.store(), .bytes_per_s = from.bytes_per_s()};
    RETURN_IF_ERROR(CheckName("load.fetches.store", from.store(), 64));
    RETURN_IF_ERROR(CheckRate("load.fetches.bytes_per_s", from.bytes_per_s()));
    ASSIGN_OR_RETURN(rate.tier, rpc::FromProto("load.fetches.tier", from.tier()));
    RETURN_IF_ERROR(CheckRange("load.fetches.codec", from.codec(), 0, 255));
    rate.codec = static_cast<std::uint8_t>(from.codec());
    load.report.fetches.push_back(std::move(rate));
  }
  RETURN_IF_ERROR(CheckRange("load.tiers", message.tiers_size(), 0, kTiersMax));
  for (const v1::WorkerMessage::TierLoad& from : message.tiers()) {
    TierLoad tier = {.bytes = from.bytes(),
                     .bytes_max = from.bytes_max(),
                     .copies = from.copies(),
                     .hits = from.hits(),
                     .misses = from.misses(),
                     .bytes_per_s = from.bytes_per_s()};
    RETURN_IF_ERROR(CheckRate("load.tiers.bytes_per_s", from.bytes_per_s()));
    ASSIGN_OR_RETURN(tier.tier, rpc::FromProto("load.tiers.tier", from.tier()));
    load.report.tiers.push_back(tier);
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
      RETURN_IF_ERROR(TakeDigest("blocks.events.chain", from.chain(), event.chain));
    }
    events.push_back(event);
  }
  return events;
}

absl::StatusOr<std::vector<CopyEvent>> FromProto(const v1::WorkerMessage::Copies& message) {
  RETURN_IF_ERROR(CheckRange("copies.events", message.events_size(), 0, kEventsMax));
  std::vector<CopyEvent> events;
  events.reserve(static_cast<std::size_t>(message.events_size()));
  for (const v1::CopyEvent& from : message.events()) {
    RETURN_IF_ERROR(CheckEnum("copies.events.kind", from.kind(), v1::CopyEvent::KIND_STORED,
                              v1::CopyEvent::KIND_SNAPSHOT_END));
    CopyEvent event = {.kind = static_cast<CopyEvent::Kind>(from.kind() - 1)};
    const bool stored = event.kind == CopyEvent::Kind::kStored;
    if (stored || event.kind == CopyEvent::Kind::kRemoved) {
      RETURN_IF_ERROR(TakeDigest("copies.events.name", from.name(), event.name));
    }
    if (stored) {
      ASSIGN_OR_RETURN(event.tier, rpc::FromProto("copies.events.tier", from.tier()));
      RETURN_IF_ERROR(CheckRange("copies.events.codec", from.codec(), 0, 255));
      event.codec = static_cast<std::uint8_t>(from.codec());
      event.bytes = from.bytes();
      if (!from.parent().empty()) {
        RETURN_IF_ERROR(TakeDigest("copies.events.parent", from.parent(), event.parent.emplace()));
      }
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
  query.tenant = message.tenant();
  ASSIGN_OR_RETURN(query.reuse, rpc::FromProto("route.reuse", message.reuse()));
  ASSIGN_OR_RETURN(query.first_token_within,
                   rpc::FromProto("first_token_within", message.first_token_within()));
  ASSIGN_OR_RETURN(query.end_within, rpc::FromProto("end_within", message.end_within()));
  query.lost_attempt = message.lost_attempt();
  return query;
}

namespace {

void AddSources(const std::vector<FetchSource>& from,
                google::protobuf::RepeatedPtrField<v1::Source>* to) {
  for (const FetchSource& source : from) {
    v1::Source* const added = to->Add();
    added->set_store(source.store.ref.name);
    added->set_transfer_address(source.store.transfer_address);
    added->set_transfer_epoch(source.store.transfer_epoch);
    added->set_first_block(static_cast<std::int32_t>(source.first_block));
    added->set_end_block(static_cast<std::int32_t>(source.end_block));
    added->set_tier(static_cast<v1::Tier>(source.tier));
    added->set_loss(static_cast<v1::LossClass>(source.loss));
    rpc::ToProto(source.compute_within, added->mutable_compute_within());
    rpc::ToProto(source.fetch_time, added->mutable_fetch_time());
  }
}

}  // namespace

v1::WorkerCommand ToProto(const ReserveAction& action) {
  v1::WorkerCommand command;
  v1::WorkerCommand::Reserve& reserve = *command.mutable_reserve();
  rpc::ToProto(action.id, reserve.mutable_attempt());
  reserve.set_prompt_tokens(static_cast<std::int32_t>(action.prompt_tokens));
  *reserve.mutable_chains() = rpc::ChainsToProto(*action.chains);
  reserve.set_tenant(action.tenant);
  reserve.set_local(action.prefill.ref.name == action.worker.ref.name);
  rpc::ToProto(action.hold_for, reserve.mutable_hold_for());
  AddSources(action.sources, reserve.mutable_sources());
  reserve.set_accepts(static_cast<v1::LossClass>(action.accepts));
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
  AddSources(action.sources, start.mutable_sources());
  start.set_accepts(static_cast<v1::LossClass>(action.accepts));
  start.set_decode_reused_tokens(static_cast<std::int32_t>(action.decode_reused_tokens));
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

namespace {

void ToProto(const Peer& store, v1::WorkerCommand::Store* to) {
  to->set_name(store.ref.name);
  to->set_transfer_address(store.transfer_address);
  to->set_transfer_epoch(store.transfer_epoch);
}

}  // namespace

v1::WorkerCommand ToProto(const StoreAction& action) {
  v1::WorkerCommand command;
  ToProto(action.store, command.mutable_store());
  return command;
}

v1::WorkerCommand ToProto(const PrefetchAction& action) {
  v1::WorkerCommand command;
  v1::WorkerCommand::Prefetch& prefetch = *command.mutable_prefetch();
  const auto& space = action.copy_space.bytes;
  prefetch.set_copy_space(std::string(space.begin(), space.end()));
  prefetch.set_chains(rpc::ChainsToProto(action.chains));
  rpc::ToProto(action.within, prefetch.mutable_within());
  return command;
}

v1::WorkerCommand ToProto(const ReplicateAction& action) {
  v1::WorkerCommand command;
  v1::WorkerCommand::Replicate& replicate = *command.mutable_replicate();
  ToProto(action.from, replicate.mutable_from());
  const auto& space = action.copy_space.bytes;
  replicate.set_copy_space(std::string(space.begin(), space.end()));
  replicate.set_chains(rpc::ChainsToProto(action.chains));
  if (action.parent.has_value())
    replicate.set_parent(rpc::ChainsToProto(std::span(&*action.parent, 1)));
  replicate.set_tenant(action.tenant);
  rpc::ToProto(action.within, replicate.mutable_within());
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

void ToProto(const StoreView& from, v1::StatusResponse::StoreStatus* to) {
  to->set_name(from.info.ref.name);
  to->set_state(from.state);
  to->set_endpoint(from.info.endpoint);
  to->set_transfer_address(from.info.transfer_address);
  to->set_device(from.info.device);
  to->set_pid(from.info.pid);
  to->set_copies_known(from.copies_known);
  to->set_bytes_planned(from.bytes_planned);
  for (const TierLoad& tier : from.load.tiers) rpc::ToProto(tier, to->add_tiers());
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
