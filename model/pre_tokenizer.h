// SPDX-License-Identifier: Apache-2.0
// Cuts text into the pieces that byte-level BPE never merges across: each split of the vocabulary
// cuts every piece of the one before into its matches and what lies between them.
//
// The regular expressions are those of Oniguruma and Rust, run by PCRE2 with Unicode properties;
// \s and \S are rewritten to White_Space, because PCRE2 also counts U+180E as a space.
// Immutable once made; any thread.
#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "model/vocabulary.h"

namespace penstock::model {

class PreTokenizer {
 public:
  // INVALID_ARGUMENT with the pattern, the place and PCRE2's reason when one does not compile.
  static absl::StatusOr<std::unique_ptr<PreTokenizer>> Make(
      const std::vector<VocabularyData::Split>& splits);
  ~PreTokenizer();

  // Calls `piece` with every piece of `text` (valid UTF-8), in order; together they are the text.
  // A pattern that runs into PCRE2's match limit leaves the rest of its piece uncut.
  void Split(std::string_view text, absl::FunctionRef<void(std::string_view)> piece) const;

 private:
  class Pattern;

  PreTokenizer();
  void SplitFrom(std::size_t level, std::string_view text,
                 absl::FunctionRef<void(std::string_view)> piece) const;

  std::vector<std::unique_ptr<Pattern>> patterns_;  // Null: digits alone.
};

// `pattern` with \s and \S spelled out as White_Space; exposed for its test.
std::string SpellOutWhiteSpace(std::string_view pattern);

}  // namespace penstock::model
