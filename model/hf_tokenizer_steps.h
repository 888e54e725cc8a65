// SPDX-License-Identifier: Apache-2.0
// The steps of tokenizer.json around the model itself: how a text is normalized and cut before it,
// and which tokens are put around it. For hf_vocabulary.cc. Pure functions; any thread.
#pragma once

#include <optional>
#include <string_view>

#include "absl/status/status.h"
#include "model/json.h"
#include "model/vocabulary.h"

namespace penstock::model {

// "tokenizer.json: `what` "`value`" is not supported"
absl::Status UnsupportedStep(std::string_view what, std::string_view value);

// Fill in normalize_nfc, escape_whitespace, add_space_prefix and splits. INVALID_ARGUMENT names a
// step that is not known. `byte_level` is set where bytes become printable characters. The
// normalizer goes first.
absl::Status ReadNormalizer(const Json& tokenizer, VocabularyData* out);
absl::Status ReadPreTokenizer(const Json& tokenizer, bool* byte_level, VocabularyData* out);

// TemplateProcessing: sets add_bos and bos, add_eos and eos. Needs the pieces.
absl::Status ReadPostProcessor(const Json& tokenizer, VocabularyData* out);

// Nothing where no token has this piece.
std::optional<TokenId> FindPiece(const VocabularyData& data, std::string_view piece);

}  // namespace penstock::model
