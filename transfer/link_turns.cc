// SPDX-License-Identifier: Apache-2.0
#include "transfer/link_turns.h"

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"

namespace penstock::transfer {
namespace {

constexpr std::uint64_t kRefused = std::uint64_t{1} << 63;  // Of numbers that no queue gives.

}  // namespace

LinkTurns::Turn& LinkTurns::Turn::operator=(Turn&& other) noexcept {
  if (this == &other) return *this;
  End();
  life_ = std::exchange(other.life_, std::nullopt);
  turns_ = std::exchange(other.turns_, nullptr);
  lane_ = other.lane_;
  id_ = other.id_;
  return *this;
}

bool LinkTurns::Turn::held() const {
  return turns_ != nullptr && !life_->over() && lane_->asked.contains(id_);
}

bool LinkTurns::Turn::begun() const {
  if (turns_ == nullptr || life_->over()) return false;
  const auto it = lane_->asked.find(id_);
  return it != lane_->asked.end() && it->second.begun;
}

void LinkTurns::Turn::End() {
  LinkTurns* const turns = std::exchange(turns_, nullptr);
  if (turns != nullptr && !life_->over()) turns->End(*lane_, id_);
}

LinkTurns::~LinkTurns() {
  for (const auto& [link, lane] : lanes_) loop_.CancelTimer(lane.timer);
}

void LinkTurns::Set(std::string_view link, const LinkQueue::Options& options) {
  CHECK(lanes_.try_emplace(std::string(link), std::string(link), options).second);
}

LinkTurns::Lane& LinkTurns::LaneOf(std::string_view link) {
  const auto it = lanes_.find(link);
  if (it != lanes_.end()) return it->second;
  return lanes_.try_emplace(std::string(link), std::string(link), LinkQueue::Options())
      .first->second;
}

const LinkQueue* LinkTurns::queue(std::string_view link) const {
  const auto it = lanes_.find(link);
  return it == lanes_.end() ? nullptr : &it->second.queue;
}

LinkTurns::Turn LinkTurns::Ask(std::string_view link, MoveClass of, std::uint64_t bytes,
                               MonoTime deadline, Begin begin) {
  Lane& lane = LaneOf(link);
  Turn turn;
  turn.life_ = life_.watch();
  turn.turns_ = this;
  turn.lane_ = &lane;
  if (const auto at_once = lane.queue.AskAndStart(of, bytes); at_once.has_value()) {
    turn.id_ = *at_once;
    lane.asked[turn.id_] = {.of = of, .bytes = bytes, .begin = nullptr};
    StartOne(lane, {.id = turn.id_, .waited = {}});
    return turn;
  }
  const absl::StatusOr<LinkQueue::MoveId> id = lane.queue.Ask(of, bytes, deadline, loop_.Now());
  turn.id_ = id.ok() ? *id : LinkQueue::MoveId{kRefused | ++lane.refused};
  lane.asked[turn.id_] = {.of = of, .bytes = bytes, .begin = std::move(begin)};
  if (!id.ok()) {
    loop_.Post(life_.Guard(
        [this, &lane, refused = turn.id_, why = id.status()] { Fail(lane, refused, why); }));
    return turn;
  }
  // Of those that wait none may begin, or Pump is on its way: so it is this one, or none.
  if (!lane.pumping) {
    if (const auto started = lane.queue.Start(loop_.Now()); started.has_value()) {
      CHECK(started->id == *id);
      StartOne(lane, *started);
      lane.asked.at(*id).begin = nullptr;
      return turn;
    }
  }
  SetTimer(lane);
  return turn;
}

void LinkTurns::StartOne(Lane& lane, const LinkQueue::Started& started) {
  Asked& asked = lane.asked.at(started.id);
  asked.begun = true;
  Counts& counts = lane.counts[static_cast<std::size_t>(asked.of)];
  ++counts.turns;
  counts.bytes += asked.bytes;
  counts.waited += started.waited;
  // Requests have spans of their own for what they wait for.
  if (started.waited == Duration() || asked.of <= MoveClass::kFetch) return;
  Trace(spans_, {.name = SpanName::kTurn,
                 .begin = loop_.Now() - started.waited,
                 .end = loop_.Now(),
                 .bytes = asked.bytes,
                 .peer = lane.link,
                 .text = ToString(asked.of)});
}

void LinkTurns::PumpSoon(Lane& lane) {
  if (!std::exchange(lane.pumping, true)) loop_.Post(life_.Guard([this, &lane] { Pump(lane); }));
}

void LinkTurns::Pump(Lane& lane) {
  const Life::Watch watch = life_.watch();
  while (const auto started = lane.queue.Start(loop_.Now())) {
    StartOne(lane, *started);
    const Begin begin = std::exchange(lane.asked.at(started->id).begin, nullptr);
    begin(absl::OkStatus());
    if (watch.over()) return;
  }
  lane.pumping = false;
}

void LinkTurns::SetTimer(Lane& lane) {
  const MonoTime next = lane.queue.NextDeadline();
  if (next >= lane.timer_at) return;  // It looks again then.
  loop_.CancelTimer(lane.timer);
  lane.timer_at = next;
  lane.timer = loop_.At(next, [this, &lane] { Expire(lane); });
}

void LinkTurns::Expire(Lane& lane) {
  lane.timer_at = MonoTime::max();
  const Life::Watch watch = life_.watch();
  PumpSoon(lane);  // What they would have needed may be another's.
  for (const LinkQueue::MoveId id : lane.queue.Expire(loop_.Now())) {
    Fail(lane, id,
         absl::DeadlineExceededError(absl::StrCat("no turn on link ", lane.link, " in time")));
    if (watch.over()) return;
  }
  SetTimer(lane);
}

void LinkTurns::Fail(Lane& lane, LinkQueue::MoveId id, const absl::Status& why) {
  const auto it = lane.asked.find(id);
  if (it == lane.asked.end()) return;  // It ended meanwhile.
  const Asked asked = std::move(it->second);
  lane.asked.erase(it);
  ++lane.counts[static_cast<std::size_t>(asked.of)].expired;
  asked.begin(why);
}

void LinkTurns::End(Lane& lane, LinkQueue::MoveId id) {
  if (lane.asked.erase(id) == 0) return;  // Its deadline came.
  lane.queue.End(id);
  if (lane.queue.anything_waits()) PumpSoon(lane);
}

void LinkTurns::WriteMetrics(MetricsWriter& writer) const {
  constexpr std::string_view kWaiting = "penstock_link_waiting";
  constexpr std::string_view kUnderWay = "penstock_link_under_way_bytes";
  constexpr std::string_view kTurns = "penstock_link_turns_total";
  constexpr std::string_view kBytes = "penstock_link_bytes_total";
  constexpr std::string_view kWait = "penstock_link_wait_seconds_total";
  constexpr std::string_view kExpired = "penstock_link_expired_total";
  constexpr std::string_view kWaitingHelp = "Movements that wait for their turn";
  constexpr std::string_view kUnderWayHelp = "Bytes that move";
  constexpr std::string_view kTurnsHelp = "Movements begun";
  constexpr std::string_view kBytesHelp = "Of those";
  constexpr std::string_view kWaitHelp = "What they waited before, in all";
  constexpr std::string_view kExpiredHelp =
      "Movements that got no turn by their deadline, or at all";
  writer.Declare(MetricKind::kGauge, kWaiting, kWaitingHelp);
  writer.Declare(MetricKind::kGauge, kUnderWay, kUnderWayHelp);
  writer.Declare(MetricKind::kCounter, kTurns, kTurnsHelp);
  writer.Declare(MetricKind::kCounter, kBytes, kBytesHelp);
  writer.Declare(MetricKind::kCounter, kWait, kWaitHelp);
  writer.Declare(MetricKind::kCounter, kExpired, kExpiredHelp);
  for (const auto& [link, lane] : lanes_) {
    for (std::size_t c = 0; c < kMoveClasses; ++c) {
      const auto of = static_cast<MoveClass>(c);
      const Counts& counts = lane.counts[c];
      if (counts.turns + counts.expired + lane.queue.waiting(of) == 0) continue;
      const MetricLabels labels = {{"class", std::string(ToString(of))}, {"link", link}};
      writer.Gauge(kWaiting, kWaitingHelp, static_cast<double>(lane.queue.waiting(of)), labels);
      writer.Gauge(kUnderWay, kUnderWayHelp, static_cast<double>(lane.queue.under_way(of).bytes),
                   labels);
      writer.Counter(kTurns, kTurnsHelp, static_cast<double>(counts.turns), labels);
      writer.Counter(kBytes, kBytesHelp, static_cast<double>(counts.bytes), labels);
      writer.Counter(kWait, kWaitHelp, ToSeconds(counts.waited), labels);
      writer.Counter(kExpired, kExpiredHelp, static_cast<double>(counts.expired), labels);
    }
  }
}

}  // namespace penstock::transfer
