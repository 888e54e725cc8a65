// SPDX-License-Identifier: Apache-2.0
// From one row of logits to one token. A pure function of (logits, params, tokens so far, seed,
// choice, position): the same on every worker, in every batch, after every failover.
//
// Order, as most engines have it: logit bias; repetition, presence and frequency penalties; then
// what kernels/draw.h says, with one random number.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/key.h"
#include "kernels/draw.h"

namespace penstock::engine {

struct SamplingParams {
  double temperature = 1;  // 0: greedy. Up to 100.
  std::int32_t top_k = 0;  // 0: off.
  double top_p = 1;        // (0, 1]; 1: off.
  double min_p = 0;        // [0, 1]; 0: off. Relative to the most likely token.
  double typical_p = 1;    // (0, 1]; 1: off. Meister et al. 2022, https://arxiv.org/abs/2202.00666.
  double repetition_penalty =
      1;  // (0, 10]; over prompt and answer. Keskar et al. 2019, https://arxiv.org/abs/1909.05858.
  double presence_penalty = 0;                // [-2, 2]; over the answer.
  double frequency_penalty = 0;               // [-2, 2]; over the answer.
  std::map<TokenId, double> logit_bias = {};  // [-100, 100]
  std::uint64_t seed = 0;
  std::int32_t logprobs =
      -1;  // -1: none; n >= 0: the chosen token's, and the n most likely ones' (n up to 20).

  // INVALID_ARGUMENT listing every field out of range with its value and limits, and biased ids
  // outside [0, vocab).
  absl::Status Validate(std::int32_t vocab) const;
};

struct TokenLogprob {
  TokenId token = 0;
  double logprob = 0;  // Natural log of the model's own softmax (before temperature and filters;
                       // bias and penalties not applied).
};

struct SampledToken {
  TokenId token = 0;
  std::optional<double> logprob;  // When params.logprobs >= 0.
  std::vector<TokenLogprob> top;  // params.logprobs of them, most likely first.
};

// `prompt` and `answer` are the tokens so far, for the penalties; ids outside the row are ignored.
// `choice` is the index among n parallel answers, `position` that of the token to be drawn: they
// and the seed are all the randomness there is. `params` are valid for this row's length. A NaN
// counts as -infinity; a row with no finite logit, or with +infinity, (a broken model) gives
// INTERNAL. Greedy without penalties is two cheap passes over the row; nothing sorts a whole row.
absl::StatusOr<SampledToken> SampleToken(std::span<const float> logits,
                                         const SamplingParams& params,
                                         std::span<const TokenId> prompt,
                                         std::span<const TokenId> answer, std::int32_t choice,
                                         std::int32_t position);

// One token that a step draws.
struct TokenDraw {
  std::int32_t row = 0;                    // Of the step's logits.
  const SamplingParams* params = nullptr;  // Outlives the draw.
  std::span<const TokenId> prompt;
  std::span<const TokenId> answer;
  std::int32_t choice = 0;
  std::int32_t position = 0;
  absl::StatusOr<SampledToken> sampled = SampledToken{};  // What came of it.
};
// draw.sampled = SampleToken of its row.
void SampleToken(std::span<const float> logits, TokenDraw& draw);

// The same in two halves, with Ops::Draw (kernels/ops.h) between them, for logits on any device; not
// for a draw that needs its row on the host.
bool NeedsRow(const SamplingParams& params);
kernels::RowDraw ToRowDraw(const TokenDraw& draw);
absl::StatusOr<SampledToken> ToSampled(const kernels::Drawn& drawn, const SamplingParams& params);

// Uniform in [0, 1), 53 bits: the upper ones of words 1 and 0 of Philox 4x32-10 (engine/philox.h)
// with key = seed and counter = (choice, position, stream, 0).
double UniformAt(std::uint64_t seed, std::int32_t choice, std::int32_t position,
                 std::uint32_t stream);

}  // namespace penstock::engine
