// SPDX-License-Identifier: Apache-2.0
// SentencePiece's BPE: spaces become U+2581, characters merge by the score of what they make (or by
// ranked merges), characters without a token become bytes. Immutable once made; any thread.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/merge_symbols.h"
#include "model/tokenizer_base.h"

namespace penstock::model {

class SentencePieceTokenizer : public TokenizerBase {
 public:
  // `data` has passed CheckVocabulary. INVALID_ARGUMENT as Tokenizer::Make.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Make(VocabularyData data);

 private:
  explicit SentencePieceTokenizer(VocabularyData data);

  absl::Status AddTokens();
  absl::Status AddMerges();
  void RankByScore();

  std::string Normalize(std::string_view text) const override;
  void EncodePlain(std::string_view text, std::vector<TokenId>* tokens) const override;
  // The end of the part of `text` from `at` on that nothing merges out of.
  std::size_t WordEnd(std::string_view text, std::size_t at) const;
  void EncodeWord(std::string_view word, std::vector<Symbol>* scratch,
                  std::vector<TokenId>* tokens) const;
  void AppendUnknown(std::string_view bytes, std::vector<TokenId>* tokens) const;

  absl::flat_hash_map<absl::string_view, TokenId> by_piece_;  // What merging may make.
  std::size_t piece_bytes_max_ = 0;
  std::vector<std::int32_t> ranks_;                   // By token, 0 for the highest score; or
  absl::flat_hash_map<std::uint64_t, Merge> merges_;  // left << 32 | right.
  std::array<TokenId, 256> byte_tokens_;              // -1: the vocabulary lacks this byte.
  // Characters (as UTF-8) that stand before a U+2581 in some piece: elsewhere a word ends there.
  absl::flat_hash_set<std::string> before_space_;
};

}  // namespace penstock::model
