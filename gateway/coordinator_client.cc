// SPDX-License-Identifier: Apache-2.0
#include "gateway/coordinator_client.h"

#include <algorithm>
#include <deque>
#include <random>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/check.h"
#include "base/log.h"
#include "base/status.h"
#include "gateway/recent_cancels_state.h"
#include "grpcpp/grpcpp.h"
#include "penstock/v1/cluster.grpc.pb.h"
#include "rpc/convert.h"

namespace penstock::gateway {
namespace {

// A hint that makes no sense is none.
Duration HintFrom(const google::protobuf::Duration& message) {
  return rpc::FromProto("retry_after", message).value_or(Duration());
}

ClusterModel FromProto(const v1::GatewayEvent::Model& message) {
  ClusterModel model{.name = message.name(),
                     .ready = message.ready(),
                     .limits = {.block_tokens = message.block_tokens(),
                                .context_tokens = message.context_tokens()},
                     .identity = {}};
  for (const v1::Identity::Field& field : message.identity().fields()) {
    model.identity.emplace_back(field.name(), field.value());
  }
  return model;
}

absl::StatusOr<Plan> FromProto(const v1::GatewayEvent::Planned& message) {
  Plan plan;
  ASSIGN_OR_RETURN(plan.attempt, rpc::FromProto(message.attempt()));
  plan.decode_name = message.decode_name();
  plan.decode_endpoint = message.decode_endpoint();
  plan.prefill_name = message.prefill_name();
  plan.prefill_endpoint = message.prefill_endpoint();
  plan.prompt_tokens = message.prompt_tokens();
  plan.reused_tokens = message.reused_tokens();
  ASSIGN_OR_RETURN(plan.prefill_within, rpc::FromProto("prefill_within", message.prefill_within()));
  return plan;
}

v1::GatewayMessage ToProto(const RouteOrder& order) {
  v1::GatewayMessage message;
  v1::GatewayMessage::Route& route = *message.mutable_route();
  route.set_request_id(order.request_id);
  route.set_model(order.model);
  route.set_chains(rpc::ChainsToProto(order.chains));
  route.set_tenant(order.tenant);
  route.set_prompt_tokens(order.prompt_tokens);
  route.set_output_tokens_max(order.output_tokens_max);
  route.set_priority(order.priority);
  route.set_reuse(static_cast<v1::LossClass>(order.reuse));
  rpc::ToProto(order.end_within, route.mutable_end_within());
  route.set_lost_attempt(order.lost_attempt);
  return message;
}

class CoordinatorClient final : public Coordinator {
 public:
  CoordinatorClient(EpollLoop& loop, CoordinatorListener& listener,
                    const std::vector<CoordinatorTarget>& targets,
                    const CoordinatorClientOptions& options)
      : loop_(loop),
        options_(options),
        random_(options.seed),
        pause_(options.backoff_min),
        listener_(&listener) {
    CHECK(!targets.empty());
    for (const CoordinatorTarget& target : targets) {
      addresses_.push_back(target.address);
      stubs_.push_back(v1::Cluster::NewStub(target.channel));
    }
    Connect();
  }

  ~CoordinatorClient() override {
    loop_.Run([this] {
      listener_ = nullptr;
      if (timer_.has_value()) loop_.CancelTimer(*timer_);
      if (stream_ != nullptr) stream_->context.TryCancel();
    });
    { const absl::MutexLock lock(&mutex_, absl::Condition(this, &CoordinatorClient::NoStreams)); }
    loop_.Run([] {});  // What the last one has posted is done.
  }

  bool attending() const override { return attending_; }

  void Route(const RouteOrder& order) override {
    cancels_.Remove(order.request_id);
    if (attending_ && outbox_.size() < options_.messages_max) return Send(ToProto(order));
    const absl::Status why = attending_
                                 ? absl::ResourceExhaustedError(absl::StrCat(
                                       outbox_.size(), " messages wait for the coordinator"))
                                 : absl::UnavailableError("the coordinator cannot be reached");
    loop_.Post([this, id = order.request_id, why] {
      if (listener_ != nullptr) listener_->OnRouted(id, why, options_.backoff_min);
    });
  }

  void Cancel(const std::string& request_id) override {
    cancels_.Add(request_id, loop_.Now());
    if (attending_) SayCancel(request_id);
  }

 private:
  // One Attend call. gRPC's threads only post to the loop; all else is the loop's.
  class Stream final : public grpc::ClientBidiReactor<v1::GatewayMessage, v1::GatewayEvent> {
   public:
    explicit Stream(CoordinatorClient& client) : client_(client) {
      client_.stubs_[client_.at_]->async()->Attend(&context, this);
      AddHold();  // Writes start outside of reactions.
      StartRead(&event);
      StartCall();
    }

    grpc::ClientContext context;
    v1::GatewayEvent event;
    v1::GatewayMessage message;
    bool writing = false;
    bool held = true;

   private:
    void OnReadDone(bool ok) override {
      client_.loop_.Post([this, ok] { client_.OnRead(*this, ok); });
    }
    void OnWriteDone(bool ok) override {
      client_.loop_.Post([this, ok] { client_.OnWritten(*this, ok); });
    }
    void OnDone(const grpc::Status& status) override {
      CoordinatorClient& client = client_;
      client.loop_.Post([this, status] {
        client_.OnDone(status);
        delete this;
      });
      client.StreamEnded();  // This may be gone.
    }

    CoordinatorClient& client_;
  };

  void Connect() {
    {
      const absl::MutexLock lock(&mutex_);
      ++streams_;
    }
    stream_ = new Stream(*this);  // Deletes itself.
    v1::GatewayMessage hello;
    hello.mutable_hello()->set_name(options_.name);
    hello.mutable_hello()->set_term(term_);
    Send(std::move(hello));
  }

  void Send(v1::GatewayMessage message) {
    outbox_.push_back(std::move(message));
    Write();
  }

  void Write() {
    if (stream_ == nullptr || stream_->writing || !stream_->held || outbox_.empty()) return;
    stream_->message = std::move(outbox_.front());
    outbox_.pop_front();
    stream_->writing = true;
    stream_->StartWrite(&stream_->message);
  }

  void OnWritten(Stream& stream, bool ok) {
    stream.writing = false;
    if (ok) return Write();
    LetGo(stream);
  }

  void OnRead(Stream& stream, bool ok) {
    if (!ok) return LetGo(stream);
    if (listener_ != nullptr && !Hear(stream.event)) return LetGo(stream);
    if (stream.held) stream.StartRead(&stream.event);
  }

  // Nothing new is started on it: OnDone can come.
  void LetGo(Stream& stream) {
    if (!std::exchange(stream.held, false)) return;
    stream.context.TryCancel();
    stream.RemoveHold();
  }

  void OnDone(const grpc::Status& status) {
    stream_ = nullptr;
    outbox_.clear();
    const bool was_attending = std::exchange(attending_, false);
    if (listener_ == nullptr) return;
    if (was_attending) {
      pause_ = options_.backoff_min;
      LOG_WARNING("coordinator left", {{"status", status.error_message()}});
    } else if (!std::exchange(told_, true)) {
      LOG_WARNING("no coordinator", {{"status", status.error_message()}});
    }
    // Pauses grow once all have been tried.
    const bool round = NextCoordinator();
    const double jitter = std::uniform_real_distribution<double>(0.75, 1.25)(random_);
    const Duration pause =
        std::chrono::duration_cast<Duration>((round ? pause_ : options_.backoff_min) * jitter);
    if (round) pause_ = std::min(pause_ * 2, options_.backoff_max);
    timer_ = loop_.At(loop_.Now() + pause, [this] {
      timer_.reset();
      Connect();
    });
    if (was_attending) listener_->OnDetached();
  }

  // The one that is said to lead, or the next; true: all have been tried.
  bool NextCoordinator() {
    const std::string leader = std::exchange(leader_, "");
    const auto named = leader.empty() ? addresses_.end() : std::ranges::find(addresses_, leader);
    at_ = named != addresses_.end() ? static_cast<std::size_t>(named - addresses_.begin())
                                    : (at_ + 1) % addresses_.size();
    return ++tries_ % addresses_.size() == 0;
  }

  // False: this coordinator is not followed.
  bool Hear(const v1::GatewayEvent& event) {
    if (event.has_elsewhere()) leader_ = event.elsewhere().leader();
    if (event.has_attending()) {
      if (event.attending().term() < term_) {
        LOG_WARNING("coordinator of an earlier term",
                    {{"term", event.attending().term()}, {"followed", term_}});
        return false;
      }
      term_ = event.attending().term();
      HearAttending(event.attending());
    } else if (attending_) {
      HearOfRequest(event);
    }
    return true;
  }

  void HearOfRequest(const v1::GatewayEvent& event) {
    switch (event.event_case()) {
      case v1::GatewayEvent::kRouted:
        return listener_->OnRouted(event.routed().request_id(),
                                   rpc::FromProto(event.routed().error()),
                                   HintFrom(event.routed().retry_after()));
      case v1::GatewayEvent::kPlanned: {
        const absl::StatusOr<Plan> plan = FromProto(event.planned());
        if (plan.ok()) return listener_->OnPlanned(*plan);
        LOG_ERROR("bad plan", {{"why", ToStd(plan.status().message())}});
        return;
      }
      case v1::GatewayEvent::kLost: {
        const absl::StatusOr<Attempt> attempt = rpc::FromProto(event.lost().attempt());
        if (attempt.ok()) listener_->OnLost(*attempt);
        return;
      }
      case v1::GatewayEvent::kEnded:
        return listener_->OnEnded(event.ended().request_id(), rpc::FromProto(event.ended().error()),
                                  HintFrom(event.ended().retry_after()));
      case v1::GatewayEvent::kAttending:
      case v1::GatewayEvent::kElsewhere:
      case v1::GatewayEvent::EVENT_NOT_SET:
        return;  // Heard by now, or of a later version.
    }
  }

  void HearAttending(const v1::GatewayEvent::Attending& message) {
    if (!std::exchange(attending_, true)) {
      LOG_INFO("coordinator found", {{"models", message.models_size()}});
      told_ = false;
      pause_ = options_.backoff_min;
      for (const std::string& id : cancels_.Kept(loop_.Now())) SayCancel(id);
    }
    std::vector<ClusterModel> models;
    for (const v1::GatewayEvent::Model& model : message.models()) {
      models.push_back(FromProto(model));
    }
    listener_->OnAttending(std::move(models));
  }

  void SayCancel(const std::string& request_id) {
    v1::GatewayMessage message;
    message.mutable_cancel()->set_request_id(request_id);
    Send(std::move(message));
  }

  void StreamEnded() {
    const absl::MutexLock lock(&mutex_);
    --streams_;
  }
  bool NoStreams() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return streams_ == 0; }

  EpollLoop& loop_;
  const CoordinatorClientOptions options_;
  std::vector<std::string> addresses_;  // Of each coordinator, as the stubs.
  std::vector<std::unique_ptr<v1::Cluster::Stub>> stubs_;
  // On the loop alone.
  std::size_t at_ = 0;  // The one that is tried, or attended.
  std::size_t tries_ = 0;
  std::string leader_;      // As the last one said; empty: it did not.
  std::uint64_t term_ = 0;  // The highest that was followed.
  std::mt19937_64 random_;
  Duration pause_;
  CoordinatorListener* listener_;
  Stream* stream_ = nullptr;  // Its own.
  std::deque<v1::GatewayMessage> outbox_;
  RecentCancels cancels_;
  std::optional<Loop::TimerId> timer_;
  bool attending_ = false;
  bool told_ = false;  // That there is no coordinator.
  absl::Mutex mutex_;
  int streams_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace

std::unique_ptr<Coordinator> MakeCoordinatorClient(EpollLoop& loop, CoordinatorListener& listener,
                                                   const std::vector<CoordinatorTarget>& targets,
                                                   const CoordinatorClientOptions& options) {
  return std::make_unique<CoordinatorClient>(loop, listener, targets, options);
}

}  // namespace penstock::gateway
