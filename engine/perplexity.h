// SPDX-License-Identifier: Apache-2.0
// How surprised a model is by a text: exp of the mean negative log-likelihood of its tokens.
#pragma once

#include <cstdint>
#include <span>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "base/key.h"
#include "engine/local_model.h"

namespace penstock::engine {

struct Perplexity {
  double perplexity = 0;
  std::int64_t scored_tokens = 0;
};

// Scores every token of `tokens` but the first once, given tokens before it. A text of up to
// context_tokens is one window: each token is given all before it. A longer one is cut into windows
// of context_tokens that begin every stride_tokens; a token is scored in the first window that has
// it, so that after the first window each is given at least context_tokens - stride_tokens others.
//
// `model` is loaded with room for one sequence of context_tokens. `progress` gets tokens done; what
// it returns is whether to go on after the window (CANCELLED if not). INVALID_ARGUMENT: fewer than
// two tokens, ids out of range, stride outside 1..context_tokens - 1. INTERNAL when the model gives
// no finite logits.
absl::StatusOr<Perplexity> ScoreText(LocalModel& model, std::span<const TokenId> tokens,
                                     std::int32_t context_tokens, std::int32_t stride_tokens,
                                     absl::FunctionRef<bool(std::int64_t)> progress);

}  // namespace penstock::engine
