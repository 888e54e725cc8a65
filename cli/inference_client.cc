// SPDX-License-Identifier: Apache-2.0
#include "cli/inference_client.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_join.h"
#include "base/status.h"
#include "base/time.h"
#include "base/unique_fd.h"
#include "grpcpp/grpcpp.h"
#include "penstock/v1/inference.grpc.pb.h"
#include "rpc/convert.h"
#include "rpc/sampling.h"

namespace penstock::cli {
namespace {

constexpr int kMessageBytesMax = 64 << 20;

// Ends a call when Ctrl-C is pressed, as long as it lives. InterruptWatch::Requested then still
// says so.
class CancelOnInterrupt {
 public:
  CancelOnInterrupt(grpc::ClientContext& context, const InterruptWatch& interrupts)
      : end_(::eventfd(0, EFD_CLOEXEC)), thread_([this, &context, fd = interrupts.fd()] {
          pollfd fds[] = {{.fd = fd, .events = POLLIN, .revents = 0},
                          {.fd = end_.get(), .events = POLLIN, .revents = 0}};
          while (::poll(fds, 2, -1) < 0) {
          }
          if (fds[0].revents != 0) context.TryCancel();
        }) {}
  ~CancelOnInterrupt() {
    const std::uint64_t one = 1;
    // A counter that is 0 takes a 1.
    if (::write(end_.get(), &one, sizeof(one)) < 0) return;
  }

 private:
  UniqueFd end_;
  std::jthread thread_;
};

void ToProto(const InferenceClient::Ask& ask, v1::GenerateOptions* to) {
  rpc::SamplingToProto(ask.sampling, to->mutable_sampling());
  to->mutable_sampling()->set_seed(ask.sampling.seed);
  to->set_n(ask.n);
  to->set_max_tokens(ask.max_tokens);
  for (const std::string& stop : ask.stops) to->add_stop(stop);
  to->set_ignore_eos(ask.ignore_eos);
  to->set_prompt_ids(true);
  to->set_reuse(static_cast<v1::LossClass>(ask.reuse));
}

void ToProto(const std::vector<model::ChatMessage>& messages,
             google::protobuf::RepeatedPtrField<v1::ChatMessage>* to) {
  for (const model::ChatMessage& message : messages) {
    v1::ChatMessage* const one = to->Add();
    one->set_role(message.role);
    one->set_content(message.content);
  }
}

std::string_view ToString(v1::FinishReason reason) {
  return reason == v1::FINISH_REASON_STOP ? "stop" : "length";
}

// Collects what a gateway streams.
class Collector {
 public:
  Collector(std::int32_t answers, absl::FunctionRef<bool(std::int32_t, std::string_view)> emit)
      : emit_(emit), started_(SteadyClock().Now()) {
    reply_.answers.choices.resize(static_cast<std::size_t>(answers));
  }

  // False when nobody wants any more.
  bool Take(const v1::GenerateResponse& response) {
    if (response.has_started()) {
      reply_.prompt.assign(response.started().prompt_ids().begin(),
                           response.started().prompt_ids().end());
      reply_.answers.prompt_tokens = response.started().prompt_tokens();
    } else if (response.has_delta()) {
      return TakeDelta(response.delta());
    } else if (response.has_finished()) {
      if (Answer* const answer = Find(response.finished().choice())) {
        answer->finish_reason = std::string(ToString(response.finished().reason()));
      }
    } else if (response.has_usage()) {
      reply_.answers.reused_tokens = response.usage().cached_tokens();
    }
    return true;
  }

  InferenceClient::Reply Result() {
    Answers& answers = reply_.answers;
    if (answers.tokens > 0) {
      answers.ttft_ms = ToMillis(first_ - started_);
      const double seconds = ToSeconds(last_ - first_);
      answers.tokens_per_s = answers.tokens > 1 && seconds > 0
                                 ? static_cast<double>(answers.tokens - 1) / seconds
                                 : 1000 / answers.ttft_ms;
    }
    for (Answer& answer : answers.choices) {
      if (answer.finish_reason.empty()) answer.finish_reason = "cancelled";
    }
    return std::move(reply_);
  }

 private:
  Answer* Find(std::int32_t choice) {
    std::vector<Answer>& choices = reply_.answers.choices;
    const bool known = choice >= 0 && static_cast<std::size_t>(choice) < choices.size();
    return known ? &choices[static_cast<std::size_t>(choice)] : nullptr;
  }

  bool TakeDelta(const v1::GenerateResponse::Delta& delta) {
    Answer* const answer = Find(delta.choice());
    if (answer == nullptr) return true;
    for (const v1::SampledToken& token : delta.tokens()) {
      last_ = SteadyClock().Now();
      if (reply_.answers.tokens++ == 0) first_ = last_;
      answer->tokens.push_back(token.token());
      if (!token.has_logprob()) continue;
      engine::SampledToken& sampled = answer->sampled.emplace_back();
      sampled.token = token.token();
      sampled.logprob = token.logprob();
      reply_.pieces[token.token()] = token.piece();
      for (const v1::TokenLogprob& top : token.top()) {
        sampled.top.push_back({.token = top.token(), .logprob = top.logprob()});
        reply_.pieces[top.token()] = top.piece();
      }
    }
    answer->text += delta.text();
    return delta.text().empty() || emit_(delta.choice(), delta.text());
  }

  const absl::FunctionRef<bool(std::int32_t, std::string_view)> emit_;
  InferenceClient::Reply reply_;
  MonoTime started_, first_, last_;
};

}  // namespace

struct InferenceClient::Rpc {
  std::string server;
  std::unique_ptr<v1::Inference::Stub> stub;

  // What a user can do something with.
  absl::Status Explain(const grpc::Status& status) const {
    const absl::Status why = rpc::FromGrpc(status);
    if (!absl::IsUnavailable(why)) return why;
    return absl::UnavailableError(absl::StrCat(server, ": ", why.message()));
  }
};

InferenceClient::InferenceClient(std::unique_ptr<Rpc> rpc) : rpc_(std::move(rpc)) {}
InferenceClient::~InferenceClient() = default;

absl::StatusOr<std::unique_ptr<InferenceClient>> InferenceClient::Open(const std::string& server,
                                                                       const std::string& model) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMessageBytesMax);
  auto rpc = std::make_unique<Rpc>();
  rpc->server = server;
  rpc->stub = v1::Inference::NewStub(
      grpc::CreateCustomChannel(server, grpc::InsecureChannelCredentials(), arguments));
  grpc::ClientContext context;
  v1::ListModelsResponse response;
  const grpc::Status status = rpc->stub->ListModels(&context, {}, &response);
  if (!status.ok()) return rpc->Explain(status);
  std::unique_ptr<InferenceClient> client(new InferenceClient(std::move(rpc)));
  std::vector<std::string> names;
  for (const v1::ListModelsResponse::Model& one : response.models()) {
    names.push_back(one.name());
    if (one.name() != model && !(model.empty() && response.models_size() == 1)) continue;
    client->model_ = {one.name(), one.context_tokens(), one.chat()};
    return client;
  }
  const std::string there = absl::StrJoin(names, ", ");
  return model.empty() ? absl::InvalidArgumentError(
                             absl::StrCat("--model must name one of the server's models: ", there))
                       : absl::NotFoundError(absl::StrCat("the server has no model '", model,
                                                          "'; it has: ", there));
}

absl::StatusOr<InferenceClient::Tokens> InferenceClient::Tokenize(const std::string& text,
                                                                  bool special, bool bare,
                                                                  bool pieces) {
  v1::TokenizeRequest request;
  request.set_model(model_.name);
  request.set_text(text);
  request.set_special(special);
  request.set_bare(bare);
  request.set_pieces(pieces);
  grpc::ClientContext context;
  v1::TokenizeResponse response;
  const grpc::Status status = rpc_->stub->Tokenize(&context, request, &response);
  if (!status.ok()) return rpc_->Explain(status);
  return Tokens{.ids = {response.ids().begin(), response.ids().end()},
                .pieces = {response.pieces().begin(), response.pieces().end()}};
}

absl::StatusOr<InferenceClient::Tokens> InferenceClient::Tokenize(
    const std::vector<model::ChatMessage>& messages) {
  v1::TokenizeRequest request;
  request.set_model(model_.name);
  ToProto(messages, request.mutable_messages());
  grpc::ClientContext context;
  v1::TokenizeResponse response;
  const grpc::Status status = rpc_->stub->Tokenize(&context, request, &response);
  if (!status.ok()) return rpc_->Explain(status);
  return Tokens{.ids = {response.ids().begin(), response.ids().end()}, .pieces = {}};
}

absl::StatusOr<InferenceClient::Reply> InferenceClient::Run(
    const Ask& ask, InterruptWatch& interrupts,
    absl::FunctionRef<bool(std::int32_t, std::string_view)> emit) {
  Collector collector(ask.n, emit);
  grpc::ClientContext context;
  std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> stream;
  if (const auto* const text = std::get_if<std::string>(&ask.prompt)) {
    v1::GenerateRequest request;
    request.set_model(model_.name);
    request.set_text(*text);
    ToProto(ask, request.mutable_options());
    stream = rpc_->stub->Generate(&context, request);
  } else {
    v1::ChatRequest request;
    request.set_model(model_.name);
    ToProto(std::get<std::vector<model::ChatMessage>>(ask.prompt), request.mutable_messages());
    ToProto(ask, request.mutable_options());
    stream = rpc_->stub->Chat(&context, request);
  }
  bool left = false;
  grpc::Status status;
  {
    const CancelOnInterrupt cancel(context, interrupts);
    v1::GenerateResponse response;
    while (stream->Read(&response)) {
      if (left || collector.Take(response)) continue;
      left = true;
      context.TryCancel();
    }
    status = stream->Finish();
  }
  const bool cancelled = interrupts.Requested() || left;
  if (!status.ok() && !(cancelled && status.error_code() == grpc::StatusCode::CANCELLED)) {
    return rpc_->Explain(status);
  }
  return collector.Result();
}

}  // namespace penstock::cli
