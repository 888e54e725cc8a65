// SPDX-License-Identifier: Apache-2.0
#include "decode/decode_member.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "worker/member_parts.h"
#include "worker/store_session.h"

namespace penstock::decode {
namespace {

using Kind = rpc::WorkerAttemptEvent::Kind;

constexpr double kNewest = 0.2;                          // Its weight in a moving mean.
constexpr std::size_t kMeasured = std::size_t{1} << 16;  // Bytes that say something about a link.

// Of one handoff: its bytes by the time in which any of them was being read; 0 for a small one.
double BytesPerSecond(const transfer::HandoffReceiver::Outcome& handoff) {
  if (handoff.bytes < kMeasured) return 0;
  std::vector<std::pair<MonoTime, MonoTime>> reads;
  for (const auto& span : handoff.spans) reads.emplace_back(span.begun, span.verified);
  std::ranges::sort(reads);
  Duration busy{};
  MonoTime until = MonoTime::min();
  for (const auto& [begin, end] : reads) {
    if (end <= until) continue;
    busy += end - std::max(begin, until);
    until = end;
  }
  return busy > Duration() ? static_cast<double>(handoff.bytes) / ToSeconds(busy) : 0;
}

}  // namespace

DecodeMember::DecodeMember(DecodeWorker& worker, Options options) : worker_(worker) {
  rpc::WorkerRegistration registration = std::move(options.registration);
  registration.role = rpc::WorkerRole::kDecode;
  worker::DescribePool(worker.pool_shape(), &registration);
  registration.groups = worker.groups();
  registration.codecs = worker.codecs();
  feed_ = std::make_unique<engine::BlockFeed>(
      worker.loop(), worker.engine().thread(), worker.spaces(), MostLoss(worker.codecs()),
      [this](std::vector<BlockEvent> changes) { session_->SayBlocks(std::move(changes)); });
  session_ = std::make_unique<rpc::SessionClient>(
      worker.loop(), std::move(options.session), std::move(registration),
      rpc::SessionClient::Events{
          .on_reserve = [this](const rpc::ReserveCommand& c) { OnReserve(c); },
          .on_start = [this](const rpc::StartCommand& c) { OnStart(c); },
          .on_release = [this](const Attempt& attempt) { OnRelease(attempt); },
          .on_snapshot = [this] { feed_->Snapshot(); },
          .on_preflight = [](const rpc::PreflightCommand&) {},  // Of prefill workers alone.
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

DecodeMember::~DecodeMember() { worker_.state().set_observer(nullptr); }

void DecodeMember::OnReserve(const rpc::ReserveCommand& command) {
  // KV is needed of all but the last token.
  DecodeState::Order order{.tokens = command.prompt_tokens - 1,
                           .chains = command.chains,
                           .tenant = command.tenant,
                           .local = command.local,
                           .sources = worker::SourcesOf(command.sources),
                           .accepts = command.accepts,
                           .deadline = worker_.loop().Now() + command.hold_for};
  const auto full = static_cast<std::size_t>(order.tokens / worker_.pool_shape().block_tokens);
  if (order.chains.size() > full) order.chains.resize(full);
  // None beyond what the chains name.
  std::erase_if(order.sources, [&](const kvstore::Fetcher::Source& source) {
    return source.end_block > static_cast<std::int32_t>(order.chains.size());
  });
  worker_.state().Reserve(
      command.attempt, std::move(order),
      [this, attempt = command.attempt](const absl::StatusOr<DecodeState::Promise>& promise) {
        if (releasing_) return;
        if (!promise.ok()) {
          return session_->Say(
              {.kind = Kind::kRefused, .attempt = attempt, .error = promise.status()});
        }
        session_->Say({.kind = Kind::kGranted,
                       .attempt = attempt,
                       .grant = promise->grant.number,
                       .reused_tokens = promise->reused_tokens});
      });
}

// It prefills here: with the gateway's call.
void DecodeMember::OnStart(const rpc::StartCommand& command) {
  if (worker_.state().Knows(command.attempt)) {
    session_->Say({.kind = Kind::kAccepted, .attempt = command.attempt});
  } else {
    session_->Say({.kind = Kind::kRefused,
                   .attempt = command.attempt,
                   .error = absl::FailedPreconditionError(
                       absl::StrCat("nothing is reserved for ", ToString(command.attempt)))});
  }
}

void DecodeMember::OnRelease(const Attempt& attempt) {
  releasing_ = true;
  worker_.state().Release(attempt, absl::CancelledError("released by the coordinator"));
  releasing_ = false;
}

void DecodeMember::OnAdopted(const Attempt& attempt,
                             const transfer::HandoffReceiver::Outcome& handoff) {
  metrics_.OnAdopted(handoff);
  if (const double rate = BytesPerSecond(handoff); rate > 0) {
    link_bytes_per_s_ =
        link_bytes_per_s_ == 0 ? rate : link_bytes_per_s_ + kNewest * (rate - link_bytes_per_s_);
  }
  session_->Say({.kind = Kind::kAdopted, .attempt = attempt});
}

void DecodeMember::OnEnded(const Attempt& attempt, DecodeState::End how, const absl::Status& why) {
  metrics_.OnEnded(how);
  if (releasing_) return;
  const Kind kind = how == DecodeState::End::kFinished         ? Kind::kFinished
                    : how == DecodeState::End::kTransferFailed ? Kind::kTransferFailed
                                                               : Kind::kRefused;
  session_->Say({.kind = kind, .attempt = attempt, .error = why});
}

void DecodeMember::WriteMetrics(MetricsWriter& writer) const {
  const engine::Meter& meter = worker_.engine().meter();
  meter.metrics().Write(writer);
  metrics_.Write(worker_.state(), meter.Read().bytes_held, writer);
  worker_.turns().WriteMetrics(writer);
  if (worker_.store() != nullptr) worker_.store()->WriteMetrics(writer);
}

rpc::WorkerLoad DecodeMember::Load() {
  rpc::WorkerLoad load =
      worker::LoadOf(worker_.engine().meter(), worker_.pool_shape(), worker_.store());
  load.live = worker_.state().live();
  load.bytes_draining = worker_.state().bytes_draining();
  load.link_bytes_per_s = link_bytes_per_s_;
  return load;
}

}  // namespace penstock::decode
