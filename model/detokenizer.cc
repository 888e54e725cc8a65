// SPDX-License-Identifier: Apache-2.0
#include "model/tokenizer.h"
#include "model/utf8.h"

namespace penstock::model {

std::string StreamingDetokenizer::Add(TokenId token) {
  const VocabularyData& data = tokenizer_.data();
  std::string piece = tokenizer_.Piece(token, special_);
  const bool prefixed =
      data.scheme == VocabularyData::Scheme::kSentencePiece && data.add_space_prefix;
  if (token == data.bos) {
    first_ = true;
  } else if (!piece.empty()) {
    if (first_ && prefixed && piece[0] == ' ') piece.erase(0, 1);
    first_ = false;
  }
  pending_.append(piece);
  // Only the last character can be unfinished, and only if nothing in it is wrong so far.
  std::size_t keep = 0;
  for (std::size_t back = 1; back <= 3 && back <= pending_.size(); ++back) {
    const Utf8Step step = NextUtf8(std::string_view(pending_).substr(pending_.size() - back));
    if (step.unfinished && static_cast<std::size_t>(step.bytes) == back) keep = back;
  }
  const std::size_t certain = pending_.size() - keep;
  std::string text = ReplaceInvalidUtf8(std::string_view(pending_).substr(0, certain));
  pending_.erase(0, certain);
  return text;
}

std::string StreamingDetokenizer::Finish() {
  std::string text = ReplaceInvalidUtf8(pending_);
  pending_.clear();
  first_ = true;
  return text;
}

}  // namespace penstock::model
