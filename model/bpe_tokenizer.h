// SPDX-License-Identifier: Apache-2.0
// Byte-level BPE: text is cut by the vocabulary's patterns, the bytes of every piece are merged by
// rank. Immutable once made; any thread.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/merge_symbols.h"
#include "model/pre_tokenizer.h"
#include "model/tokenizer_base.h"

namespace penstock::model {

class BpeTokenizer : public TokenizerBase {
 public:
  // `data` has passed CheckVocabulary. INVALID_ARGUMENT as Tokenizer::Make.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Make(VocabularyData data);

 private:
  using PieceIds = absl::flat_hash_map<absl::string_view, TokenId>;

  BpeTokenizer(VocabularyData data, std::unique_ptr<PreTokenizer> pre_tokenizer);

  absl::Status AddTokens(PieceIds* by_piece);
  absl::Status AddMerges(const PieceIds& by_piece);
  void AddWholeTokens();

  void EncodePlain(std::string_view text, std::vector<TokenId>* tokens) const override;
  void EncodeValid(std::string_view text, std::vector<Symbol>* scratch,
                   std::vector<TokenId>* tokens) const;
  void EncodePiece(std::string_view piece, std::vector<Symbol>* scratch,
                   std::vector<TokenId>* tokens) const;
  void MergeBytes(std::string_view piece, std::vector<Symbol>* symbols) const;
  void AppendByte(char byte, std::vector<TokenId>* tokens) const;

  const std::unique_ptr<PreTokenizer> pre_tokenizer_;
  std::array<TokenId, 256> byte_tokens_;              // -1: the vocabulary lacks this byte.
  absl::flat_hash_map<std::uint64_t, Merge> merges_;  // left << 32 | right
  PieceIds whole_;  // By the bytes of the whole token: what may save merging a piece.
  // By token, whether merging its bytes gives just this token, found out when it is first asked:
  // that is true of most words of a text, and asking for all at once would double the time to load.
  enum class Whole : std::uint8_t { kUnknown, kYes, kNo };
  mutable std::vector<std::atomic<Whole>> is_whole_;  // Every thread finds the same: no order.
};

}  // namespace penstock::model
