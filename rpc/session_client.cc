// SPDX-License-Identifier: Apache-2.0
#include "rpc/session_client.h"

#include <algorithm>
#include <deque>
#include <random>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/log.h"
#include "base/status.h"
#include "grpcpp/grpcpp.h"
#include "penstock/v1/cluster.grpc.pb.h"
#include "rpc/channel.h"
#include "rpc/client_stream.h"
#include "rpc/convert.h"
#include "rpc/session_messages.h"

namespace penstock::rpc {
namespace {

using JoinStream = ClientStream<v1::WorkerMessage, v1::WorkerCommand>;

constexpr std::size_t kBlockEventsMax = 1024;  // Of one message.

}  // namespace

class SessionClient::Impl {
 public:
  Impl(Loop& loop, Options options, WorkerRegistration registration, Events events)
      : loop_(loop),
        options_(std::move(options)),
        registration_(std::move(registration)),
        events_(std::move(events)),
        random_(static_cast<std::minstd_rand::result_type>(
            std::hash<std::string>()(registration_.name) + registration_.transfer_epoch)),
        pause_(options_.pause_min),
        epoch_(NewEpoch()) {
    CHECK(!options_.coordinators.empty());
    for (const std::string& address : options_.coordinators) {
      stubs_.push_back(v1::Cluster::NewStub(MakeChannel(address)));
    }
    *self_ = this;
    timer_ = loop_.At(loop_.Now(), [this] { Connect(); });
  }
  ~Impl() {
    *self_ = nullptr;
    loop_.CancelTimer(timer_);
    if (stream_ == nullptr) return;
    stream_->Abandon();
  }

  void Say(WorkerAttemptEvent event) {
    if (joined_) stream_->Send(ToMessage(event));
    kept_.emplace_back(loop_.Now(), std::move(event));
    Forget();
  }
  // Of blocks or of copies: numbered in one row.
  template <typename Event>
  void SayEvents(const std::vector<Event>& events) {
    for (std::size_t begin = 0; begin < events.size(); begin += kBlockEventsMax) {
      const std::size_t end = std::min(events.size(), begin + kBlockEventsMax);
      const std::uint64_t first = next_block_;
      next_block_ += end - begin;
      // What is not sent leaves a hole, and a hole is seen.
      if (!joined_ || !stream_->has_room()) continue;
      stream_->Send(ToMessage(first, std::span(events).subspan(begin, end - begin)));
    }
  }
  void SayPreflight(const PreflightCommand& command, const PreflightResult& result) {
    if (!joined_) return;  // It is asked again.
    v1::WorkerMessage message;
    v1::Preflight::Result& to = *message.mutable_preflight();
    to.set_peer(command.peer);
    to.set_peer_epoch(command.peer_epoch);
    if (!result.status.ok()) ToProto(result.status, to.mutable_error());
    to.set_transport(result.transport);
    ToProto(result.round_trip, to.mutable_round_trip());
    to.set_bytes_per_s(result.bytes_per_s);
    stream_->Send(std::move(message));
  }
  void SayLoad() {
    if (joined_) stream_->Send(ToMessage(events_.load()));
  }
  void Leave() {
    left_ = true;
    if (!joined_) return events_.on_left();
    v1::WorkerMessage message;
    message.mutable_leave();
    stream_->Send(std::move(message));
    stream_->HalfClose();
  }
  bool joined() const { return joined_; }

 private:
  void Connect() {
    const std::uint64_t number = ++streams_;
    // Of an earlier stream nothing is of interest any more.
    const auto mine = [self = self_, number] {
      return *self != nullptr && (*self)->streams_ == number ? *self : nullptr;
    };
    stream_ = JoinStream::Make(loop_, {.queue_max = 1 << 16},
                               {.on_message =
                                    [mine](const v1::WorkerCommand& command) {
                                      if (Impl* const impl = mine()) impl->OnCommand(command);
                                    },
                                .on_closed =
                                    [mine](const absl::Status& status) {
                                      if (Impl* const impl = mine()) impl->OnClosed(status);
                                    }},
                               [this](grpc::ClientContext* context, JoinStream* reactor) {
                                 stubs_[at_]->async()->Join(context, reactor);
                               });
    stream_->Send(ToMessage(registration_, epoch_, term_));
  }

  void OnCommand(const v1::WorkerCommand& command) {
    const absl::Status status = Handle(command);
    if (status.ok()) return;
    LOG_WARNING("command of the coordinator refused", {{"reason", status.ToString()}});
  }
  absl::Status Handle(const v1::WorkerCommand& command) {
    const bool welcome = command.has_joined() || command.has_elsewhere();
    if (!joined_ && !welcome) return absl::FailedPreconditionError("it has not said joined");
    switch (command.command_case()) {
      case v1::WorkerCommand::kJoined:
        return OnJoined(command.joined());
      case v1::WorkerCommand::kElsewhere:
        leader_ = command.elsewhere().leader();
        return absl::OkStatus();
      case v1::WorkerCommand::kReserve: {
        ASSIGN_OR_RETURN(const ReserveCommand reserve, Parse(command.reserve()));
        events_.on_reserve(reserve);
        return absl::OkStatus();
      }
      case v1::WorkerCommand::kStart: {
        ASSIGN_OR_RETURN(const StartCommand start, Parse(command.start()));
        events_.on_start(start);
        return absl::OkStatus();
      }
      case v1::WorkerCommand::kRelease: {
        ASSIGN_OR_RETURN(const Attempt attempt, FromProto(command.release().attempt()));
        events_.on_release(attempt);
        return absl::OkStatus();
      }
      case v1::WorkerCommand::kSnapshot:
        events_.on_snapshot();
        return absl::OkStatus();
      case v1::WorkerCommand::kPreflight:
        events_.on_preflight(
            {.peer = command.preflight().peer(),
             .peer_epoch = command.preflight().peer_epoch(),
             .peer_transfer_address = command.preflight().peer_transfer_address()});
        return absl::OkStatus();
      case v1::WorkerCommand::kDrained:
        events_.on_drained();
        return absl::OkStatus();
      case v1::WorkerCommand::kStore:
        if (events_.on_store != nullptr) {
          events_.on_store(Parse(command.store()));
        }
        return absl::OkStatus();
      case v1::WorkerCommand::kPrefetch: {
        ASSIGN_OR_RETURN(const PrefetchCommand prefetch, Parse(command.prefetch()));
        if (events_.on_prefetch != nullptr) events_.on_prefetch(prefetch);
        return absl::OkStatus();
      }
      case v1::WorkerCommand::kReplicate: {
        ASSIGN_OR_RETURN(ReplicateCommand replicate, Parse(command.replicate()));
        if (events_.on_replicate != nullptr) events_.on_replicate(std::move(replicate));
        return absl::OkStatus();
      }
      case v1::WorkerCommand::COMMAND_NOT_SET:
        break;
    }
    return absl::UnimplementedError("a command that is not known here");
  }

  absl::Status OnJoined(const v1::WorkerCommand::Joined& joined) {
    if (joined.term() < term_) {
      stream_->Cancel();  // What it wants is not heard: commands before Joined are none.
      return absl::AbortedError(
          absl::StrCat("its term is ", joined.term(), ", followed was ", term_));
    }
    term_ = joined.term();
    ASSIGN_OR_RETURN(report_every_, FromProto("joined.report_every", joined.report_every()));
    report_every_ = std::max<Duration>(report_every_, std::chrono::milliseconds(10));
    LOG_INFO("joined",
             {{"coordinator", options_.coordinators[at_]}, {"epoch", epoch_}, {"term", term_}});
    joined_ = true;
    pause_ = options_.pause_min;
    Report();
    Forget();
    for (const auto& [when, event] : kept_) stream_->Send(ToMessage(event));
    if (next_block_ == 1) {
      events_.on_snapshot();
    } else {
      // Shows a hole, where there is one.
      stream_->Send(registration_.role == WorkerRole::kStore
                        ? ToMessage(next_block_, std::span<const CopyEvent>())
                        : ToMessage(next_block_, std::span<const BlockEvent>()));
    }
    return absl::OkStatus();
  }

  void Report() {
    SayLoad();
    timer_ = loop_.At(loop_.Now() + report_every_, [this] { Report(); });
  }

  void OnClosed(const absl::Status& status) {
    loop_.CancelTimer(timer_);
    const bool was_joined = std::exchange(joined_, false);
    stream_ = nullptr;
    if (left_) {
      if (was_joined) events_.on_left();
      return;
    }
    if (!was_joined && (absl::IsInvalidArgument(status) || absl::IsFailedPrecondition(status))) {
      return events_.on_refused(status);
    }
    if (was_joined || absl::IsAborted(status)) {
      LOG_WARNING("coordinator lost", {{"reason", status.ToString()}});
    }
    if (absl::IsAborted(status)) {
      epoch_ = std::max(epoch_ + 1, NewEpoch());
      next_block_ = 1;
    }
    // Pauses grow once all have been tried.
    const bool round = NextCoordinator();
    const double share = std::uniform_real_distribution<>(0.5, 1)(random_);
    const auto pause =
        std::chrono::duration_cast<Duration>((round ? pause_ : options_.pause_min) * share);
    if (round) pause_ = std::min(pause_ * 2, options_.pause_max);
    timer_ = loop_.At(loop_.Now() + pause, [this] { Connect(); });
  }

  // The one that is said to lead, or the next; true: all have been tried.
  bool NextCoordinator() {
    const auto& all = options_.coordinators;
    const auto named = std::ranges::find(all, std::exchange(leader_, ""));
    at_ =
        named != all.end() ? static_cast<std::size_t>(named - all.begin()) : (at_ + 1) % all.size();
    return ++tries_ % all.size() == 0;
  }

  void Forget() {
    while (!kept_.empty() && (kept_.size() > options_.kept_max ||
                              kept_.front().first + options_.kept_for < loop_.Now())) {
      kept_.pop_front();
    }
  }

  Loop& loop_;
  const Options options_;
  const WorkerRegistration registration_;
  const Events events_;
  std::vector<std::unique_ptr<v1::Cluster::Stub>> stubs_;  // Of each coordinator.
  std::size_t at_ = 0;                                     // The one that is tried, or joined.
  std::size_t tries_ = 0;
  std::string leader_;      // As the last one said; empty: it did not.
  std::uint64_t term_ = 0;  // The highest that was followed.
  const std::shared_ptr<Impl*> self_ = std::make_shared<Impl*>();  // Null once destroyed.
  std::minstd_rand random_;
  std::shared_ptr<JoinStream> stream_;  // Null while pausing.
  std::uint64_t streams_ = 0;
  bool joined_ = false;
  bool left_ = false;
  Duration pause_;
  Duration report_every_{};
  Loop::TimerId timer_{};  // The next report, or the next try.
  std::uint64_t epoch_;
  std::uint64_t next_block_ = 1;
  std::deque<std::pair<MonoTime, WorkerAttemptEvent>> kept_;
};

SessionClient::SessionClient(Loop& loop, Options options, WorkerRegistration registration,
                             Events events)
    : impl_(std::make_unique<Impl>(loop, std::move(options), std::move(registration),
                                   std::move(events))) {}
SessionClient::~SessionClient() = default;

void SessionClient::Say(WorkerAttemptEvent event) { impl_->Say(std::move(event)); }
void SessionClient::SayBlocks(const std::vector<BlockEvent>& events) { impl_->SayEvents(events); }
void SessionClient::SayCopies(const std::vector<CopyEvent>& events) { impl_->SayEvents(events); }
void SessionClient::SayPreflight(const PreflightCommand& command, const PreflightResult& result) {
  impl_->SayPreflight(command, result);
}
void SessionClient::SayLoad() { impl_->SayLoad(); }
void SessionClient::Leave() { impl_->Leave(); }
bool SessionClient::joined() const { return impl_->joined(); }

}  // namespace penstock::rpc
