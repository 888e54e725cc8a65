// SPDX-License-Identifier: Apache-2.0
#include "model/tokenizer.h"

#include "base/status.h"
#include "model/bpe_tokenizer.h"
#include "model/sentencepiece_tokenizer.h"
#include "model/tokenizer_base.h"

namespace penstock::model {

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Make(VocabularyData data) {
  RETURN_IF_ERROR(CheckVocabulary(data));
  switch (data.scheme) {
    case VocabularyData::Scheme::kByteLevelBpe:
      return BpeTokenizer::Make(std::move(data));
    case VocabularyData::Scheme::kSentencePiece:
      return SentencePieceTokenizer::Make(std::move(data));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("unknown tokenizer scheme ", static_cast<int>(data.scheme)));
}

}  // namespace penstock::model
