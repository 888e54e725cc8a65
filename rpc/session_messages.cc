// SPDX-License-Identifier: Apache-2.0
#include "rpc/session_messages.h"

#include <string>

#include "base/status.h"
#include "rpc/convert.h"

namespace penstock::rpc {
namespace {

constexpr std::int64_t kSourcesMax = 4096;

template <typename Tag>
std::string BytesOf(const Digest128<Tag>& digest) {
  return {reinterpret_cast<const char*>(digest.bytes.data()), digest.bytes.size()};
}

}  // namespace

v1::WorkerMessage ToMessage(const WorkerRegistration& from, std::uint64_t session_epoch,
                            std::uint64_t term) {
  v1::WorkerMessage message;
  v1::WorkerMessage::Register& to = *message.mutable_register_();
  to.set_name(from.name);
  to.set_session_epoch(session_epoch);
  to.set_role(from.role == WorkerRole::kPrefill  ? v1::ROLE_PREFILL
              : from.role == WorkerRole::kDecode ? v1::ROLE_DECODE
                                                 : v1::ROLE_STORE);
  to.set_model(from.model);
  for (const auto& [name, value] : from.identity) {
    v1::Identity::Field* const field = to.mutable_identity()->add_fields();
    field->set_name(name);
    field->set_value(value);
  }
  to.set_block_tokens(from.block_tokens);
  to.set_endpoint(from.endpoint);
  to.set_transfer_address(from.transfer_address);
  to.set_transfer_epoch(from.transfer_epoch);
  to.set_kv_bytes_per_token(from.kv_bytes_per_token);
  to.set_blocks_total(from.blocks_total);
  to.set_sequences_max(from.sequences_max);
  to.set_context_tokens(from.context_tokens);
  to.set_device(from.device);
  to.set_pid(from.pid);
  to.set_term(term);
  for (const StoredGroup& group : from.groups) {
    v1::WorkerMessage::StoredGroup* const added = to.add_groups();
    added->set_copy_space(BytesOf(group.copy_spaces[0]));
    std::string lossy;
    for (std::size_t i = 1; i < kLossClasses; ++i) lossy += BytesOf(group.copy_spaces[i]);
    added->set_lossy_copy_spaces(lossy);
    added->set_window_tokens(static_cast<std::int32_t>(group.window_tokens));
    added->set_block_bytes(group.block_bytes);
  }
  for (const CodecLoss& codec : from.codecs) {
    v1::WorkerMessage::CodecLoss* const added = to.add_codecs();
    added->set_codec(codec.codec);
    added->set_loss(static_cast<v1::LossClass>(codec.loss));
  }
  return message;
}

v1::WorkerMessage ToMessage(const WorkerLoad& from) {
  v1::WorkerMessage message;
  v1::WorkerMessage::Load& to = *message.mutable_load();
  to.set_ready(from.ready);
  to.set_sequences(from.sequences);
  to.set_blocks_used(from.blocks_used);
  to.set_prefill_tokens_per_s(from.prefill_tokens_per_s);
  to.set_link_bytes_per_s(from.link_bytes_per_s);
  to.set_step_seconds(from.step_seconds);
  for (const Attempt& attempt : from.live) ToProto(attempt, to.add_live());
  to.set_bytes_held(from.bytes_held);
  to.set_bytes_draining(from.bytes_draining);
  for (const FetchRate& rate : from.fetches) {
    v1::WorkerMessage::FetchRate* const added = to.add_fetches();
    added->set_store(rate.store);
    added->set_tier(static_cast<v1::Tier>(rate.tier));
    added->set_codec(rate.codec);
    added->set_bytes_per_s(rate.bytes_per_s);
  }
  for (const TierLoad& tier : from.tiers) ToProto(tier, to.add_tiers());
  return message;
}

v1::WorkerMessage ToMessage(const WorkerAttemptEvent& from) {
  v1::WorkerMessage message;
  v1::AttemptEvent& to = *message.mutable_attempt();
  ToProto(from.attempt, to.mutable_attempt());
  to.set_kind(static_cast<v1::AttemptEvent::Kind>(static_cast<int>(from.kind) + 1));
  to.set_grant(from.grant);
  to.set_reused_tokens(from.reused_tokens);
  if (!from.error.ok()) ToProto(from.error, to.mutable_error());
  return message;
}

v1::WorkerMessage ToMessage(std::uint64_t first, std::span<const BlockEvent> events) {
  v1::WorkerMessage message;
  message.mutable_blocks()->set_first(first);
  for (const BlockEvent& event : events) {
    v1::BlockEvent* const to = message.mutable_blocks()->add_events();
    to->set_kind(static_cast<v1::BlockEvent::Kind>(static_cast<int>(event.kind) + 1));
    to->set_ends_prefix(event.ends_prefix);
    if (event.kind == BlockEvent::Kind::kStored || event.kind == BlockEvent::Kind::kRemoved) {
      to->set_chain(BytesOf(event.chain));
    }
  }
  return message;
}

v1::WorkerMessage ToMessage(std::uint64_t first, std::span<const CopyEvent> events) {
  v1::WorkerMessage message;
  message.mutable_copies()->set_first(first);
  for (const CopyEvent& event : events) {
    v1::CopyEvent* const to = message.mutable_copies()->add_events();
    to->set_kind(static_cast<v1::CopyEvent::Kind>(static_cast<int>(event.kind) + 1));
    const bool stored = event.kind == CopyEvent::Kind::kStored;
    if (stored || event.kind == CopyEvent::Kind::kRemoved) to->set_name(BytesOf(event.name));
    if (!stored) continue;
    to->set_tier(static_cast<v1::Tier>(event.tier));
    to->set_codec(event.codec);
    to->set_bytes(event.bytes);
    if (event.parent.has_value()) to->set_parent(BytesOf(*event.parent));
  }
  return message;
}

namespace {

absl::StatusOr<std::vector<BlockSource>> Parse(
    const google::protobuf::RepeatedPtrField<v1::Source>& from) {
  std::vector<BlockSource> sources;
  RETURN_IF_ERROR(CheckRange("sources", from.size(), 0, kSourcesMax));
  for (const v1::Source& source : from) {
    // In order.
    const std::int32_t behind = sources.empty() ? 0 : sources.back().end_block;
    RETURN_IF_ERROR(CheckRange("source.first_block", source.first_block(), behind, 1 << 30));
    RETURN_IF_ERROR(
        CheckRange("source.end_block", source.end_block(), source.first_block() + 1, 1 << 30));
    ASSIGN_OR_RETURN(const Duration within,
                     FromProto("source.compute_within", source.compute_within()));
    ASSIGN_OR_RETURN(const Duration fetch_time,
                     FromProto("source.fetch_time", source.fetch_time()));
    ASSIGN_OR_RETURN(const LossClass loss, FromProto("source.loss", source.loss()));
    sources.push_back({.store = source.store(),
                       .transfer_address = source.transfer_address(),
                       .transfer_epoch = source.transfer_epoch(),
                       .first_block = source.first_block(),
                       .end_block = source.end_block(),
                       .loss = loss,
                       .compute_within = within,
                       .fetch_time = fetch_time});
  }
  return sources;
}

}  // namespace

absl::StatusOr<ReserveCommand> Parse(const v1::WorkerCommand::Reserve& from) {
  ReserveCommand to;
  ASSIGN_OR_RETURN(to.attempt, FromProto(from.attempt()));
  RETURN_IF_ERROR(CheckRange("reserve.prompt_tokens", from.prompt_tokens(), 1, 1 << 30));
  to.prompt_tokens = from.prompt_tokens();
  ASSIGN_OR_RETURN(to.chains, ChainsFromProto(from.chains()));
  to.tenant = from.tenant();
  to.local = from.local();
  ASSIGN_OR_RETURN(to.hold_for, FromProto("reserve.hold_for", from.hold_for()));
  ASSIGN_OR_RETURN(to.sources, Parse(from.sources()));
  ASSIGN_OR_RETURN(to.accepts, FromProto("reserve.accepts", from.accepts()));
  return to;
}

absl::StatusOr<StartCommand> Parse(const v1::WorkerCommand::Start& from) {
  StartCommand to;
  ASSIGN_OR_RETURN(to.attempt, FromProto(from.attempt()));
  RETURN_IF_ERROR(CheckRange("start.prompt_tokens", from.prompt_tokens(), 1, 1 << 30));
  to.prompt_tokens = from.prompt_tokens();
  RETURN_IF_ERROR(CheckRange("start.decode_reused_tokens", from.decode_reused_tokens(), 0,
                             from.prompt_tokens()));
  to.decode_reused_tokens = from.decode_reused_tokens();
  to.grant_epoch = from.grant().epoch();
  to.grant_number = from.grant().number();
  to.decode_name = from.decode_name();
  to.decode_transfer_address = from.decode_transfer_address();
  ASSIGN_OR_RETURN(to.transfer_within, FromProto("start.transfer_within", from.transfer_within()));
  ASSIGN_OR_RETURN(to.hold_for, FromProto("start.hold_for", from.hold_for()));
  ASSIGN_OR_RETURN(const std::vector<Chain> last, ChainsFromProto(from.last_chain()));
  RETURN_IF_ERROR(
      CheckRange("chains in start.last_chain", static_cast<std::int64_t>(last.size()), 0, 1));
  if (!last.empty()) to.last_chain = last[0];
  ASSIGN_OR_RETURN(to.sources, Parse(from.sources()));
  ASSIGN_OR_RETURN(to.accepts, FromProto("start.accepts", from.accepts()));
  return to;
}

namespace {

absl::StatusOr<Namespace> CopySpaceFrom(const char* name, const std::string& bytes) {
  Namespace space;
  RETURN_IF_ERROR(CheckRange(name, static_cast<std::int64_t>(bytes.size()), 16, 16));
  std::ranges::copy(bytes, space.bytes.begin());
  return space;
}

}  // namespace

StoreCommand Parse(const v1::WorkerCommand::Store& from) {
  return {.name = from.name(),
          .transfer_address = from.transfer_address(),
          .transfer_epoch = from.transfer_epoch()};
}

absl::StatusOr<ReplicateCommand> Parse(const v1::WorkerCommand::Replicate& from) {
  ReplicateCommand to = {.from = Parse(from.from()), .tenant = from.tenant()};
  ASSIGN_OR_RETURN(to.copy_space,
                   CopySpaceFrom("length of replicate.copy_space", from.copy_space()));
  ASSIGN_OR_RETURN(to.chains, ChainsFromProto(from.chains()));
  ASSIGN_OR_RETURN(const std::vector<Chain> parent, ChainsFromProto(from.parent()));
  RETURN_IF_ERROR(
      CheckRange("chains in replicate.parent", static_cast<std::int64_t>(parent.size()), 0, 1));
  if (!parent.empty()) to.parent = parent[0];
  ASSIGN_OR_RETURN(to.within, FromProto("replicate.within", from.within()));
  return to;
}

absl::StatusOr<PrefetchCommand> Parse(const v1::WorkerCommand::Prefetch& from) {
  PrefetchCommand to;
  ASSIGN_OR_RETURN(to.copy_space,
                   CopySpaceFrom("length of prefetch.copy_space", from.copy_space()));
  ASSIGN_OR_RETURN(to.chains, ChainsFromProto(from.chains()));
  ASSIGN_OR_RETURN(to.within, FromProto("prefetch.within", from.within()));
  return to;
}

}  // namespace penstock::rpc
