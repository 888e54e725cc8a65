// SPDX-License-Identifier: Apache-2.0
#include "gateway/gateway_service.h"

#include <deque>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/status.h"
#include "grpc/support/time.h"
#include "grpcpp/grpcpp.h"
#include "penstock/v1/inference.grpc.pb.h"
#include "rpc/convert.h"
#include "rpc/reply.h"
#include "rpc/sampling.h"

namespace penstock::gateway {
namespace {

// How long the end of an answer may wait to be read; of one that was cut off, its status.
constexpr Duration kDrainFor = std::chrono::seconds(60);
constexpr Duration kCutAfter = std::chrono::seconds(5);

// ---- Messages into structs.

std::optional<Duration> EndWithin(const grpc::CallbackServerContext& context) {
  const gpr_timespec deadline = gpr_convert_clock_type(context.raw_deadline(), GPR_CLOCK_MONOTONIC);
  if (gpr_time_cmp(deadline, gpr_inf_future(GPR_CLOCK_MONOTONIC)) == 0) return std::nullopt;
  const gpr_timespec left = gpr_time_sub(deadline, gpr_now(GPR_CLOCK_MONOTONIC));
  if (left.tv_sec >= kEndWithinMax / std::chrono::seconds(1)) return kEndWithinMax;
  return std::chrono::seconds(left.tv_sec) + std::chrono::nanoseconds(left.tv_nsec);
}

absl::StatusOr<SamplingParams> FromProto(const v1::SamplingParams& message) {
  SamplingParams params;
  rpc::SamplingFromProto(message, &params);
  if (message.has_seed()) params.seed = message.seed();
  if (message.has_logprobs()) {
    RETURN_IF_ERROR(CheckRange("logprobs", message.logprobs(), 0, kLogprobsMax));
    params.logprobs = message.logprobs();
  }
  return params;
}

absl::Status FromProto(const v1::GenerateOptions& message, Request* request) {
  ASSIGN_OR_RETURN(request->sampling, FromProto(message.sampling()));
  request->n = message.n() == 0 ? 1 : message.n();
  request->max_tokens = message.max_tokens();
  request->stops.assign(message.stop().begin(), message.stop().end());
  request->stop_tokens.assign(message.stop_tokens().begin(), message.stop_tokens().end());
  request->ignore_eos = message.ignore_eos();
  request->priority = message.priority();
  ASSIGN_OR_RETURN(request->reuse, rpc::FromProto("reuse", message.reuse()));
  request->tenant = message.tenant();
  request->tokens_only = message.tokens_only();
  request->prompt_ids = message.prompt_ids();
  return absl::OkStatus();
}

Request::Chat FromProto(const google::protobuf::RepeatedPtrField<v1::ChatMessage>& messages) {
  Request::Chat chat;
  for (const v1::ChatMessage& message : messages) {
    chat.push_back({message.role(), message.content()});
  }
  return chat;
}

absl::StatusOr<Request> FromProto(const v1::GenerateRequest& message) {
  Request request{.id = message.request_id(), .model = message.model()};
  RETURN_IF_ERROR(FromProto(message.options(), &request));
  if (message.has_text()) {
    request.prompt = message.text();
  } else if (message.has_tokens()) {
    request.prompt = Request::Tokens(message.tokens().ids().begin(), message.tokens().ids().end());
  } else {
    return absl::InvalidArgumentError("prompt must be text or tokens, got none");
  }
  return request;
}

absl::StatusOr<Request> FromProto(const v1::ChatRequest& message) {
  Request request{.id = message.request_id(), .model = message.model()};
  RETURN_IF_ERROR(FromProto(message.options(), &request));
  request.prompt = FromProto(message.messages());
  return request;
}

// ---- Structs into messages.

void ToProto(const SampledToken& from, bool pieces, v1::SampledToken* to) {
  to->set_token(from.token);
  if (from.logprob.has_value()) to->set_logprob(*from.logprob);
  for (const TokenLogprob& top : from.top) {
    v1::TokenLogprob* const one = to->add_top();
    one->set_token(top.token);
    one->set_logprob(top.logprob);
    if (pieces) one->set_piece(top.piece);
  }
  if (pieces) to->set_piece(from.piece);
}

void ToProto(const Handoff& from, v1::HandoffStats* to) {
  to->set_peer(from.peer);
  to->set_transport(from.transport);
  to->set_bytes(from.bytes);
  to->set_repeated_reads(from.repeated_reads);
  rpc::ToProto(from.first_told_to_verified, to->mutable_first_told_to_verified());
  rpc::ToProto(from.last_told_to_verified, to->mutable_last_told_to_verified());
}

void ToProto(Started from, v1::GenerateResponse* to) {
  v1::GenerateResponse::Started& started = *to->mutable_started();
  started.set_request_id(std::move(from.request_id));
  started.set_prompt_tokens(from.prompt_tokens);
  started.set_seed(from.seed);
  started.mutable_prompt_ids()->Add(from.prompt.begin(), from.prompt.end());
}

void ToProto(Delta from, v1::GenerateResponse* to) {
  v1::GenerateResponse::Delta& delta = *to->mutable_delta();
  delta.set_choice(from.choice);
  delta.set_text(std::move(from.text));
  delta.set_sampled_unix_ns(from.sampled_unix_ns);
  for (const SampledToken& token : from.tokens) {
    ToProto(token, token.logprob.has_value(), delta.add_tokens());
  }
}

void ToProto(Finished from, v1::GenerateResponse* to) {
  v1::GenerateResponse::Finished& finished = *to->mutable_finished();
  finished.set_choice(from.choice);
  finished.set_reason(from.reason == FinishReason::kStop ? v1::FINISH_REASON_STOP
                                                         : v1::FINISH_REASON_LENGTH);
  finished.set_stopped_by(std::move(from.stopped_by));
}

void ToProto(const Usage& from, v1::GenerateResponse* to) {
  v1::GenerateResponse::Usage& usage = *to->mutable_usage();
  usage.set_prompt_tokens(from.prompt_tokens);
  usage.set_cached_tokens(from.cached_tokens);
  usage.set_completion_tokens(from.completion_tokens);
  usage.set_attempts(from.attempts);
  rpc::ToProto(from.ttft, usage.mutable_ttft());
  if (from.handoff.has_value()) ToProto(*from.handoff, usage.mutable_handoff());
}

// ---- One call's stream. Told by the gateway's loop, written by gRPC's threads.

class Stream final : public grpc::ServerWriteReactor<v1::GenerateResponse>, public Sink {
 public:
  // Lives until both gRPC and the gateway are done with it.
  static std::shared_ptr<Stream> Make(Gateway& gateway, grpc::CallbackServerContext* context) {
    const std::shared_ptr<Stream> stream(new Stream(gateway, context));
    stream->held_by_grpc_ = stream;
    return stream;
  }

  void Submit(Request request) {
    request.end_within = EndWithin(*context_);
    handle_ = gateway_.Submit(std::move(request), held_by_grpc_);
  }

  // Before anything was submitted.
  void Refuse(const absl::Status& status) { Finish(rpc::ToGrpc(status)); }

  bool OnEvent(Event event) override {
    v1::GenerateResponse response;
    std::visit([&response](auto&& e) { ToProto(std::move(e), &response); }, std::move(event));
    const std::size_t bytes = response.ByteSizeLong();
    const absl::MutexLock lock(&mutex_);
    // One message may be as long as it is.
    if (queue_.size() >= kStreamMessagesMax ||
        (!queue_.empty() && bytes_ + bytes > kStreamBytesMax)) {
      cut_ = true;
      return false;
    }
    bytes_ += bytes;
    queue_.push_back({bytes, std::move(response)});
    if (queue_.size() == 1) StartWrite(&queue_.front().response);
    return true;
  }

  void OnEnd(const absl::Status& status, Duration retry_after) override {
    const absl::MutexLock lock(&mutex_);
    ended_ = true;
    status_ = status;
    if (retry_after > Duration()) {
      context_->AddTrailingMetadata(kRetryAfterKey,
                                    absl::StrCat(retry_after / std::chrono::milliseconds(1)));
    }
    if (queue_.empty()) return Finish(rpc::ToGrpc(status_));
    if (cut_) queue_.resize(1);  // The one that is being written.
    gateway_.loop().At(gateway_.loop().Now() + (cut_ ? kCutAfter : kDrainFor),
                       [weak = std::weak_ptr<Stream>(held_by_grpc_)] {
                         if (const auto self = weak.lock()) self->GiveUp();
                       });
  }

 private:
  struct Waiting {
    std::size_t bytes = 0;
    v1::GenerateResponse response;
  };

  Stream(Gateway& gateway, grpc::CallbackServerContext* context)
      : gateway_(gateway), context_(context) {}

  // Nobody reads the rest.
  void GiveUp() {
    const absl::MutexLock lock(&mutex_);
    if (!done_) context_->TryCancel();
  }

  void OnWriteDone(bool ok) override {
    const absl::MutexLock lock(&mutex_);
    bytes_ -= queue_.front().bytes;
    queue_.pop_front();
    if (!ok) queue_.clear();  // The client is gone.
    if (!queue_.empty()) {
      StartWrite(&queue_.front().response);
    } else if (ended_) {
      Finish(rpc::ToGrpc(status_));
    }
  }
  void OnCancel() override { gateway_.Cancel(handle_); }
  void OnDone() override {
    std::shared_ptr<Stream> self;  // Let go after the lock.
    const absl::MutexLock lock(&mutex_);
    done_ = true;
    self = std::move(held_by_grpc_);
  }

  Gateway& gateway_;
  grpc::CallbackServerContext* const context_;
  RequestHandle handle_{};
  absl::Mutex mutex_;
  std::shared_ptr<Stream> held_by_grpc_;               // Until OnDone.
  std::deque<Waiting> queue_ ABSL_GUARDED_BY(mutex_);  // The first is being written.
  std::size_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;      // Of all that wait.
  bool cut_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  bool done_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

class InferenceService final : public v1::Inference::CallbackService {
 public:
  explicit InferenceService(Gateway& gateway) : gateway_(gateway) {}

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(
      grpc::CallbackServerContext* context, const v1::GenerateRequest* request) override {
    return Answer(context, FromProto(*request));
  }
  grpc::ServerWriteReactor<v1::GenerateResponse>* Chat(grpc::CallbackServerContext* context,
                                                       const v1::ChatRequest* request) override {
    return Answer(context, FromProto(*request));
  }

  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override {
    Gateway::TokenizeQuery query{.model = request->model(),
                                 .text = request->text(),
                                 .special = request->special(),
                                 .bare = request->bare(),
                                 .pieces = request->pieces()};
    if (request->messages_size() > 0) query.text = FromProto(request->messages());
    grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
    gateway_.Tokenize(std::move(query),
                      [reactor, response](const absl::StatusOr<Gateway::Tokenized>& result) {
                        if (result.ok()) {
                          response->mutable_ids()->Add(result->ids.begin(), result->ids.end());
                          for (const std::string& piece : result->pieces)
                            response->add_pieces(piece);
                        }
                        reactor->Finish(rpc::ToGrpc(result.status()));
                      });
    return reactor;
  }

  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context,
                                       const v1::ListModelsRequest*,
                                       v1::ListModelsResponse* response) override {
    for (const Gateway::Model& model : gateway_.ListModels()) {
      v1::ListModelsResponse::Model& to = *response->add_models();
      to.set_name(model.name);
      to.set_context_tokens(model.context_tokens);
      to.set_ready(model.ready);
      to.set_chat(model.chat);
      for (const auto& [name, value] : model.identity) {
        v1::Identity::Field* const field = to.mutable_identity()->add_fields();
        field->set_name(name);
        field->set_value(value);
      }
    }
    return rpc::Reply(context, absl::OkStatus());
  }

  grpc::ServerUnaryReactor* Cancel(grpc::CallbackServerContext* context,
                                   const v1::CancelRequest* request,
                                   v1::CancelResponse* response) override {
    const absl::Status status = CheckRequestId("request_id", request->request_id());
    if (!status.ok()) return rpc::Reply(context, status);
    grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
    gateway_.CancelById(request->request_id(), [reactor, response](bool found) {
      response->set_found(found);
      reactor->Finish(grpc::Status::OK);
    });
    return reactor;
  }

 private:
  grpc::ServerWriteReactor<v1::GenerateResponse>* Answer(grpc::CallbackServerContext* context,
                                                         absl::StatusOr<Request> request) {
    const std::shared_ptr<Stream> stream = Stream::Make(gateway_, context);
    if (request.ok()) {
      stream->Submit(*std::move(request));
    } else {
      stream->Refuse(request.status());
    }
    return stream.get();
  }

  Gateway& gateway_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeInferenceService(Gateway& gateway) {
  return std::make_unique<InferenceService>(gateway);
}

}  // namespace penstock::gateway
