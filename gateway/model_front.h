// SPDX-License-Identifier: Apache-2.0
// What a gateway needs of a model that it serves: tokenizer and chat template. No weights.
//
// Immutable once open; any thread.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/key.h"
#include "base/time.h"
#include "model/chat_prompt.h"
#include "model/chat_template.h"
#include "model/model_file.h"
#include "model/tokenizer.h"

namespace penstock::gateway {

class ModelFront {
 public:
  // `name` is what requests call it (1 to 256 bytes of UTF-8), `path` a model file or folder. As
  // ModelFile::Open and Tokenizer::Make; a chat template that does not compile only fails chats.
  static absl::StatusOr<std::shared_ptr<const ModelFront>> Open(std::string name,
                                                                const std::string& path);

  const std::string& name() const { return name_; }
  const model::Tokenizer& tokenizer() const { return *tokenizer_; }
  std::int32_t vocab() const { return vocab_; }
  // What the model was trained for; workers may have less.
  std::int32_t context_tokens_max() const { return context_tokens_max_; }
  // No token stands for more bytes of text than this.
  std::size_t token_bytes_max() const { return token_bytes_max_; }
  bool has_chat_template() const { return chat_template_.ok(); }
  // "llama/30x576", as workers name the model's shape among what they must have in common.
  const std::string& shape() const { return shape_; }

  // Through the chat template. INVALID_ARGUMENT: there is none, or what model::EncodeChat says.
  absl::StatusOr<std::vector<TokenId>> EncodeChat(const std::vector<model::ChatMessage>& messages,
                                                  CivilTime today) const;

 private:
  ModelFront() = default;

  std::string name_;
  std::string shape_;
  std::int32_t vocab_ = 0;
  std::int32_t context_tokens_max_ = 0;
  std::size_t token_bytes_max_ = 1;
  std::unique_ptr<model::Tokenizer> tokenizer_;
  absl::StatusOr<std::unique_ptr<model::ChatTemplate>> chat_template_;
};

}  // namespace penstock::gateway
