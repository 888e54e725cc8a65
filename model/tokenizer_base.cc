// SPDX-License-Identifier: Apache-2.0
#include "model/tokenizer_base.h"

#include "base/check.h"
#include "base/status.h"

namespace penstock::model {
namespace {

constexpr std::size_t kVocabMax = std::size_t{1} << 24;
constexpr std::size_t kPieceBytesMax = std::size_t{1} << 16;
constexpr std::string_view kWhiteSpace = " \t\r\n\v\f";

absl::Status CheckId(std::string_view name, TokenId token, std::size_t vocab) {
  if (token >= 0 && static_cast<std::size_t>(token) < vocab) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(ToAbsl(name), " token is ", token, ", the vocabulary has ", vocab, " tokens"));
}

absl::Status CheckSize(std::string_view name, std::size_t size, std::size_t vocab) {
  if (size == vocab) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("the vocabulary has ", vocab, " tokens but ", size, " ", ToAbsl(name)));
}

std::string SpacePrefix(const VocabularyData& data) {
  if (data.scheme != VocabularyData::Scheme::kSentencePiece || !data.add_space_prefix) return {};
  return data.escape_whitespace ? std::string(kSentencePieceSpace) : " ";
}

}  // namespace

absl::Status CheckVocabulary(const VocabularyData& data) {
  const std::size_t vocab = data.pieces.size();
  if (vocab == 0 || vocab > kVocabMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("the vocabulary has ", vocab, " tokens, not 1 to ", kVocabMax));
  }
  RETURN_IF_ERROR(CheckSize("kinds", data.kinds.size(), vocab));
  if (!data.scores.empty()) RETURN_IF_ERROR(CheckSize("scores", data.scores.size(), vocab));
  for (std::size_t i = 0; i < vocab; ++i) {
    if (data.pieces[i].size() > kPieceBytesMax) {
      return absl::InvalidArgumentError(absl::StrCat("token ", i, " has ", data.pieces[i].size(),
                                                     " bytes, at most ", kPieceBytesMax));
    }
  }
  if (data.bos) RETURN_IF_ERROR(CheckId("bos", *data.bos, vocab));
  if (data.eos) RETURN_IF_ERROR(CheckId("eos", *data.eos, vocab));
  if (data.unknown) RETURN_IF_ERROR(CheckId("unknown", *data.unknown, vocab));
  if (data.padding) RETURN_IF_ERROR(CheckId("padding", *data.padding, vocab));
  for (const TokenId token : data.end_of_generation) {
    RETURN_IF_ERROR(CheckId("end-of-generation", token, vocab));
  }
  if (data.add_bos && !data.bos) {
    return absl::InvalidArgumentError("the vocabulary asks for a bos token but names none");
  }
  if (data.add_eos && !data.eos) {
    return absl::InvalidArgumentError("the vocabulary asks for an eos token but names none");
  }
  return absl::OkStatus();
}

TokenizerBase::TokenizerBase(VocabularyData data)
    : data_(std::move(data)),
      space_prefix_(SpacePrefix(data_)),
      end_of_generation_(data_.end_of_generation.begin(), data_.end_of_generation.end()) {
  begins_.reserve(data_.pieces.size() + 1);
}

void TokenizerBase::AddTokenBytes(std::string_view bytes) {
  bytes_.append(bytes);
  begins_.push_back(bytes_.size());
}

absl::Status TokenizerBase::AddSpecialToken(std::string_view text, TokenId token) {
  const TokenKind kind = data_.kinds[token];
  if (kind != TokenKind::kControl && kind != TokenKind::kUserDefined) return absl::OkStatus();
  if (text.empty()) return absl::OkStatus();  // Nothing to look for; decodes to nothing.
  if (text.size() > SpecialTokens::kBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat("special token ", token, " has ", text.size(),
                                                   " bytes, at most ", SpecialTokens::kBytesMax));
  }
  special_tokens_.Add(text, token, kind == TokenKind::kUserDefined);
  return absl::OkStatus();
}

std::vector<std::size_t> TokenizerBase::ControlOffsets(std::string_view text,
                                                       bool cut_short) const {
  const std::string normal = Normalize(text);
  const std::size_t solid = text.find_last_not_of(kWhiteSpace) + 1;
  const std::string_view cut =
      std::string_view(normal).substr(0, Normalize(text.substr(0, solid)).size());
  std::vector<std::size_t> offsets;
  std::size_t end = 0;
  for (std::size_t at = 0; at < text.size(); ++at) {
    const std::size_t begin = end;
    end += normal.size() == text.size() ? 1 : Normalize(text.substr(at, 1)).size();
    bool control = false;
    for (std::size_t i = begin; i < end && !control; ++i) {
      control = special_tokens_.ControlAt(normal, i, /*cut_short=*/false) ||
                (cut_short && special_tokens_.ControlAt(cut, i, /*cut_short=*/true));
    }
    if (control) offsets.push_back(at);
  }
  return offsets;
}

std::vector<TokenId> TokenizerBase::Encode(std::string_view text,
                                           const EncodeOptions& options) const {
  std::string normal;
  std::vector<std::size_t> literal;  // Every byte of what a literal byte becomes.
  std::size_t at = 0;
  for (const std::size_t offset : options.literal) {
    CHECK(offset >= at && offset < text.size());
    normal += Normalize(text.substr(at, offset - at));
    at = offset + 1;
    const std::string one = Normalize(text.substr(offset, 1));
    for (std::size_t i = 0; i < one.size(); ++i) literal.push_back(normal.size() + i);
    normal += one;
  }
  normal += Normalize(text.substr(at));
  EncodeOptions normal_options = options;
  normal_options.literal = literal;
  if (!space_prefix_.empty() && !normal.empty()) {
    const auto first = special_tokens_.Next(normal, 0, options.parse_special, literal);
    const bool control =
        first && first->at == 0 && data_.kinds[first->token] == TokenKind::kControl;
    if (!control) {
      normal.insert(0, space_prefix_);
      for (std::size_t& offset : literal) offset += space_prefix_.size();
    }
  }
  return EncodeNormal(normal, normal_options);
}

std::vector<TokenId> TokenizerBase::EncodeNormal(std::string_view text,
                                                 const EncodeOptions& options) const {
  std::vector<TokenId> tokens;
  if (options.add_bos && data_.add_bos) tokens.push_back(*data_.bos);
  bool after_bos = false;
  for (std::size_t at = 0; at < text.size();) {
    const auto found = special_tokens_.Next(text, at, options.parse_special, options.literal);
    const std::size_t end = found ? found->at : text.size();
    const std::string_view plain = text.substr(at, end - at);
    if (after_bos && !plain.empty()) {
      EncodePlain(absl::StrCat(space_prefix_, ToAbsl(plain)), &tokens);
    } else if (!plain.empty()) {
      EncodePlain(plain, &tokens);
    }
    at = end;
    if (found) {
      tokens.push_back(found->token);
      after_bos = found->token == data_.bos;
      at += found->bytes;
    }
  }
  if (options.add_eos && data_.add_eos) tokens.push_back(*data_.eos);
  return tokens;
}

std::string_view TokenizerBase::VisibleBytes(TokenId token, bool special) const {
  if (token < 0 || token >= vocab()) return {};
  const TokenKind kind = data_.kinds[token];
  if (!special && (kind == TokenKind::kControl || kind == TokenKind::kUnknown)) return {};
  return TokenBytes(token);
}

std::string TokenizerBase::Piece(TokenId token, bool special) const {
  return std::string(VisibleBytes(token, special));
}

std::string TokenizerBase::Decode(std::span<const TokenId> tokens, bool special) const {
  std::string text;
  bool starts = !space_prefix_.empty();
  for (const TokenId token : tokens) {
    std::string_view bytes = VisibleBytes(token, special);
    if (token == data_.bos) {
      starts = !space_prefix_.empty();
    } else if (!bytes.empty()) {
      if (starts && bytes[0] == ' ') bytes.remove_prefix(1);
      starts = false;
    }
    text.append(bytes);
  }
  return text;
}

}  // namespace penstock::model
