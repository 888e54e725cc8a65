// SPDX-License-Identifier: Apache-2.0
// What the readers of both formats need to fill in a VocabularyData. Pure functions; any thread.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/vocabulary.h"

namespace penstock::model {

// GPT-2's pattern, which ByteLevel pre-tokenizers apply.
extern const std::string_view kGpt2Pattern;

// What a name in tokenizer.ggml.pre stands for.
struct PreTokenizer {
  std::vector<VocabularyData::Split> splits;
  bool normalize_nfc = false;
  bool ignore_merges = false;
  bool add_bos = false;  // Unless the file says otherwise.
};
// INVALID_ARGUMENT naming an unknown one.
absl::StatusOr<PreTokenizer> FindPreTokenizer(std::string_view name);

// Fills end_of_generation: `named` (what the file says ends an answer), eos, and every control
// token with a piece that is known to end a turn. Ascending, without duplicates.
void FillEndOfGeneration(const std::vector<TokenId>& named, VocabularyData* vocabulary);

// INVALID_ARGUMENT when a special id is no token.
absl::Status CheckIds(const VocabularyData& vocabulary);

}  // namespace penstock::model
