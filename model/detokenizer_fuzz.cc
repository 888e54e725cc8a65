// SPDX-License-Identifier: Apache-2.0
// Any bytes, cut into tokens at any place, come out of the stream as they come out at once: valid
// UTF-8 with U+FFFD for every maximal ill-formed subpart.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "model/tokenizer.h"
#include "model/utf8.h"

namespace penstock::model {
namespace {

// The well-formed sequences of Unicode's table 3-7, as ranges per byte.
struct Form {
  std::vector<std::pair<unsigned char, unsigned char>> bytes;
};
const std::vector<Form>& Forms() {
  static const std::vector<Form> forms = {
      {{{0x00, 0x7F}}},
      {{{0xC2, 0xDF}, {0x80, 0xBF}}},
      {{{0xE0, 0xE0}, {0xA0, 0xBF}, {0x80, 0xBF}}},
      {{{0xE1, 0xEC}, {0x80, 0xBF}, {0x80, 0xBF}}},
      {{{0xED, 0xED}, {0x80, 0x9F}, {0x80, 0xBF}}},
      {{{0xEE, 0xEF}, {0x80, 0xBF}, {0x80, 0xBF}}},
      {{{0xF0, 0xF0}, {0x90, 0xBF}, {0x80, 0xBF}, {0x80, 0xBF}}},
      {{{0xF1, 0xF3}, {0x80, 0xBF}, {0x80, 0xBF}, {0x80, 0xBF}}},
      {{{0xF4, 0xF4}, {0x80, 0x8F}, {0x80, 0xBF}, {0x80, 0xBF}}},
  };
  return forms;
}

// The slow and obvious version.
std::string Replaced(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    std::size_t longest = 1;
    bool whole = false;
    for (const Form& form : Forms()) {
      std::size_t fits = 0;
      while (fits < form.bytes.size() && fits < text.size() &&
             static_cast<unsigned char>(text[fits]) >= form.bytes[fits].first &&
             static_cast<unsigned char>(text[fits]) <= form.bytes[fits].second) {
        ++fits;
      }
      whole = whole || fits == form.bytes.size();
      longest = std::max(longest, fits);
    }
    out.append(whole ? text.substr(0, longest) : "\xEF\xBF\xBD");
    text.remove_prefix(longest);
  }
  return out;
}

void Check(std::string_view input) {
  VocabularyData data;
  data.pieces = {"a", "b", "ab"};
  data.merges = {"a b"};
  std::vector<TokenId> tokens;
  const auto add = [&](std::string_view piece) {
    const auto known = std::find(data.pieces.begin(), data.pieces.end(), piece);
    tokens.push_back(static_cast<TokenId>(known - data.pieces.begin()));
    if (known == data.pieces.end()) data.pieces.emplace_back(piece);
  };
  // The first byte says how large the pieces are, more or less.
  const std::size_t around = input.empty() ? 1 : 1 + static_cast<unsigned char>(input[0]) % 7;
  std::string bytes;
  for (std::size_t at = 1; at < input.size();) {
    const std::size_t size = 1 + (at * 7 + around) % around;
    const std::string_view piece = input.substr(at, size);
    add(piece);
    bytes.append(piece);
    at += piece.size();
  }
  data.kinds.assign(data.pieces.size(), TokenKind::kUserDefined);
  const auto tokenizer = Tokenizer::Make(data);
  CHECK(tokenizer.ok());
  CHECK((*tokenizer)->Decode(tokens, false) == bytes);
  StreamingDetokenizer stream(**tokenizer, false);
  std::string text;
  for (const TokenId token : tokens) {
    const std::string part = stream.Add(token);
    CHECK_EQ(ValidUtf8Prefix(part), part.size());
    text += part;
  }
  text += stream.Finish();
  CHECK(text == Replaced(bytes));
  CHECK(text == ReplaceInvalidUtf8(bytes));
}

}  // namespace
}  // namespace penstock::model

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  constexpr std::size_t kBytesMax = 4096;  // Looking up pieces is quadratic.
  const std::string_view input(reinterpret_cast<const char*>(data), std::min(size, kBytesMax));
  penstock::model::Check(input);
  return 0;
}
