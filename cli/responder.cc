// SPDX-License-Identifier: Apache-2.0
#include "cli/responder.h"

#include <utility>

#include "base/status.h"
#include "cli/inference_client.h"
#include "engine/engine.h"

namespace penstock::cli {
namespace {

absl::Status NotForChat(const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(
      what, " has no chat template, so it was not made for conversations; try penstock generate"));
}

class LocalResponder final : public Responder {
 public:
  LocalResponder(std::unique_ptr<engine::LocalModel> model,
                 const model::ChatTemplate& chat_template, std::unique_ptr<engine::Engine> engine,
                 const SamplingFlags& flags)
      : model_(std::move(model)),
        chat_template_(chat_template),
        engine_(std::move(engine)),
        flags_(flags) {}

  std::int32_t context_tokens() const override { return engine_->tokens_max(); }

  absl::StatusOr<std::size_t> Measure(const std::vector<model::ChatMessage>& messages,
                                      CivilTime began) override {
    ASSIGN_OR_RETURN(prompt_,
                     model::EncodeChat(model_->tokenizer(), chat_template_, messages, began));
    return prompt_.size();
  }

  absl::StatusOr<Answers> Respond(const engine::SamplingParams& sampling,
                                  InterruptWatch& interrupts, Emit emit) override {
    engine::Request request;
    request.prompt = prompt_;
    request.sampling = sampling;
    request.max_tokens = flags_.max_tokens;
    request.ignore_eos = flags_.ignore_eos;
    return RunRequest(*engine_, model_->tokenizer(), request, flags_.stops, interrupts, emit);
  }

 private:
  const std::unique_ptr<engine::LocalModel> model_;
  const model::ChatTemplate& chat_template_;
  const std::unique_ptr<engine::Engine> engine_;
  const SamplingFlags flags_;
  std::vector<TokenId> prompt_;
};

// The gateway tells the template the time itself.
class RemoteResponder final : public Responder {
 public:
  RemoteResponder(std::unique_ptr<InferenceClient> client, const SamplingFlags& flags)
      : client_(std::move(client)), flags_(flags) {}

  std::int32_t context_tokens() const override { return client_->model().context_tokens; }

  absl::StatusOr<std::size_t> Measure(const std::vector<model::ChatMessage>& messages,
                                      CivilTime) override {
    messages_ = messages;
    ASSIGN_OR_RETURN(const InferenceClient::Tokens tokens, client_->Tokenize(messages));
    return tokens.ids.size();
  }

  absl::StatusOr<Answers> Respond(const engine::SamplingParams& sampling,
                                  InterruptWatch& interrupts, Emit emit) override {
    ASSIGN_OR_RETURN(InferenceClient::Reply reply, client_->Run({.prompt = messages_,
                                                                 .sampling = sampling,
                                                                 .n = 1,
                                                                 .max_tokens = flags_.max_tokens,
                                                                 .stops = flags_.stops,
                                                                 .ignore_eos = flags_.ignore_eos},
                                                                interrupts, emit));
    return std::move(reply.answers);
  }

 private:
  const std::unique_ptr<InferenceClient> client_;
  const SamplingFlags flags_;
  std::vector<model::ChatMessage> messages_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Responder>> MakeLocalResponder(const ModelFlags& model_flags,
                                                              const SamplingFlags& sampling) {
  ASSIGN_OR_RETURN(std::unique_ptr<engine::LocalModel> model, OpenModel(model_flags));
  if (!model->has_chat_template()) return NotForChat(model->file().path());
  ASSIGN_OR_RETURN(const model::ChatTemplate* chat_template, model->chat_template());
  RETURN_IF_ERROR(MakeSampling(sampling, model->architecture().vocab).status());
  ASSIGN_OR_RETURN(const engine::LocalModel::Options options, MakeOptions(model_flags));
  RETURN_IF_ERROR(LoadModel(*model, options));
  ASSIGN_OR_RETURN(std::unique_ptr<engine::Engine> engine, model->MakeEngine());
  return std::make_unique<LocalResponder>(std::move(model), *chat_template, std::move(engine),
                                          sampling);
}

absl::StatusOr<std::unique_ptr<Responder>> MakeRemoteResponder(const ModelFlags& model_flags,
                                                               const SamplingFlags& sampling) {
  ASSIGN_OR_RETURN(std::unique_ptr<InferenceClient> client,
                   InferenceClient::Open(model_flags.server, model_flags.model));
  if (!client->model().chat) return NotForChat(client->model().name);
  return std::make_unique<RemoteResponder>(std::move(client), sampling);
}

}  // namespace penstock::cli
