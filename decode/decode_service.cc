// SPDX-License-Identifier: Apache-2.0
#include "decode/decode_service.h"

#include <deque>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/status.h"
#include "grpcpp/grpcpp.h"
#include "penstock/v1/worker.grpc.pb.h"
#include "rpc/convert.h"
#include "rpc/reply.h"
#include "rpc/sampling.h"

namespace penstock::decode {
namespace {

using transfer::HandoffReceiver;

engine::SamplingParams FromProto(const v1::SamplingParams& message) {
  engine::SamplingParams params;
  rpc::SamplingFromProto(message, &params);
  params.seed = message.seed();
  params.logprobs = message.has_logprobs() ? message.logprobs() : -1;
  return params;
}

// The engine checks the rest: ids, ranges and lengths.
absl::StatusOr<engine::Request> FromProto(const v1::DecodeRequest& message) {
  engine::Request request;
  ASSIGN_OR_RETURN(request.root, rpc::RootFromProto(message.root()));
  request.prompt.assign(message.prompt().begin(), message.prompt().end());
  request.emitted_tokens = message.emitted_tokens();
  request.first_choice = message.choice();
  request.sampling = FromProto(message.sampling());
  request.n = message.n();
  request.max_tokens = message.max_tokens();
  request.stop_tokens.assign(message.stop_tokens().begin(), message.stop_tokens().end());
  request.ignore_eos = message.ignore_eos();
  request.priority = message.priority();
  request.tenant = message.tenant();
  return request;
}

v1::FinishReason ToProto(engine::FinishReason reason) {
  switch (reason) {
    case engine::FinishReason::kStop:
      return v1::FINISH_REASON_STOP;
    case engine::FinishReason::kLength:
      return v1::FINISH_REASON_LENGTH;
    case engine::FinishReason::kCancelled:
      return v1::FINISH_REASON_CANCELLED;
    case engine::FinishReason::kError:
      return v1::FINISH_REASON_ERROR;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

void ToProto(const engine::TokenOutput& from, v1::DecodeResponse::Output* to) {
  to->set_choice(from.choice);
  if (from.finish.has_value()) to->set_finish(ToProto(*from.finish));
  if (!from.token.has_value()) return;
  v1::SampledToken* const token = to->mutable_token();
  token->set_token(from.token->token);
  if (from.token->logprob.has_value()) token->set_logprob(*from.token->logprob);
  for (const engine::TokenLogprob& top : from.token->top) {
    v1::TokenLogprob* const one = token->add_top();
    one->set_token(top.token);
    one->set_logprob(top.logprob);
  }
}

void ToProto(const HandoffReceiver::Outcome& from, v1::HandoffStats* to) {
  to->set_peer(from.peer);
  to->set_bytes(from.bytes);
  to->set_repeated_reads(static_cast<std::uint32_t>(from.repeated_reads));
  if (from.spans.empty()) return;
  to->set_transport(std::string(transfer::ToString(from.kind)));
  MonoTime first_told = from.spans.front().told;
  MonoTime last_told = first_told;
  MonoTime verified = from.spans.front().verified;
  for (const HandoffReceiver::Span& span : from.spans) {
    first_told = std::min(first_told, span.told);
    last_told = std::max(last_told, span.told);
    verified = std::max(verified, span.verified);
  }
  rpc::ToProto(verified - first_told, to->mutable_first_told_to_verified());
  rpc::ToProto(verified - last_told, to->mutable_last_told_to_verified());
}

// One answer on its way to a gateway. Pushed to from the loop, written by gRPC's threads.
class Stream final : public grpc::ServerWriteReactor<v1::DecodeResponse>,
                     public std::enable_shared_from_this<Stream> {
 public:
  // `cancelled` is called at most once, from a gRPC thread: the gateway left, or was cut off. The
  // result lives until gRPC and whoever else holds it are done with it; `loop` outlives it.
  static std::shared_ptr<Stream> Make(grpc::CallbackServerContext* context, Loop& loop,
                                      Duration end_within, std::function<void()> cancelled) {
    const std::shared_ptr<Stream> stream(
        new Stream(context, loop, end_within, std::move(cancelled)));
    stream->held_by_grpc_ = stream;
    return stream;
  }

  void Push(v1::DecodeResponse response) {
    const absl::MutexLock lock(&mutex_);
    if (ended_ || done_) return;
    if (queue_.size() >= kStreamQueueMax) return context_->TryCancel();
    queue_.push_back(std::move(response));
    if (queue_.size() == 1) StartWrite(&queue_.front());
  }
  void End(const absl::Status& status) {
    const absl::MutexLock lock(&mutex_);
    if (ended_ || done_) return;
    ended_ = true;
    status_ = status;
    if (queue_.empty()) return Finish(rpc::ToGrpc(status_));
    // A reader that stands still must not keep it.
    loop_.Post([weak = weak_from_this()] {
      if (const auto self = weak.lock()) self->AwaitEnd();
    });
  }

 private:
  Stream(grpc::CallbackServerContext* context, Loop& loop, Duration end_within,
         std::function<void()> cancelled)
      : context_(context), loop_(loop), end_within_(end_within), cancelled_(std::move(cancelled)) {}

  // On the loop. The timer knows the stream only as long as somebody else does.
  void AwaitEnd() {
    loop_.At(loop_.Now() + end_within_, [weak = weak_from_this()] {
      const auto self = weak.lock();
      if (self == nullptr) return;
      const absl::MutexLock lock(&self->mutex_);
      if (!self->queue_.empty() && !self->done_) self->context_->TryCancel();
    });
  }

  void OnWriteDone(bool ok) override {
    const absl::MutexLock lock(&mutex_);
    queue_.pop_front();
    if (!ok) queue_.clear();  // Nobody reads any more.
    if (!queue_.empty()) {
      StartWrite(&queue_.front());
    } else if (ended_) {
      Finish(rpc::ToGrpc(status_));
    }
  }
  void OnCancel() override { cancelled_(); }
  void OnDone() override {
    const std::shared_ptr<Stream> self = std::move(held_by_grpc_);
    const absl::MutexLock lock(&mutex_);
    done_ = true;
  }

  grpc::CallbackServerContext* const context_;
  Loop& loop_;
  const Duration end_within_;
  const std::function<void()> cancelled_;
  std::shared_ptr<Stream> held_by_grpc_;  // Until OnDone.
  absl::Mutex mutex_;
  std::deque<v1::DecodeResponse> queue_ ABSL_GUARDED_BY(mutex_);  // The first is being written.
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  bool done_ ABSL_GUARDED_BY(mutex_) = false;  // gRPC knows nothing of it any more.
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

class DecodeService final : public v1::Worker::CallbackService {
 public:
  explicit DecodeService(const DecodeServiceParts& parts) : parts_(parts) {}

  grpc::ServerWriteReactor<v1::DecodeResponse>* Decode(grpc::CallbackServerContext* context,
                                                       const v1::DecodeRequest* request) override {
    const absl::StatusOr<Attempt> attempt = rpc::FromProto(request->attempt());
    const auto stream =
        Stream::Make(context, *parts_.loop, parts_.end_within, [parts = parts_, attempt] {
          if (!attempt.ok()) return;
          parts.loop->Post([state = parts.state, attempt = *attempt] {
            state->Release(attempt,
                           absl::CancelledError("the gateway ended its call, or did not read"));
          });
        });
    absl::StatusOr<engine::Request> parsed = FromProto(*request);
    if (!attempt.ok() || !parsed.ok()) {
      stream->End(attempt.ok() ? parsed.status() : attempt.status());
      return stream.get();
    }
    auto work = std::make_shared<EngineWork>();
    work->request = *std::move(parsed);
    parts_.loop->Post([parts = parts_, attempt = *attempt, work, stream] {
      const absl::Status taken = parts.state->Decode(
          attempt, std::make_unique<EngineWork>(std::move(*work)),
          {.on_tokens =
               [stream](const DecodeEngine::Tokens& tokens) {
                 stream->Push(ToResponse(static_cast<const EngineTokens&>(tokens)));
               },
           .on_end =
               [stream](const absl::Status& status, const HandoffReceiver::Outcome& handoff) {
                 v1::DecodeResponse last;
                 ToProto(handoff, last.mutable_done()->mutable_handoff());
                 if (status.ok()) stream->Push(std::move(last));
                 stream->End(status);
               }});
      if (!taken.ok()) stream->End(taken);
    });
    return stream.get();
  }

  grpc::ServerUnaryReactor* StopChoice(grpc::CallbackServerContext* context,
                                       const v1::StopChoiceRequest* request,
                                       v1::StopChoiceResponse*) override {
    const absl::StatusOr<Attempt> attempt = rpc::FromProto(request->attempt());
    if (attempt.ok()) {
      parts_.loop->Post([parts = parts_, attempt = *attempt, choice = request->choice()] {
        const std::optional<JobId> job = parts.state->RunningJob(attempt);
        if (job.has_value()) parts.engine->StopChoice(*job, choice);
      });
    }
    return rpc::Reply(context, attempt.status());
  }

  grpc::ServerUnaryReactor* Describe(grpc::CallbackServerContext* context,
                                     const v1::DescribeRequest*,
                                     v1::DescribeResponse* response) override {
    *response = parts_.description;
    return rpc::Reply(context, absl::OkStatus());
  }

 private:
  static v1::DecodeResponse ToResponse(const EngineTokens& tokens) {
    v1::DecodeResponse response;
    for (const engine::TokenOutput& output : tokens.outputs) {
      ToProto(output, response.add_outputs());
    }
    response.set_sampled_unix_ns(tokens.sampled_unix_ns);
    if (tokens.stats.has_value()) {
      response.mutable_done()->set_prompt_tokens(tokens.stats->prompt_tokens);
      response.mutable_done()->set_reused_tokens(tokens.stats->reused_tokens);
      response.mutable_done()->set_preemptions(
          static_cast<std::uint32_t>(tokens.stats->preemptions));
    }
    return response;
  }

  const DecodeServiceParts parts_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeDecodeService(const DecodeServiceParts& parts) {
  return std::make_unique<DecodeService>(parts);
}

}  // namespace penstock::decode
