// SPDX-License-Identifier: Apache-2.0
#include "model/bpe_tokenizer.h"

#include <utf8proc.h>

#include <cstdlib>
#include <optional>

#include "base/check.h"
#include "base/status.h"
#include "model/utf8.h"

namespace penstock::model {
namespace {

// GPT-2's alphabet: bytes that print stand for themselves, the others follow from U+0100.
constexpr std::uint32_t kAlphabetEnd = 0x100 + 68;

constexpr bool StandsForItself(std::uint32_t byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte != 0xAD && byte <= 0xFF);
}

// [code point] -> byte, or -1.
constexpr std::array<std::int16_t, kAlphabetEnd> MakeAlphabet() {
  std::array<std::int16_t, kAlphabetEnd> bytes{};
  std::uint32_t next = 0x100;
  for (std::int16_t& byte : bytes) byte = -1;
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    bytes[StandsForItself(byte) ? byte : next++] = static_cast<std::int16_t>(byte);
  }
  return bytes;
}
constexpr std::array<std::int16_t, kAlphabetEnd> kAlphabet = MakeAlphabet();

// The bytes that a piece stands for; nothing if it is not written in the alphabet.
std::optional<std::string> FromAlphabet(std::string_view piece) {
  std::string bytes;
  while (!piece.empty()) {
    const Utf8Step step = NextUtf8(piece);
    if (!step.valid || step.code_point >= kAlphabetEnd || kAlphabet[step.code_point] < 0) {
      return std::nullopt;
    }
    bytes.push_back(static_cast<char>(kAlphabet[step.code_point]));
    piece.remove_prefix(step.bytes);
  }
  return bytes;
}

std::uint64_t Pair(TokenId left, TokenId right) {
  return std::uint64_t{static_cast<std::uint32_t>(left)} << 32 | static_cast<std::uint32_t>(right);
}

bool InAlphabet(TokenKind kind) {
  return kind == TokenKind::kNormal || kind == TokenKind::kUnused || kind == TokenKind::kByte;
}

bool IsAscii(std::string_view text) {
  for (const char c : text) {
    if (static_cast<unsigned char>(c) >= 0x80) return false;
  }
  return true;
}

std::string ToNfc(std::string_view text) {
  utf8proc_uint8_t* mapped = nullptr;
  const utf8proc_ssize_t size =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                   static_cast<utf8proc_ssize_t>(text.size()), &mapped,
                   static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  if (size < 0) return std::string(text);  // Valid UTF-8 can only fail for memory.
  std::string out(reinterpret_cast<const char*>(mapped), static_cast<std::size_t>(size));
  std::free(mapped);
  return out;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> BpeTokenizer::Make(VocabularyData data) {
  if (data.merges.empty()) {
    return absl::InvalidArgumentError("the tokenizer is byte-level BPE but has no merges");
  }
  ASSIGN_OR_RETURN(std::unique_ptr<PreTokenizer> pre_tokenizer, PreTokenizer::Make(data.splits));
  std::unique_ptr<BpeTokenizer> made(new BpeTokenizer(std::move(data), std::move(pre_tokenizer)));
  PieceIds by_piece;
  RETURN_IF_ERROR(made->AddTokens(&by_piece));
  RETURN_IF_ERROR(made->AddMerges(by_piece));
  made->AddWholeTokens();
  return std::unique_ptr<Tokenizer>(std::move(made));
}

BpeTokenizer::BpeTokenizer(VocabularyData data, std::unique_ptr<PreTokenizer> pre_tokenizer)
    : TokenizerBase(std::move(data)),
      pre_tokenizer_(std::move(pre_tokenizer)),
      is_whole_(data_.pieces.size()) {
  byte_tokens_.fill(-1);
  if (!data_.ignore_merges) return;
  for (std::atomic<Whole>& whole : is_whole_) whole = Whole::kYes;
}

absl::Status BpeTokenizer::AddTokens(PieceIds* by_piece) {
  by_piece->reserve(data_.pieces.size());
  for (TokenId token = 0; token < vocab(); ++token) {
    const std::string& piece = data_.pieces[token];
    const TokenKind kind = data_.kinds[token];
    std::optional<std::string> bytes;
    if (InAlphabet(kind)) bytes = FromAlphabet(piece);
    AddTokenBytes(bytes ? *bytes : piece);
    RETURN_IF_ERROR(AddSpecialToken(piece, token));
    if (piece.empty() || kind == TokenKind::kUnused) continue;
    const auto [known, added] = by_piece->try_emplace(piece, token);
    if (!added) {
      return absl::InvalidArgumentError(
          absl::StrCat("tokens ", known->second, " and ", token, " are both \"", piece, "\""));
    }
    if (bytes && bytes->size() == 1) byte_tokens_[static_cast<unsigned char>((*bytes)[0])] = token;
  }
  return absl::OkStatus();
}

absl::Status BpeTokenizer::AddMerges(const PieceIds& by_piece) {
  if (data_.merges.size() > static_cast<std::size_t>(Merge::kNone)) {
    return absl::InvalidArgumentError(
        absl::StrCat("the tokenizer has ", data_.merges.size(), " merges"));
  }
  merges_.reserve(data_.merges.size());
  for (std::size_t i = 0; i < data_.merges.size(); ++i) {
    const absl::string_view merge = data_.merges[i];
    const std::size_t space = merge.find(' ');  // The alphabet has no space.
    const absl::string_view left = merge.substr(0, space);
    const absl::string_view right =
        space == merge.npos ? absl::string_view() : merge.substr(space + 1);
    const auto left_id = by_piece.find(left);
    const auto right_id = by_piece.find(right);
    const auto merged_id = by_piece.find(absl::StrCat(left, right));
    if (left_id == by_piece.end() || right_id == by_piece.end() || merged_id == by_piece.end()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "merge ", i, " \"", merge, "\" names or makes a piece that the vocabulary lacks"));
    }
    merges_.try_emplace(Pair(left_id->second, right_id->second),
                        Merge{static_cast<std::int32_t>(i), merged_id->second});
  }
  return absl::OkStatus();
}

void BpeTokenizer::AddWholeTokens() {
  whole_.reserve(data_.pieces.size());
  for (TokenId token = 0; token < vocab(); ++token) {
    const std::string_view bytes = TokenBytes(token);
    if (data_.kinds[token] == TokenKind::kNormal && !bytes.empty()) {
      whole_.try_emplace(ToAbsl(bytes), token);
    }
  }
}

void BpeTokenizer::EncodePlain(std::string_view text, std::vector<TokenId>* tokens) const {
  std::vector<Symbol> scratch;
  while (!text.empty()) {
    const std::size_t valid = ValidUtf8Prefix(text);
    if (valid > 0) EncodeValid(text.substr(0, valid), &scratch, tokens);
    text.remove_prefix(valid);
    if (text.empty()) break;
    const std::size_t broken = static_cast<std::size_t>(NextUtf8(text).bytes);
    for (const char byte : text.substr(0, broken)) AppendByte(byte, tokens);
    text.remove_prefix(broken);
  }
}

void BpeTokenizer::EncodeValid(std::string_view text, std::vector<Symbol>* scratch,
                               std::vector<TokenId>* tokens) const {
  const auto encode = [&](std::string_view piece) { EncodePiece(piece, scratch, tokens); };
  if (data_.normalize_nfc && !IsAscii(text)) {
    const std::string normal = ToNfc(text);
    pre_tokenizer_->Split(normal, encode);
  } else {
    pre_tokenizer_->Split(text, encode);
  }
}

void BpeTokenizer::EncodePiece(std::string_view piece, std::vector<Symbol>* scratch,
                               std::vector<TokenId>* tokens) const {
  const auto known = whole_.find(ToAbsl(piece));
  std::atomic<Whole>* whole = known == whole_.end() ? nullptr : &is_whole_[known->second];
  if (whole != nullptr && whole->load(std::memory_order_relaxed) == Whole::kYes) {
    tokens->push_back(known->second);
    return;
  }
  MergeBytes(piece, scratch);
  if (whole != nullptr && whole->load(std::memory_order_relaxed) == Whole::kUnknown) {
    const bool one = scratch->size() == 1 && scratch->front().token == known->second;
    whole->store(one ? Whole::kYes : Whole::kNo, std::memory_order_relaxed);
  }
  for (const Symbol& symbol : *scratch) {
    if (symbol.token >= 0) {
      tokens->push_back(symbol.token);
    } else {
      AppendByte(piece[symbol.begin], tokens);
    }
  }
}

void BpeTokenizer::MergeBytes(std::string_view piece, std::vector<Symbol>* symbols) const {
  symbols->clear();
  for (std::size_t i = 0; i < piece.size(); ++i) {
    symbols->push_back({byte_tokens_[static_cast<unsigned char>(piece[i])], i, 1});
  }
  MergeSymbols(symbols, [this](const Symbol& left, const Symbol& right) {
    const auto merge = merges_.find(Pair(left.token, right.token));
    return merge == merges_.end() ? Merge{} : merge->second;
  });
}

void BpeTokenizer::AppendByte(char byte, std::vector<TokenId>* tokens) const {
  const TokenId token = byte_tokens_[static_cast<unsigned char>(byte)];
  if (token >= 0) {
    tokens->push_back(token);
  } else if (data_.unknown) {
    tokens->push_back(*data_.unknown);
  }
}

}  // namespace penstock::model
