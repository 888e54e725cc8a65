// SPDX-License-Identifier: Apache-2.0
// The logits of every position of a given text: what perplexity and comparisons with a reference
// are made from.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/key.h"
#include "engine/kv_pool.h"
#include "engine/step_runner.h"

namespace penstock::engine {

// Feeds `tokens` as one sequence, in chunks as large as the runner and the pool allow, and calls
// row(position, logits) for each position in ascending order: logits [vocab], valid during the
// call, are those of the token at position + 1. Blocks that no later token sees are given back as
// it goes, all of them at the end. `pool` is the runner's. Token ids are in range.
// RESOURCE_EXHAUSTED when the pool does not have what BytesToHold (block_table.h) says.
absl::Status ForEachLogits(
    StepRunner& runner, KvPool& pool, std::span<const TokenId> tokens,
    absl::FunctionRef<void(std::int32_t position, std::span<const float> logits)> row);

// Natural log-probability of tokens[i + 1] given tokens[0..i], for each i: tokens.size() - 1 of
// them. Errors as ForEachLogits; INVALID_ARGUMENT below two tokens; INTERNAL where the model's
// logits are not finite.
absl::StatusOr<std::vector<double>> ScoreTokens(StepRunner& runner, KvPool& pool,
                                                std::span<const TokenId> tokens);

}  // namespace penstock::engine
