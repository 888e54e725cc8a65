// SPDX-License-Identifier: Apache-2.0
// For tests and tools: vocabularies and golden encodings as tests/make_tokenizer_goldens.py writes
// them. Pure functions; any thread.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/vocabulary.h"

namespace penstock::model {

// {"scheme": "bpe" | "sentencepiece", "pieces": [...], "kinds": [ints], "merges": [...],
//  "scores": [...], "splits": [pattern or null for single digits], and VocabularyData's flags}.
absl::StatusOr<VocabularyData> ReadVocabularyJson(const std::string& path);

struct GoldenEncoding {
  std::string text;
  std::vector<TokenId> tokens;
};
// One JSON array [text, [ids]] per line.
absl::StatusOr<std::vector<GoldenEncoding>> ReadGoldenEncodings(const std::string& path);

}  // namespace penstock::model
