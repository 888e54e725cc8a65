// SPDX-License-Identifier: Apache-2.0
#include "gateway/model_front.h"

#include <algorithm>
#include <utility>

#include "base/status.h"
#include "model/utf8.h"

namespace penstock::gateway {

absl::StatusOr<std::shared_ptr<const ModelFront>> ModelFront::Open(std::string name,
                                                                   const std::string& path) {
  RETURN_IF_ERROR(
      CheckRange("length of a model's name", static_cast<std::int64_t>(name.size()), 1, 256));
  if (model::ValidUtf8Prefix(name) != name.size()) {
    return absl::InvalidArgumentError("a model's name must be valid UTF-8");
  }
  ASSIGN_OR_RETURN(const std::unique_ptr<model::ModelFile> file, model::ModelFile::Open(path));
  const std::shared_ptr<ModelFront> front(new ModelFront);
  front->name_ = std::move(name);
  const model::Architecture& architecture = file->architecture();
  front->shape_ =
      absl::StrCat(architecture.family, "/", architecture.layers.size(), "x", architecture.d_model);
  front->vocab_ = architecture.vocab;
  front->context_tokens_max_ = architecture.context_tokens_max;
  ASSIGN_OR_RETURN(front->tokenizer_, model::Tokenizer::Make(file->vocabulary()));
  for (TokenId id = 0; id < front->tokenizer_->vocab(); ++id) {
    front->token_bytes_max_ =
        std::max(front->token_bytes_max_, front->tokenizer_->Piece(id, /*special=*/true).size());
  }
  // Composing characters makes at most one byte of three (Hangul: nine to three).
  if (file->vocabulary().normalize_nfc) front->token_bytes_max_ *= 3;
  if (file->chat_template().has_value()) {
    front->chat_template_ = model::ChatTemplate::Compile(*file->chat_template());
  } else {
    front->chat_template_ = absl::InvalidArgumentError(
        absl::StrCat("model '", front->name_, "' has no chat template: give it a text"));
  }
  return front;
}

absl::StatusOr<std::vector<TokenId>> ModelFront::EncodeChat(
    const std::vector<model::ChatMessage>& messages, CivilTime today) const {
  RETURN_IF_ERROR(chat_template_.status());
  return model::EncodeChat(*tokenizer_, **chat_template_, messages, today);
}

}  // namespace penstock::gateway
