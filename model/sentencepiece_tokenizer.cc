// SPDX-License-Identifier: Apache-2.0
#include "model/sentencepiece_tokenizer.h"

#include <algorithm>
#include <numeric>

#include "base/status.h"
#include "model/utf8.h"

namespace penstock::model {
namespace {

std::string ReplaceAll(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  out.reserve(text.size() + text.size() / 4);
  std::size_t at = 0;
  for (std::size_t next; (next = text.find(from, at)) != std::string_view::npos;) {
    out.append(text.substr(at, next - at)).append(to);
    at = next + from.size();
  }
  out.append(text.substr(at));
  return out;
}

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

// The byte that <0xNN> names, or -1.
int ByteOf(std::string_view piece) {
  if (piece.size() != 6 || piece.substr(0, 3) != "<0x" || piece[5] != '>') return -1;
  const int high = HexDigit(piece[3]);
  const int low = HexDigit(piece[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

std::uint64_t Pair(TokenId left, TokenId right) {
  return std::uint64_t{static_cast<std::uint32_t>(left)} << 32 | static_cast<std::uint32_t>(right);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> SentencePieceTokenizer::Make(VocabularyData data) {
  if (data.scores.empty() && data.merges.empty()) {
    return absl::InvalidArgumentError(
        "the tokenizer is SentencePiece but has neither scores nor merges");
  }
  std::unique_ptr<SentencePieceTokenizer> made(new SentencePieceTokenizer(std::move(data)));
  RETURN_IF_ERROR(made->AddTokens());
  if (made->data_.merges.empty()) {
    made->RankByScore();
  } else {
    RETURN_IF_ERROR(made->AddMerges());
  }
  return std::unique_ptr<Tokenizer>(std::move(made));
}

SentencePieceTokenizer::SentencePieceTokenizer(VocabularyData data)
    : TokenizerBase(std::move(data)) {
  byte_tokens_.fill(-1);
}

absl::Status SentencePieceTokenizer::AddTokens() {
  by_piece_.reserve(data_.pieces.size());
  for (TokenId token = 0; token < vocab(); ++token) {
    const std::string& piece = data_.pieces[token];
    const TokenKind kind = data_.kinds[token];
    RETURN_IF_ERROR(AddSpecialToken(Normalize(piece), token));
    if (kind == TokenKind::kByte) {
      const int byte = ByteOf(piece);
      if (byte < 0) {
        return absl::InvalidArgumentError(
            absl::StrCat("token ", token, " is a byte but reads \"", piece, "\", not <0xNN>"));
      }
      byte_tokens_[byte] = token;
      AddTokenBytes(std::string(1, static_cast<char>(byte)));
      continue;
    }
    const bool escaped = data_.escape_whitespace && kind != TokenKind::kControl;
    AddTokenBytes(escaped ? ReplaceAll(piece, kSentencePieceSpace, " ") : piece);
    if (kind == TokenKind::kControl || kind == TokenKind::kUnknown || piece.empty()) continue;
    const auto [known, added] = by_piece_.try_emplace(piece, token);
    if (!added) {
      return absl::InvalidArgumentError(
          absl::StrCat("tokens ", known->second, " and ", token, " are both \"", piece, "\""));
    }
    piece_bytes_max_ = std::max(piece_bytes_max_, piece.size());
    std::string_view last;
    for (std::string_view rest = piece; !rest.empty();) {
      const std::string_view character = rest.substr(0, NextUtf8(rest).bytes);
      if (character == kSentencePieceSpace && !last.empty())
        before_space_.insert(std::string(last));
      last = character;
      rest.remove_prefix(character.size());
    }
  }
  return absl::OkStatus();
}

absl::Status SentencePieceTokenizer::AddMerges() {
  merges_.reserve(data_.merges.size());
  for (std::size_t i = 0; i < data_.merges.size(); ++i) {
    const absl::string_view merge = data_.merges[i];
    bool found = false;
    // A piece may hold a space itself where spaces are not escaped: try every cut.
    for (std::size_t space = merge.find(' '); space != merge.npos && !found;
         space = merge.find(' ', space + 1)) {
      const auto left = by_piece_.find(merge.substr(0, space));
      const auto right = by_piece_.find(merge.substr(space + 1));
      if (left == by_piece_.end() || right == by_piece_.end()) continue;
      const auto merged = by_piece_.find(absl::StrCat(left->first, right->first));
      if (merged == by_piece_.end()) continue;
      merges_.try_emplace(Pair(left->second, right->second),
                          Merge{static_cast<std::int32_t>(i), merged->second});
      found = true;
    }
    if (!found) {
      return absl::InvalidArgumentError(absl::StrCat(
          "merge ", i, " \"", merge, "\" names or makes a piece that the vocabulary lacks"));
    }
  }
  return absl::OkStatus();
}

void SentencePieceTokenizer::RankByScore() {
  std::vector<TokenId> order(data_.pieces.size());
  std::iota(order.begin(), order.end(), 0);
  // NaN would break the order of the sort.
  const auto score = [this](TokenId token) {
    const float s = data_.scores[token];
    return s == s ? s : -std::numeric_limits<float>::infinity();
  };
  std::sort(order.begin(), order.end(), [&](TokenId a, TokenId b) { return score(a) > score(b); });
  ranks_.resize(order.size());
  std::int32_t rank = 0;
  for (std::size_t i = 0; i < order.size(); ++i) {
    if (i > 0 && score(order[i]) < score(order[i - 1])) ++rank;
    ranks_[order[i]] = rank;  // Equal scores have equal ranks: the leftmost pair merges first.
  }
}

std::string SentencePieceTokenizer::Normalize(std::string_view text) const {
  return data_.escape_whitespace ? ReplaceAll(text, " ", kSentencePieceSpace) : std::string(text);
}

void SentencePieceTokenizer::EncodePlain(std::string_view text,
                                         std::vector<TokenId>* tokens) const {
  std::vector<Symbol> scratch;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = WordEnd(text, at);
    EncodeWord(text.substr(at, end - at), &scratch, tokens);
    at = end;
  }
}

std::size_t SentencePieceTokenizer::WordEnd(std::string_view text, std::size_t at) const {
  for (std::size_t space = text.find(kSentencePieceSpace, at + 1); space != std::string_view::npos;
       space = text.find(kSentencePieceSpace, space + kSentencePieceSpace.size())) {
    // The character before: at most three continuation bytes back, whole if it was valid.
    std::size_t begin = space - 1;
    while (begin > at && space - begin < 4 && (text[begin] & 0xC0) == 0x80) --begin;
    const std::string_view character = text.substr(begin, space - begin);
    const Utf8Step step = NextUtf8(character);
    if (!step.valid || static_cast<std::size_t>(step.bytes) != character.size()) return space;
    if (!before_space_.contains(ToAbsl(character))) return space;
  }
  return text.size();
}

void SentencePieceTokenizer::EncodeWord(std::string_view word, std::vector<Symbol>* scratch,
                                        std::vector<TokenId>* tokens) const {
  scratch->clear();
  for (std::size_t at = 0; at < word.size();) {
    const Utf8Step step = NextUtf8(word.substr(at));
    const auto bytes = static_cast<std::size_t>(step.bytes);
    TokenId token = -1;
    if (step.valid) {
      const auto known = by_piece_.find(ToAbsl(word.substr(at, bytes)));
      if (known != by_piece_.end()) token = known->second;
    }
    scratch->push_back({token, at, bytes});
    at += bytes;
  }
  MergeSymbols(scratch, [&](const Symbol& left, const Symbol& right) {
    if (ranks_.empty()) {
      const auto merge = merges_.find(Pair(left.token, right.token));
      return merge == merges_.end() ? Merge{} : merge->second;
    }
    if (left.bytes + right.bytes > piece_bytes_max_) return Merge{};
    const auto made = by_piece_.find(ToAbsl(word.substr(left.begin, left.bytes + right.bytes)));
    return made == by_piece_.end() ? Merge{} : Merge{ranks_[made->second], made->second};
  });
  for (const Symbol& symbol : *scratch) {
    if (symbol.token >= 0) {
      tokens->push_back(symbol.token);
    } else {
      AppendUnknown(word.substr(symbol.begin, symbol.bytes), tokens);
    }
  }
}

void SentencePieceTokenizer::AppendUnknown(std::string_view bytes,
                                           std::vector<TokenId>* tokens) const {
  const auto token_of = [this](char byte) {
    return byte_tokens_[static_cast<unsigned char>(byte)];
  };
  const bool all =
      std::all_of(bytes.begin(), bytes.end(), [&](char b) { return token_of(b) >= 0; });
  if (data_.byte_fallback && all) {
    for (const char byte : bytes) tokens->push_back(token_of(byte));
  } else if (data_.unknown) {
    tokens->push_back(*data_.unknown);
  }
}

}  // namespace penstock::model
