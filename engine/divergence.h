// SPDX-License-Identifier: Apache-2.0
// How far what a model says of the next token is from what it said otherwise, from logits, in
// float64. Pure functions; any thread.
#pragma once

#include <cstdint>
#include <span>

#include "base/key.h"

namespace penstock::engine {

// Of one position: `p` is what is true, `q` what stands for it.
struct Divergence {
  double kl = 0;  // Kullback-Leibler, KL(p || q), in nats; exactly 0 where the logits are equal.
  double p_nll = 0, q_nll = 0;  // Negative log-likelihood, in nats, of the token that came.
  bool same_top = false;        // Whether the likeliest token (of equals the first) is the same.
};
// p, q: [vocab], of one size; `next` is inside. Logits that are not finite give a NaN.
Divergence Compare(std::span<const float> p, std::span<const float> q, TokenId next);

struct DivergenceSummary {
  double mean_kl = 0, median_kl = 0, p99_kl = 0, max_kl = 0;  // By nearest rank.
  double top1 = 0;                                            // Share of positions of same_top.
  double p_perplexity = 0, q_perplexity = 0;
};
// Of one position at least, none of them with a NaN.
DivergenceSummary Summarize(std::span<const Divergence> positions);

}  // namespace penstock::engine
