// SPDX-License-Identifier: Apache-2.0
#include "sim/sim_session.h"

#include <algorithm>

namespace penstock::sim {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr Duration kPauseMin = milliseconds(100);
constexpr Duration kPauseMax = seconds(2);
constexpr Duration kKeptFor = seconds(10);

}  // namespace

Session::Session(Process& process, Network& network, std::mt19937& random,
                 coordinator::Registration registration, Events events)
    : process_(process),
      network_(network),
      random_(random),
      registration_(std::move(registration)),
      events_(std::move(events)),
      pause_(kPauseMin) {
  timer_ = process_.At(process_.Now(), [this] { Connect(); });
}

Session::~Session() {
  process_.CancelTimer(timer_);
  if (stream_ == nullptr) return;
  stream_->on_down = nullptr;
  stream_->End(StreamCore::kClient, absl::CancelledError("the worker ended"));
}

void Session::Say(coordinator::WorkerEvent event) {
  if (joined_) stream_->SendUp(event);
  kept_.emplace_back(process_.Now(), std::move(event));
  Forget();
}

void Session::SayBlockEvents(std::vector<BlockEvent> events) {
  const std::uint64_t first = std::exchange(next_block_, next_block_ + events.size());
  // What is not sent leaves a hole, and a hole is seen.
  if (joined_) stream_->SendUp(SayBlocks{first, std::move(events)});
}

void Session::SayCopyEvents(std::vector<CopyEvent> events) {
  const std::uint64_t first = std::exchange(next_block_, next_block_ + events.size());
  if (joined_) stream_->SendUp(SayCopies{first, std::move(events)});
}

void Session::SayStored(const std::vector<Chain>& chains) {
  if (chains.empty()) return;
  std::vector<BlockEvent> events;
  for (const Chain& chain : chains) events.push_back({.chain = chain});
  SayBlockEvents(std::move(events));
}

void Session::SaySnapshot(const std::vector<Chain>& chains) {
  using Kind = BlockEvent::Kind;
  std::vector<BlockEvent> events;
  events.push_back({.kind = Kind::kSnapshotBegin});
  for (const Chain& chain : chains) events.push_back({.chain = chain});
  events.push_back({.kind = Kind::kSnapshotEnd});
  SayBlockEvents(std::move(events));
}

void Session::Leave() {
  if (joined_) stream_->SendUp(SayLeave{});
}

void Session::Connect() {
  stream_ = network_.Connect<JoinStream>(process_, kCoordinatorAddress);
  stream_->on_down = [this](const WorkerCommand& command) { OnCommand(command); };
  stream_->OnClosed(StreamCore::kClient, [this](const absl::Status& status) { OnClosed(status); });
  stream_->SendUp(registration_);
}

void Session::OnCommand(const WorkerCommand& command) {
  if (const auto* joined = std::get_if<Joined>(&command)) return OnJoined(joined->report_every);
  if (const auto* reserve = std::get_if<coordinator::ReserveAction>(&command)) {
    return events_.on_reserve(*reserve);
  }
  if (const auto* start = std::get_if<coordinator::StartAction>(&command)) {
    return events_.on_start(*start);
  }
  if (const auto* release = std::get_if<coordinator::ReleaseAction>(&command)) {
    return events_.on_release(release->id);
  }
  if (std::holds_alternative<coordinator::SnapshotAction>(command)) return events_.on_snapshot();
  if (std::holds_alternative<coordinator::DrainedAction>(command)) return events_.on_drained();
  if (const auto* store = std::get_if<coordinator::StoreAction>(&command)) {
    return events_.on_store(*store);
  }
  if (const auto* replicate = std::get_if<coordinator::ReplicateAction>(&command)) {
    return events_.on_replicate(*replicate);
  }
  // Copies of the simulator's stores come as fast from any tier.
  if (std::holds_alternative<coordinator::PrefetchAction>(command)) return;
  // Links are tried by the handoffs themselves: here every pair is good.
  const auto& preflight = std::get<coordinator::PreflightAction>(command);
  if (!joined_) return;
  stream_->SendUp(SayPreflight{
      .decode = preflight.decode.ref.name,
      .decode_epoch = preflight.decode.transfer_epoch,
      .report = {.status = absl::OkStatus(), .transport = "inproc", .round_trip = {}}});
}

void Session::OnJoined(Duration report_every) {
  report_every_ = report_every;
  joined_ = true;
  pause_ = kPauseMin;
  Report();
  Forget();
  for (const auto& [when, event] : kept_) stream_->SendUp(event);
  if (next_block_ == 1) {
    events_.on_snapshot();
  } else if (registration_.role == coordinator::Role::kStore) {
    stream_->SendUp(SayCopies{next_block_, {}});
  } else {
    stream_->SendUp(SayBlocks{next_block_, {}});  // Shows a hole, where there is one.
  }
}

void Session::Report() {
  stream_->SendUp(events_.load());
  timer_ = process_.At(process_.Now() + report_every_, [this] { Report(); });
}

void Session::OnClosed(const absl::Status& status) {
  process_.CancelTimer(timer_);
  joined_ = false;
  stream_->on_down = nullptr;
  stream_ = nullptr;
  if (absl::IsAborted(status)) {
    ++registration_.ref.epoch;
    next_block_ = 1;
  }
  const Duration pause = pause_ / 2 + Duration(random_() % (pause_.count() / 2));
  pause_ = std::min(pause_ * 2, kPauseMax);
  timer_ = process_.At(process_.Now() + pause, [this] { Connect(); });
}

void Session::Forget() {
  while (!kept_.empty() && kept_.front().first + kKeptFor < process_.Now()) kept_.pop_front();
}

}  // namespace penstock::sim
