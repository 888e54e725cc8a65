// SPDX-License-Identifier: Apache-2.0
// A conversation as the tokens of a prompt, through the model's own chat template.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/key.h"
#include "model/chat_template.h"
#include "model/tokenizer.h"

namespace penstock::model {

struct ChatMessage {
  std::string role;  // "system", "user", "assistant", or what else the template knows.
  std::string content;
};

// Renders `messages`, with the opening of the assistant's answer at the end, and encodes the text.
// The beginning-of-text token appears once, whether the template writes it or the tokenizer adds
// it. Control tokens are recognized in the whole text, so also in what the messages contain.
// INVALID_ARGUMENT and RESOURCE_EXHAUSTED as ChatTemplate::Render.
absl::StatusOr<std::vector<TokenId>> EncodeChat(const Tokenizer& tokenizer,
                                                const ChatTemplate& chat_template,
                                                const std::vector<ChatMessage>& messages);

}  // namespace penstock::model
