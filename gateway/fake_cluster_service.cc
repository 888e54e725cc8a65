// SPDX-License-Identifier: Apache-2.0
#include "gateway/fake_cluster_service.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "gateway/relay_world.h"
#include "rpc/convert.h"

namespace penstock::gateway {

FakeCluster::FakeCluster(std::string worker, std::int32_t context_tokens)
    : worker_(std::move(worker)), context_tokens_(context_tokens) {
  absl::StatusOr<std::unique_ptr<EpollLoop>> loop = EpollLoop::Make("fake-cluster");
  CHECK(loop.ok());
  loop_ = *std::move(loop);
}

FakeCluster::~FakeCluster() { EndStreams(); }

grpc::ServerBidiReactor<v1::GatewayMessage, v1::GatewayEvent>* FakeCluster::Attend(
    grpc::CallbackServerContext* context) {
  const auto self = std::make_shared<std::weak_ptr<Stream>>();
  const std::shared_ptr<Stream> stream =
      Stream::Make(context, *loop_, {},
                   {.on_message =
                        [this, self](const v1::GatewayMessage& message) {
                          if (const auto s = self->lock()) Hear(*s, message);
                        },
                    .on_closed = [] {}});
  loop_->Post([this, self, stream] {
    *self = stream;
    streams_.push_back(stream);
  });
  return stream.get();
}

void FakeCluster::Refuse(const absl::Status& status, Duration retry_after) {
  loop_->Run([&] {
    refusal_ = status;
    retry_after_ = retry_after;
  });
}

void FakeCluster::EndStreams() {
  loop_->Run([this] {
    for (const auto& weak : std::exchange(streams_, {})) {
      if (const auto stream = weak.lock()) stream->End(absl::UnavailableError("ends"));
    }
  });
}

void FakeCluster::Hear(Stream& stream, const v1::GatewayMessage& message) {
  v1::GatewayEvent event;
  if (message.has_hello()) {
    v1::GatewayEvent::Model& model = *event.mutable_attending()->add_models();
    model.set_name("tiny");
    model.set_ready(true);
    model.set_block_tokens(32);
    model.set_context_tokens(context_tokens_);
    stream.Send(std::move(event));
    attended.Add();
    return;
  }
  if (message.has_cancel()) return cancelled.Add();
  const v1::GatewayMessage::Route& route = message.route();
  event.mutable_routed()->set_request_id(route.request_id());
  if (!refusal_.ok()) {
    rpc::ToProto(refusal_, event.mutable_routed()->mutable_error());
    rpc::ToProto(retry_after_, event.mutable_routed()->mutable_retry_after());
    return stream.Send(std::move(event));
  }
  stream.Send(event);
  v1::GatewayEvent::Planned& planned = *event.mutable_planned();
  std::uint32_t& attempt = attempts_[route.request_id()];
  attempt = std::max(attempt, route.lost_attempt()) + 1;
  rpc::ToProto(Attempt{.request_id = route.request_id(), .number = attempt},
               planned.mutable_attempt());
  planned.set_decode_name("d");
  planned.set_decode_endpoint(worker_);
  planned.set_prefill_name("p");
  planned.set_prefill_endpoint(worker_);
  planned.set_prompt_tokens(route.prompt_tokens());
  rpc::ToProto(std::chrono::seconds(60), planned.mutable_prefill_within());
  stream.Send(std::move(event));
}

// One answer: a token for every write that is done.
class FakeWorker::Answer final : public grpc::ServerWriteReactor<v1::DecodeResponse> {
 public:
  Answer(FakeWorker& worker, const v1::DecodeRequest& request)
      : worker_(worker),
        attempt_(request.attempt().number()),
        tokens_(request.prompt().begin(), request.prompt().end()),
        choice_(request.choice()),
        seed_(request.sampling().seed()),
        left_(request.max_tokens()) {
    Next();
  }

  void Next() {
    if (worker_.Breaks(attempt_, made_)) {
      return Finish({grpc::StatusCode::UNAVAILABLE, "broken"});
    }
    if (!worker_.Pauses(*this, made_)) Write();
  }
  void Write() {
    const TokenId token = NextToken(tokens_, choice_, seed_);
    tokens_.push_back(token);
    ++made_;
    const bool stops = worker_.Ends(token);
    last_ = stops || --left_ == 0;
    response_.Clear();
    v1::DecodeResponse::Output& output = *response_.add_outputs();
    output.mutable_token()->set_token(token);
    if (last_) {
      output.set_finish(stops ? v1::FINISH_REASON_STOP : v1::FINISH_REASON_LENGTH);
      response_.mutable_done()->set_reused_tokens(2);
    }
    StartWrite(&response_);
  }

 private:
  void OnWriteDone(bool ok) override {
    if (!ok) return Finish(grpc::Status::CANCELLED);
    if (last_) return Finish(grpc::Status::OK);
    Next();
  }
  void OnCancel() override {
    worker_.decodes_cancelled.Add();
    const absl::MutexLock lock(&worker_.mutex_);
    if (std::erase(worker_.waiting_, this) > 0) Finish(grpc::Status::CANCELLED);
  }
  void OnDone() override { delete this; }

  FakeWorker& worker_;
  const std::uint32_t attempt_;
  std::vector<TokenId> tokens_;
  const std::int32_t choice_;
  const std::uint64_t seed_;
  std::int32_t left_;
  int made_ = 0;
  bool last_ = false;
  v1::DecodeResponse response_;
};

bool FakeWorker::Pauses(Answer& answer, int tokens) {
  {
    const absl::MutexLock lock(&mutex_);
    if (tokens != pause_after_) return false;
    waiting_.push_back(&answer);
  }
  paused.Add();
  return true;
}

bool FakeWorker::Breaks(std::uint32_t attempt, int tokens) {
  const absl::MutexLock lock(&mutex_);
  return attempt == 1 && tokens == break_after_;
}

bool FakeWorker::Ends(TokenId token) {
  const absl::MutexLock lock(&mutex_);
  return !endless_ && EndsAnswer(token);
}

void FakeWorker::Endless() {
  const absl::MutexLock lock(&mutex_);
  endless_ = true;
}

void FakeWorker::PauseAfter(int tokens) {
  const absl::MutexLock lock(&mutex_);
  pause_after_ = tokens;
}

void FakeWorker::Resume() {
  std::vector<Answer*> waiting;
  {
    const absl::MutexLock lock(&mutex_);
    pause_after_ = -1;
    waiting.swap(waiting_);
  }
  for (Answer* const answer : waiting) answer->Write();
}

void FakeWorker::BreakAfter(int tokens) {
  const absl::MutexLock lock(&mutex_);
  break_after_ = tokens;
}

grpc::ServerWriteReactor<v1::DecodeResponse>* FakeWorker::Decode(grpc::CallbackServerContext*,
                                                                 const v1::DecodeRequest* request) {
  return new Answer(*this, *request);  // Deletes itself.
}

grpc::ServerUnaryReactor* FakeWorker::Prefill(grpc::CallbackServerContext*,
                                              const v1::PrefillRequest*, v1::PrefillResponse*) {
  class Call final : public grpc::ServerUnaryReactor {
   public:
    explicit Call(FakeWorker& worker) : worker_(worker) {}

   private:
    void OnCancel() override {
      worker_.prefills_cancelled.Add();
      Finish(grpc::Status::CANCELLED);
    }
    void OnDone() override { delete this; }

    FakeWorker& worker_;
  };
  auto* const call = new Call(*this);  // Deletes itself.
  prefills.Add();
  return call;
}

grpc::ServerUnaryReactor* FakeWorker::StopChoice(grpc::CallbackServerContext* context,
                                                 const v1::StopChoiceRequest*,
                                                 v1::StopChoiceResponse*) {
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

}  // namespace penstock::gateway
