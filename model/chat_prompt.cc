// SPDX-License-Identifier: Apache-2.0
#include "model/chat_prompt.h"

#include "base/status.h"

namespace penstock::model {

absl::StatusOr<std::vector<TokenId>> EncodeChat(const Tokenizer& tokenizer,
                                                const ChatTemplate& chat_template,
                                                const std::vector<ChatMessage>& messages) {
  const auto name = [&tokenizer](const std::optional<TokenId>& token) {
    return token.has_value() ? tokenizer.Piece(*token, /*special=*/true) : std::string();
  };
  const std::string bos = name(tokenizer.data().bos);
  nlohmann::ordered_json variables = {{"bos_token", bos},
                                      {"eos_token", name(tokenizer.data().eos)},
                                      {"add_generation_prompt", true},
                                      {"messages", nlohmann::ordered_json::array()}};
  for (const ChatMessage& message : messages) {
    variables["messages"].push_back({{"role", message.role}, {"content", message.content}});
  }
  ASSIGN_OR_RETURN(const std::string text, chat_template.Render(variables));
  const bool has_bos = !bos.empty() && text.starts_with(bos);
  return tokenizer.Encode(text, {.parse_special = true, .add_bos = !has_bos});
}

}  // namespace penstock::model
