// SPDX-License-Identifier: Apache-2.0
#include "engine/score.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/status.h"
#include "engine/block_table.h"
#include "kernels/sampling.h"

namespace penstock::engine {

absl::Status ForEachLogits(
    StepRunner& runner, KvPool& pool, std::span<const TokenId> tokens,
    absl::FunctionRef<void(std::int32_t position, std::span<const float> logits)> row) {
  const std::int32_t rows_max = std::min(runner.rows_max(), runner.logit_rows_max());
  CHECK_GT(rows_max, 0);
  const auto all = static_cast<std::int32_t>(tokens.size());
  const std::int32_t block_tokens = pool.block_tokens();
  BlockTable blocks(pool);
  for (std::int32_t begin = 0; begin < all;) {
    std::int32_t end = std::min(all, begin + rows_max);
    for (std::int32_t b = begin / block_tokens; b * block_tokens < end; ++b) {
      if (!blocks.Extend(b)) end = b * block_tokens;
    }
    if (end <= begin) {
      return absl::ResourceExhaustedError(
          absl::StrCat("a text of ", all, " tokens needs ", BytesToHold(pool, all),
                       " bytes of KV; the pool has ", pool.stats().bytes_budget, ", of which ",
                       pool.bytes_available(), " were left at token ", begin));
    }
    const SequenceInput input{.tokens = tokens.subspan(static_cast<std::size_t>(begin),
                                                       static_cast<std::size_t>(end - begin)),
                              .position = begin,
                              .blocks = blocks.views(),
                              .logit_rows = end - begin};
    runner.Run({&input, 1}, {});
    for (std::int32_t i = 0; i < end - begin; ++i) row(begin + i, runner.logits(i));
    begin = end;
    blocks.DropInvisible(begin);
  }
  return absl::OkStatus();
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
