// SPDX-License-Identifier: Apache-2.0
// A conversation as the tokens of a prompt, through the model's own chat template.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/key.h"
#include "base/time.h"
#include "model/chat_template.h"
#include "model/tokenizer.h"

namespace penstock::model {

struct ChatMessage {
  std::string role;  // "system", "user", "assistant", or what else the template knows.
  std::string content;
};

// Renders `messages`, with the opening of the assistant's answer at the end, and encodes the text.
// The beginning-of-text token appears once, whether the template writes it or the tokenizer adds
// it; an end-of-text token is never added. `now` is what strftime_now tells; without, the template
// finds no strftime_now.
//
// No control token begins in a message's content: <|im_end|> written there is the text of these ten
// characters, also where it overlaps with others, and also where a message ends with the beginning
// of one that the next text would complete. What the template itself writes is recognized as
// before, as are user-defined tokens anywhere. To the template, such a place looks as if its first
// character were a noncharacter (U+FDD0 to U+FDEF), which no test for the token finds, and which
// trimming, cutting, joining or copying takes along. Limits: text that becomes a control token only
// by what the template does in its middle (changes case, removes or replaces a part) is one, and so
// is one that begins in the template's own text and ends with a role or a content, as Phi's "<|" +
// role +
// "|>" does on purpose. So let people choose contents, but not roles.
//
// INVALID_ARGUMENT and RESOURCE_EXHAUSTED as ChatTemplate::Render; INVALID_ARGUMENT for a role that
// contains a control token, and for contents with more than 32 of these: different noncharacters of
// their own, and different characters at the beginning of control tokens.
absl::StatusOr<std::vector<TokenId>> EncodeChat(const Tokenizer& tokenizer,
                                                const ChatTemplate& chat_template,
                                                const std::vector<ChatMessage>& messages,
                                                std::optional<CivilTime> now);

}  // namespace penstock::model
