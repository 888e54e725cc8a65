// SPDX-License-Identifier: Apache-2.0
// A batch cut into portions of rows, so that a stage of a pipeline computes one while the next stage
// computes the one before. Logits do not depend on the cut (D3).
//
// Pure functions.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/step_runner.h"

namespace penstock::engine {

struct Portion {
  // Runs of tokens of the batch's sequences, in their order; sequences without tokens are in none.
  // They point into the batch.
  std::vector<SequenceInput> sequences;
  // Of the batch's wanted logits: those of the portion's rows.
  std::int32_t logit_begin = 0;
  std::int32_t logit_rows = 0;
};

// `portions` of them, as even as can be; fewer where there are fewer rows, none where there is none.
std::vector<Portion> CutRows(std::span<const SequenceInput> sequences, std::int32_t portions);

}  // namespace penstock::engine
