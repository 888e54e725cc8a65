// SPDX-License-Identifier: Apache-2.0
#include "prefill/prefill_member.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/sha256.h"
#include "worker/member_parts.h"

namespace penstock::prefill {
namespace {

using Kind = rpc::WorkerAttemptEvent::Kind;

constexpr Duration kProbeTime = std::chrono::seconds(10);
constexpr Duration kMeasureTime = std::chrono::seconds(9);  // What is slow is still good.

transfer::Peer PeerOf(const rpc::PreflightCommand& command) {
  return {command.peer, command.peer_epoch};
}

// Of this worker's probe grants, unlike those of others that a decode worker hears of: workers of
// one host begin in the same millisecond, so the name is a part of it.
std::uint64_t FirstProbe(const rpc::WorkerRegistration& self) {
  const std::string who = absl::StrCat(self.name, " ", self.transfer_epoch);
  const Sha256Digest digest = Sha256Of(who.data(), who.size());
  std::uint64_t first;
  std::memcpy(&first, digest.data(), sizeof(first));
  return first >> 1;  // Below transfer::kProbeGrant; adding may wrap into it, which is set anyway.
}

}  // namespace

PrefillMember::PrefillMember(PrefillWorker& worker, Options options)
    : worker_(worker), first_probe_(FirstProbe(options.registration)) {
  rpc::WorkerRegistration registration = std::move(options.registration);
  registration.role = rpc::WorkerRole::kPrefill;
  worker::DescribePool(worker.pool_shape(), &registration);
  registration.groups = worker.groups();
  registration.codecs = worker.codecs();
  feed_ = std::make_unique<engine::BlockFeed>(
      worker.loop(), worker.engine().thread(), worker.spaces(), MostLoss(worker.codecs()),
      [this](std::vector<BlockEvent> changes) { session_->SayBlocks(std::move(changes)); });
  session_ = std::make_unique<rpc::SessionClient>(
      worker.loop(), std::move(options.session), std::move(registration),
      rpc::SessionClient::Events{
          // Of decode workers alone.
          .on_reserve =
              [this](const rpc::ReserveCommand& c) {
                session_->Say({.kind = Kind::kRefused,
                               .attempt = c.attempt,
                               .error = absl::FailedPreconditionError("not a decode worker")});
              },
          .on_start = [this](const rpc::StartCommand& c) { OnStart(c); },
          .on_release = [this](const Attempt& attempt) { OnRelease(attempt); },
          .on_snapshot = [this] { feed_->Snapshot(); },
          .on_preflight = [this](const rpc::PreflightCommand& c) { OnPreflight(c); },
          .on_drained = [this] { Leave(); },
          .on_store =
              [this](const rpc::StoreCommand& c) {
                if (worker_.store() != nullptr) worker_.store()->SetStore(worker::AddressOf(c));
              },
          .load = [this] { return Load(); },
          .on_refused = options.on_end,
          .on_left = [on_end = options.on_end] { on_end(absl::OkStatus()); }});
  worker.state().set_observer(this);
}

PrefillMember::~PrefillMember() {
  worker_.state().set_observer(nullptr);
  const std::map<Attempt, rpc::PreflightCommand> probes = std::exchange(probes_, {});
  for (const auto& [attempt, command] : probes) worker_.state().Release(attempt);
}

void PrefillMember::OnStart(const rpc::StartCommand& command) {
  const absl::Status status = worker_.state().Start(
      command.attempt, {.grant = {.epoch = command.grant_epoch, .number = command.grant_number},
                        .decode_name = command.decode_name,
                        .decode_address = command.decode_transfer_address,
                        .deadline = worker_.loop().Now() + command.hold_for,
                        .last_chain = command.last_chain,
                        .decode_reused_tokens = command.decode_reused_tokens,
                        .measure_until = {},
                        .sources = worker::SourcesOf(command.sources),
                        .accepts = command.accepts});
  session_->Say({.kind = status.ok() ? Kind::kAccepted : Kind::kRefused,
                 .attempt = command.attempt,
                 .error = status});
}

void PrefillMember::OnRelease(const Attempt& attempt) {
  releasing_ = true;
  worker_.state().Release(attempt);
  releasing_ = false;
}

// Identities are compared as the channel opens.
void PrefillMember::OnPreflight(const rpc::PreflightCommand& command) {
  const transfer::Peer peer = PeerOf(command);
  // Asked again, by a coordinator that has just begun: the answer comes.
  if (std::ranges::any_of(probes_, [&](const auto& probe) { return PeerOf(probe.second) == peer; }))
    return;
  const std::uint64_t number = next_probe_++;
  // Of no request: those have no spaces in their names.
  const Attempt attempt = {absl::StrCat("preflight ", number), 1};
  const MonoTime now = worker_.loop().Now();
  const MonoTime deadline = now + kProbeTime;
  probes_[attempt] = command;
  const auto known = worker_.channels().Find(peer);
  const bool measured = known.has_value() && known->figures.has_value();
  const std::uint64_t probe =
      transfer::kProbeGrant | (first_probe_ + number * (transfer::PairMeter::kGrants + 1));
  const absl::Status started = worker_.state().Start(
      attempt, {.grant = {.epoch = command.peer_epoch, .number = probe},
                .decode_name = command.peer,
                .decode_address = command.peer_transfer_address,
                .deadline = deadline,
                .measure_until = measured ? std::nullopt : std::optional(now + kMeasureTime)});
  if (!started.ok()) return OnProbed(attempt, {.status = started, .handoff = {}});
  // Not a whole block, which would be kept.
  const auto tokens = static_cast<std::size_t>(std::max(1, worker_.pool_shape().block_tokens - 1));
  const absl::Status submitted = worker_.state().Submit(
      attempt,
      {.tokens = std::vector<TokenId>(tokens, TokenId{0}),
       .root = {},
       .priority = std::numeric_limits<std::int32_t>::max()},
      deadline,
      [this, attempt](const PrefillState::Outcome& outcome) { OnProbed(attempt, outcome); });
  if (!submitted.ok()) OnProbed(attempt, {.status = submitted, .handoff = {}});
}

void PrefillMember::OnProbed(const Attempt& attempt, const PrefillState::Outcome& outcome) {
  const auto it = probes_.find(attempt);
  if (it == probes_.end()) return;
  const rpc::PreflightCommand command = std::move(it->second);
  probes_.erase(it);
  rpc::PreflightResult result = {.status = outcome.status};
  const auto known = worker_.channels().Find(PeerOf(command));
  if (outcome.status.ok() && known.has_value()) {
    const transfer::PairFigures figures = known->figures.value_or(outcome.handoff.figures);
    if (figures.bytes_per_s > 0) worker_.channels().Remember(PeerOf(command), figures);
    result.transport = transfer::ToString(known->kind);
    result.round_trip = figures.round_trip;
    result.bytes_per_s = figures.bytes_per_s;
  }
  session_->SayPreflight(command, result);
}

void PrefillMember::OnComputed(const Attempt& attempt) {
  if (probes_.contains(attempt)) return;
  metrics_.OnComputed();
  session_->Say({.kind = Kind::kComputed, .attempt = attempt});
}

void PrefillMember::OnEnded(const Attempt& attempt, PrefillState::End how,
                            const absl::Status& why) {
  if (probes_.contains(attempt)) return;
  metrics_.OnEnded(how);
  if (releasing_) return;
  session_->Say(
      {.kind = how == PrefillState::End::kTransferFailed ? Kind::kTransferFailed : Kind::kRefused,
       .attempt = attempt,
       .error = why});
}

void PrefillMember::WriteMetrics(MetricsWriter& writer) const {
  const engine::Meter& meter = worker_.engine().meter();
  meter.metrics().Write(writer);
  metrics_.Write(worker_.state(), meter.Read().bytes_held, writer);
  worker_.turns().WriteMetrics(writer);
  if (worker_.store() != nullptr) worker_.store()->WriteMetrics(writer);
}

rpc::WorkerLoad PrefillMember::Load() {
  rpc::WorkerLoad load =
      worker::LoadOf(worker_.engine().meter(), worker_.pool_shape(), worker_.store());
  load.live = worker_.state().live();
  std::erase_if(load.live, [this](const Attempt& attempt) { return probes_.contains(attempt); });
  return load;
}

}  // namespace penstock::prefill
