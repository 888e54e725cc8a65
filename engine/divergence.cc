// SPDX-License-Identifier: Apache-2.0
#include "engine/divergence.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/check.h"
#include "kernels/sampling.h"

namespace penstock::engine {

Divergence Compare(std::span<const float> p, std::span<const float> q, TokenId next) {
  CHECK_EQ(p.size(), q.size());
  CHECK(next >= 0 && static_cast<std::size_t>(next) < p.size());
  const kernels::MaxResult p_top = kernels::ArgMax(p), q_top = kernels::ArgMax(q);
  // With a = p's logits less their maximum and b likewise: KL = sum e^a (a - b) / sum e^a
  // - log sum e^a + log sum e^b.
  double p_sum = 0, q_sum = 0, apart = 0;
  for (std::size_t i = 0; i < p.size(); ++i) {
    const double a = double{p[i]} - p_top.value;
    const double b = double{q[i]} - q_top.value;
    const double weight = std::exp(a);
    p_sum += weight;
    q_sum += std::exp(b);
    apart += weight * (a - b);
  }
  const double p_norm = std::log(p_sum), q_norm = std::log(q_sum);
  const double kl = apart / p_sum - p_norm + q_norm;
  const auto at = static_cast<std::size_t>(next);
  return {.kl = kl < 0 ? 0 : kl,  // What rounding leaves of almost nothing.
          .p_nll = p_norm - (double{p[at]} - p_top.value),
          .q_nll = q_norm - (double{q[at]} - q_top.value),
          .same_top = p_top.index == q_top.index};
}

DivergenceSummary Summarize(std::span<const Divergence> positions) {
  CHECK(!positions.empty());
  const auto count = static_cast<double>(positions.size());
  std::vector<double> kls;
  DivergenceSummary summary;
  double p_nll = 0, q_nll = 0;
  for (const Divergence& d : positions) {
    kls.push_back(d.kl);
    summary.mean_kl += d.kl / count;
    summary.top1 += d.same_top ? 1 : 0;
    p_nll += d.p_nll / count;
    q_nll += d.q_nll / count;
  }
  std::ranges::sort(kls);
  const auto rank = [&](double share) {
    return kls[static_cast<std::size_t>(std::ceil(share * count)) - 1];
  };
  summary.median_kl = rank(0.5);
  summary.p99_kl = rank(0.99);
  summary.max_kl = kls.back();
  summary.top1 /= count;
  summary.p_perplexity = std::exp(p_nll);
  summary.q_perplexity = std::exp(q_nll);
  return summary;
}

}  // namespace penstock::engine
