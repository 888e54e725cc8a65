// SPDX-License-Identifier: Apache-2.0
#include "model/chat_prompt.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "base/status.h"
#include "model/utf8.h"

namespace penstock::model {
namespace {

using Json = nlohmann::ordered_json;

// Noncharacters that stand for the first characters of control tokens while a template renders. One
// that a message contains itself stands for nothing, so all of them come back as they were.
class StandIns {
 public:
  StandIns(const Tokenizer& tokenizer, const std::vector<ChatMessage>& messages)
      : tokenizer_(tokenizer) {
    for (const ChatMessage& message : messages) {
      Take(message.role);
      Take(message.content);
    }
  }

  absl::StatusOr<std::string> Replace(std::string_view content) {
    std::string out;
    std::size_t at = 0;
    for (const std::size_t offset : tokenizer_.ControlOffsets(content, /*cut_short=*/true)) {
      if (offset < at) continue;  // A later byte of a character that is replaced.
      while (at < offset) {
        const auto bytes = static_cast<std::size_t>(NextUtf8(content.substr(at)).bytes);
        if (at + bytes > offset) break;
        out += content.substr(at, bytes);
        at += bytes;
      }
      const auto bytes = static_cast<std::size_t>(NextUtf8(content.substr(at)).bytes);
      ASSIGN_OR_RETURN(const std::size_t stand_in, For(content.substr(at, bytes)));
      AppendUtf8(static_cast<std::uint32_t>(kFirst + stand_in), &out);
      at += bytes;
    }
    return out.append(content.substr(at));
  }

  // The text meant by `rendered`, and the offsets of the bytes that were replaced.
  std::string Restore(std::string_view rendered, std::vector<std::size_t>* literal) const {
    std::string out;
    for (std::size_t at = 0; at < rendered.size();) {
      const int i = IndexAt(rendered, at);
      if (i < 0 || meaning_[i].empty()) {
        out.push_back(rendered[at++]);
        continue;
      }
      for (const char byte : meaning_[i]) {
        literal->push_back(out.size());
        out.push_back(byte);
      }
      at += kBytes;
    }
    return out;
  }

 private:
  static constexpr std::uint32_t kFirst = 0xFDD0;
  static constexpr std::size_t kCount = 32;
  static constexpr std::size_t kBytes = 3;  // In UTF-8: EF B7 90 to EF B7 AF.

  // Which noncharacter stands at `at`, or -1.
  static int IndexAt(std::string_view text, std::size_t at) {
    if (text[at] != '\xEF' || at + kBytes > text.size() || text[at + 1] != '\xB7') return -1;
    const int i = static_cast<unsigned char>(text[at + 2]) - 0x90;
    return i >= 0 && i < static_cast<int>(kCount) ? i : -1;
  }

  void Take(std::string_view text) {
    for (std::size_t at = 0; at < text.size(); ++at) {
      if (const int i = IndexAt(text, at); i >= 0) taken_[i] = true;
    }
  }

  absl::StatusOr<std::size_t> For(std::string_view character) {
    for (std::size_t i = 0; i < kCount; ++i) {
      if (taken_[i]) continue;
      if (meaning_[i].empty()) meaning_[i] = std::string(character);
      if (meaning_[i] == character) return i;
    }
    return absl::InvalidArgumentError(absl::StrCat(
        "the messages have too many different noncharacters (U+FDD0 to U+FDEF) and beginnings of "
        "control tokens: together more than ",
        kCount));
  }

  const Tokenizer& tokenizer_;
  std::array<bool, kCount> taken_{};
  std::array<std::string, kCount> meaning_;  // Empty: none yet.
};

absl::StatusOr<Json> ToJson(const Tokenizer& tokenizer, const std::vector<ChatMessage>& messages,
                            StandIns* stand_ins) {
  Json out = Json::array();
  for (const ChatMessage& message : messages) {
    if (!tokenizer.ControlOffsets(message.role, /*cut_short=*/false).empty()) {
      return absl::InvalidArgumentError(absl::StrCat("the role of message ", out.size() + 1, " of ",
                                                     messages.size(),
                                                     " contains the text of a control token"));
    }
    ASSIGN_OR_RETURN(std::string content, stand_ins->Replace(message.content));
    out.push_back({{"role", message.role}, {"content", std::move(content)}});
  }
  return out;
}

}  // namespace

absl::StatusOr<std::vector<TokenId>> EncodeChat(const Tokenizer& tokenizer,
                                                const ChatTemplate& chat_template,
                                                const std::vector<ChatMessage>& messages,
                                                std::optional<CivilTime> now) {
  const auto name = [&tokenizer](const std::optional<TokenId>& token) {
    return token.has_value() ? tokenizer.Piece(*token, /*special=*/true) : std::string();
  };
  const std::string bos = name(tokenizer.data().bos);
  Json variables = {{"bos_token", bos},
                    {"eos_token", name(tokenizer.data().eos)},
                    {"add_generation_prompt", true}};
  if (now.has_value()) variables["now_unix_seconds"] = now->time_since_epoch().count();
  StandIns stand_ins(tokenizer, messages);
  ASSIGN_OR_RETURN(variables["messages"], ToJson(tokenizer, messages, &stand_ins));
  ASSIGN_OR_RETURN(const std::string rendered, chat_template.Render(variables));
  std::vector<std::size_t> literal;
  const std::string text = stand_ins.Restore(rendered, &literal);
  const bool written = literal.empty() || literal[0] != 0;  // By the template, what comes first.
  const bool has_bos = !bos.empty() && text.starts_with(bos) && written;
  return tokenizer.Encode(text, {.parse_special = true, .add_bos = !has_bos, .literal = literal});
}

}  // namespace penstock::model
