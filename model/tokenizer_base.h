// SPDX-License-Identifier: Apache-2.0
// What both tokenizer schemes share: special tokens, bos, the bytes of every token, decoding.
// Immutable once made; any thread.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "model/special_tokens.h"
#include "model/tokenizer.h"

namespace penstock::model {

inline constexpr std::string_view kSentencePieceSpace = "\xE2\x96\x81";  // U+2581

class TokenizerBase : public Tokenizer {
 public:
  std::vector<TokenId> Encode(std::string_view text, const EncodeOptions& options) const final;
  std::vector<std::size_t> ControlOffsets(std::string_view text, bool cut_short) const final;
  std::string Piece(TokenId token, bool special) const final;
  std::string Decode(std::span<const TokenId> tokens, bool special) const final;
  const VocabularyData& data() const final { return data_; }
  bool IsEndOfGeneration(TokenId token) const final { return end_of_generation_.contains(token); }

 protected:
  // `data` has passed CheckVocabulary.
  explicit TokenizerBase(VocabularyData data);

  // The schemes' constructors call this once for every token, in order of their ids.
  void AddTokenBytes(std::string_view bytes);
  absl::Status AddSpecialToken(std::string_view text, TokenId token);

  // What special tokens are looked for in, and what EncodePlain gets parts of. Goes byte by byte:
  // the normal form of a text is that of its bytes, one after another.
  virtual std::string Normalize(std::string_view text) const { return std::string(text); }
  // Appends the tokens of a part between special tokens, never empty; may hold invalid UTF-8.
  virtual void EncodePlain(std::string_view text, std::vector<TokenId>* tokens) const = 0;

  std::string_view TokenBytes(TokenId token) const {
    return std::string_view(bytes_).substr(begins_[token], begins_[token + 1] - begins_[token]);
  }

  const VocabularyData data_;

 private:
  std::vector<TokenId> EncodeNormal(std::string_view text, const EncodeOptions& options) const;
  std::string_view VisibleBytes(TokenId token, bool special) const;

  // Goes before a text that does not start with a control token, and between bos and a text.
  const std::string space_prefix_;
  const absl::flat_hash_set<TokenId> end_of_generation_;
  SpecialTokens special_tokens_;
  std::string bytes_;                      // Of all tokens, one after another.
  std::vector<std::size_t> begins_ = {0};  // [vocab + 1]
};

// Checks what holds for any scheme: sizes that agree, ids in range.
absl::Status CheckVocabulary(const VocabularyData& data);

}  // namespace penstock::model
