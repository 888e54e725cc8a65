// SPDX-License-Identifier: Apache-2.0
#include "engine/perplexity.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "base/status.h"
#include "engine/score.h"
#include "kernels/sampling.h"

namespace penstock::engine {

absl::StatusOr<Perplexity> ScoreText(LocalModel& model, std::span<const TokenId> tokens,
                                     std::int32_t context_tokens, std::int32_t stride_tokens,
                                     absl::FunctionRef<bool(std::int64_t)> progress) {
  const auto count = static_cast<std::int64_t>(tokens.size());
  if (count < 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("a text needs at least 2 tokens to be scored, got ", count));
  }
  // The first token of a window is given nothing, so that windows must overlap by one at least.
  if (stride_tokens < 1 || stride_tokens >= context_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("the stride is ", stride_tokens, ", must be 1 to ", context_tokens - 1,
                     ", less than the context of ", context_tokens, " tokens"));
  }
  for (const TokenId token : tokens) {
    if (token < 0 || token >= model.architecture().vocab) {
      return absl::InvalidArgumentError(absl::StrCat(
          "token ", token, " is outside the vocabulary of ", model.architecture().vocab));
    }
  }
  ASSIGN_OR_RETURN(const std::unique_ptr<KvPool> pool, model.MakePool());
  ASSIGN_OR_RETURN(const std::unique_ptr<StepRunner> pass, model.MakeRunner(*pool));
  double sum = 0;
  std::int64_t scored_to = 1;  // Tokens before this one are scored; the first never is.
  for (std::int64_t begin = 0; scored_to < count; begin += stride_tokens) {
    const std::int64_t end = std::min<std::int64_t>(begin + context_tokens, count);
    // The window's last token is only ever predicted.
    const std::span<const TokenId> seen =
        tokens.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin - 1));
    bool go_on = true;
    RETURN_IF_ERROR(ForEachLogits(
        *pass, *pool, seen, [&](std::int32_t position, std::span<const float> logits) {
          const std::int64_t next = begin + position + 1;
          if (next >= scored_to) {
            const auto token = static_cast<std::size_t>(tokens[static_cast<std::size_t>(next)]);
            sum += kernels::LogSumExp(logits) - logits[token];
          }
          go_on = progress(next) && go_on;
        }));
    if (!go_on) return absl::CancelledError("interrupted");
    scored_to = end;
  }
  if (!std::isfinite(sum)) {
    return absl::InternalError("the model gave no finite log-probability for some token");
  }
  return Perplexity{std::exp(sum / static_cast<double>(count - 1)), count - 1};
}

}  // namespace penstock::engine
