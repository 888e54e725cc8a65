// SPDX-License-Identifier: Apache-2.0
#include "engine/score.h"

#include <cmath>

#include "base/check.h"
#include "base/status.h"
#include "engine/given_text.h"
#include "kernels/sampling.h"

namespace penstock::engine {

absl::Status ForEachLogits(
    StepRunner& runner, KvPool& pool, std::span<const TokenId> tokens,
    absl::FunctionRef<void(std::int32_t position, std::span<const float> logits)> row) {
  return GivenText(runner, pool).Score(tokens, row);
}

absl::StatusOr<std::vector<double>> ScoreTokens(StepRunner& runner, KvPool& pool,
                                                std::span<const TokenId> tokens) {
  if (tokens.size() < 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("a text to score must have at least 2 tokens, got ", tokens.size()));
  }
  std::vector<double> scores;
  scores.reserve(tokens.size() - 1);
  RETURN_IF_ERROR(ForEachLogits(
      runner, pool, tokens.first(tokens.size() - 1),
      [&](std::int32_t position, std::span<const float> logits) {
        const TokenId next = tokens[static_cast<std::size_t>(position) + 1];
        CHECK(next >= 0 && static_cast<std::size_t>(next) < logits.size());
        scores.push_back(logits[static_cast<std::size_t>(next)] - kernels::LogSumExp(logits));
      }));
  for (std::size_t i = 0; i < scores.size(); ++i) {
    if (std::isfinite(scores[i])) continue;
    return absl::InternalError(
        absl::StrCat("the model gave no finite log-probability at position ", i));
  }
  return scores;
}

}  // namespace penstock::engine
