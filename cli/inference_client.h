// SPDX-License-Identifier: Apache-2.0
// A client of a running cluster, for the commands that take --server: asks a gateway what they
// would else ask an engine in this process. Calls block; one thread.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "base/key.h"
#include "cli/answer.h"
#include "cli/terminal.h"
#include "engine/sampler.h"
#include "model/chat_prompt.h"

namespace penstock::cli {

class InferenceClient {
 public:
  struct Model {
    std::string name;
    std::int32_t context_tokens = 0;
    bool chat = false;  // It has a chat template.
  };
  // Asks the gateway at `server` ("host:port") for its models. `model` is the one that is meant, or
  // empty where there is one alone. UNAVAILABLE: nobody answers there. NOT_FOUND: no such model.
  static absl::StatusOr<std::unique_ptr<InferenceClient>> Open(const std::string& server,
                                                               const std::string& model);
  ~InferenceClient();

  const Model& model() const { return model_; }

  struct Tokens {
    std::vector<TokenId> ids;
    std::vector<std::string> pieces;
  };
  absl::StatusOr<Tokens> Tokenize(const std::string& text, bool special, bool bare, bool pieces);
  // The prompt that a conversation makes.
  absl::StatusOr<Tokens> Tokenize(const std::vector<model::ChatMessage>& messages);

  struct Ask {
    // A text to go on with, or a conversation.
    std::variant<std::string, std::vector<model::ChatMessage>> prompt;
    engine::SamplingParams sampling;
    std::int32_t n = 1;
    std::int32_t max_tokens = 0;
    std::vector<std::string> stops;
    bool ignore_eos = false;
    LossClass reuse = LossClass::kExact;
  };
  struct Reply {
    Answers answers;
    std::vector<TokenId> prompt;
    std::map<TokenId, std::string> pieces;  // Of all tokens that have a log-probability.
  };
  // As RunRequest, over there. Errors as penstock.v1.Inference.
  absl::StatusOr<Reply> Run(const Ask& ask, InterruptWatch& interrupts,
                            absl::FunctionRef<bool(std::int32_t, std::string_view)> emit);

 private:
  struct Rpc;
  explicit InferenceClient(std::unique_ptr<Rpc> rpc);

  std::unique_ptr<Rpc> rpc_;
  Model model_;
};

}  // namespace penstock::cli
