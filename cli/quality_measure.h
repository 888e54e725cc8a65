// SPDX-License-Identifier: Apache-2.0
// What `penstock quality` measures: how a model goes on behind a prompt whose blocks went through a
// codec, against the full cache, and how well it then finds a number hidden in the prompt.
//
// One thread at a time: that of the model.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "engine/divergence.h"
#include "engine/local_model.h"
#include "kvstore/quality_record.h"

namespace penstock::cli {

struct QualityOptions {
  std::vector<kvstore::CodecId> codecs;  // None twice.
  std::int32_t prompt_tokens = 3072;     // Multiples of a block.
  std::int32_t scored_tokens = 512;
  std::int32_t needles = 11;  // From the prompt's beginning to its end; 0: none.
  std::int32_t needle_tokens = 1024;
};

struct QualityResult {
  kvstore::QualityRecord record;
  // What codecs said that cannot take this model's KV, and are not in the record.
  std::vector<std::string> refusals;
  // What the KV type itself costs: of the scored tokens, prompt and all computed with it, against the
  // same with F16. Nothing where it is F16.
  std::optional<engine::DivergenceSummary> against_f16;
};

// What LocalModel::Load needs for it, besides what `options` say already.
engine::LocalModel::Options ForQuality(engine::LocalModel::Options options,
                                       const QualityOptions& quality);

// Computes the prompt once; each codec encodes and decodes its blocks into ones of its own, and the
// text's next tokens are scored behind them. With another KV type than F16 all is computed
// once more with that, in a pool beside the first. Needles likewise, each a prompt of its own. Takes
// scored_tokens rows of logits of memory beside what Load took. `progress` gets what is being done,
// and how many steps of how many are done; what it returns is whether to go on (CANCELLED if not).
// INVALID_ARGUMENT: an option out of range, or a text of too few tokens (both numbers). RESOURCE_EXHAUSTED: too
// little memory for those logits. INTERNAL where the model's logits are not finite.
absl::StatusOr<QualityResult> MeasureQuality(
    engine::LocalModel& model, std::string_view text, const QualityOptions& options,
    absl::FunctionRef<bool(std::string_view what, std::size_t done, std::size_t all)> progress);

}  // namespace penstock::cli
