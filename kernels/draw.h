// SPDX-License-Identifier: Apache-2.0
// One token drawn from one row of logits [vocab], and what else a step tells of the row. The bits are the
// same on every target, CPU or GPU: weights are integers, whose sums know no order.
//
// The order of tokens is: larger logits first, equal ones by index. A NaN counts as -infinity.
//   1. Where top_k is above 0, only the first top_k remain.
//   2. A token weighs exp((logit - max) / temperature), in units of 2^-38: what is less than half of
//      that is never drawn.
//   3. typical_p (locally typical sampling, Meister et al. 2022, https://arxiv.org/abs/2202.00666):
//      the fewest of those whose surprise is nearest to the entropy that weigh typical_p of all.
//   4. top_p (the nucleus, Holtzman et al. 2019, https://arxiv.org/abs/1904.09751): the fewest of the
//      first that weigh top_p of what remains, at least one.
//   5. min_p: those that weigh min_p of the heaviest.
//   6. `uniform` of the weight of what remains is gone by in the order of indices.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/sampling.h"

namespace penstock::kernels {

// Of a row; model/architecture.h allows no more; the weights of so many add up to 2^62.
inline constexpr std::int32_t kDrawVocabMax = 1 << 24;
inline constexpr std::int32_t kTopLogitsMax = 20;

struct DrawSpec {
  double temperature = 0;  // 0: the first token.
  std::int32_t top_k = 0;  // 0: off.
  double top_p = 1;        // (0, 1]; 1: off.
  double min_p = 0;        // [0, 1]; 0: off.
  double typical_p = 1;    // (0, 1]; 1: off. On the CPU alone.
  double uniform = 0;      // [0, 1)
  // -1: nothing but the token. Else exp_sum, and so many of the first tokens: up to kTopLogitsMax.
  std::int32_t top_logits = -1;

  constexpr bool filters() const { return temperature > 0 && (top_k > 0 || top_p < 1); }
};

struct Drawn {
  std::int32_t token = -1;  // -1: the largest logit is not finite, and nothing else is said.
  float max = 0;            // The largest logit,
  float logit = 0;          // and the token's.
  std::int32_t top_count = 0;
  double exp_sum = 0;                 // SumExp of kernels/sampling.h.
  Candidate top[kTopLogitsMax] = {};  // [top_count]
};

// Of a row of up to kDrawVocabMax.
Drawn Draw(std::span<const float> logits, const DrawSpec& spec);

// Row `row` of several.
struct RowDraw {
  std::int32_t row = 0;
  DrawSpec spec;
};

}  // namespace penstock::kernels
