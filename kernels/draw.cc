// SPDX-License-Identifier: Apache-2.0
#include "kernels/draw.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "base/check.h"
#include "kernels/draw_weights.h"

namespace penstock::kernels {
namespace {

struct Weighted {
  std::int32_t token;
  float logit;
  std::uint64_t weight;
};

// The order of tokens.
bool Before(const Weighted& a, const Weighted& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
}

// Weights of consecutive tokens, a piece at a time, so that a draw without filters needs no memory.
class Weights {
 public:
  static constexpr std::size_t kPiece = 512;

  Weights(std::span<const float> row, float max, double temperature)
      : row_(row), max_(max), temperature_(temperature) {}

  std::size_t pieces() const { return (row_.size() + kPiece - 1) / kPiece; }
  // Fills in one piece and returns how many tokens it has.
  std::size_t Piece(std::size_t piece, std::uint64_t* weights) const {
    const std::size_t begin = piece * kPiece;
    const std::size_t count = std::min(kPiece, row_.size() - begin);
    double exponents[kPiece];  // Apart, so that compilers vectorize what follows.
    for (std::size_t i = 0; i < count; ++i) exponents[i] = Exponent(row_[begin + i]);
    for (std::size_t i = 0; i < count; ++i) weights[i] = DrawUnits(ExpNegative(exponents[i]));
    return count;
  }
  std::uint64_t Of(float logit) const { return DrawWeight(logit, max_, temperature_); }
  double Exponent(float logit) const { return (double{logit} - double{max_}) / temperature_; }

 private:
  const std::span<const float> row_;
  const float max_;
  const double temperature_;
};

std::int32_t DrawFromRow(const Weights& weights, double uniform) {
  std::uint64_t piece[Weights::kPiece];
  std::vector<std::uint64_t> sums(weights.pieces(), 0);
  std::uint64_t total = 0;
  for (std::size_t p = 0; p < sums.size(); ++p) {
    const std::size_t count = weights.Piece(p, piece);
    for (std::size_t i = 0; i < count; ++i) sums[p] += piece[i];
    total += sums[p];
  }
  std::uint64_t left = MassBefore(uniform, total);
  std::size_t chosen = 0;
  for (; left >= sums[chosen]; ++chosen) left -= sums[chosen];
  (void)weights.Piece(chosen, piece);
  std::size_t token = 0;
  for (; left >= piece[token]; ++token) left -= piece[token];
  return static_cast<std::int32_t>(chosen * Weights::kPiece + token);
}

std::uint64_t MassOf(std::span<const Weighted> candidates) {
  std::uint64_t mass = 0;
  for (const Weighted& c : candidates) mass += c.weight;
  return mass;
}

// Those that weigh anything.
std::vector<Weighted> MakeCandidates(std::span<const float> row, const Weights& weights,
                                     std::int32_t top_k) {
  std::vector<Weighted> candidates;
  if (top_k > 0 && static_cast<std::size_t>(top_k) < row.size()) {
    for (const Candidate& c : TopK(row, top_k)) {
      candidates.push_back({c.token, c.logit, weights.Of(c.logit)});
    }
  } else {
    candidates.reserve(row.size());
    std::uint64_t piece[Weights::kPiece];
    for (std::size_t p = 0; p < weights.pieces(); ++p) {
      const std::size_t count = weights.Piece(p, piece);
      for (std::size_t i = 0; i < count; ++i) {
        const std::size_t token = p * Weights::kPiece + i;
        candidates.push_back({static_cast<std::int32_t>(token), row[token], piece[i]});
      }
    }
  }
  std::erase_if(candidates, [](const Weighted& c) { return c.weight == 0; });
  return candidates;
}

// Takes the fewest of `candidates`, in the order that `before` gives them, that weigh `mass`. A heap
// gives only those taken in order: the rest of a large vocabulary is never sorted.
template <typename Order>
std::vector<Weighted> TakeMass(std::vector<Weighted> candidates, std::uint64_t mass, Order before) {
  const auto after = [&before](const Weighted& a, const Weighted& b) { return before(b, a); };
  std::make_heap(candidates.begin(), candidates.end(), after);
  std::vector<Weighted> taken;
  for (std::uint64_t sum = 0; !candidates.empty() && (taken.empty() || sum < mass);) {
    std::pop_heap(candidates.begin(), candidates.end(), after);
    taken.push_back(candidates.back());
    sum += taken.back().weight;
    candidates.pop_back();
  }
  return taken;
}

// Surprise is log(mass) - exponent and the entropy its mean, so that log(mass) cancels.
std::vector<Weighted> FilterTypical(std::vector<Weighted> candidates, const Weights& weights,
                                    double typical_p) {
  const std::uint64_t mass = MassOf(candidates);
  double mean = 0;
  for (const Weighted& c : candidates) {
    mean += static_cast<double>(c.weight) / static_cast<double>(mass) * weights.Exponent(c.logit);
  }
  const auto before = [&weights, mean](const Weighted& a, const Weighted& b) {
    const double of_a = std::abs(mean - weights.Exponent(a.logit));
    const double of_b = std::abs(mean - weights.Exponent(b.logit));
    return of_a != of_b ? of_a < of_b : Before(a, b);
  };
  return TakeMass(std::move(candidates), NucleusMass(typical_p, mass), before);
}

std::vector<Weighted> FilterTopP(std::vector<Weighted> candidates, double top_p) {
  const std::uint64_t mass = MassOf(candidates);
  const std::uint64_t wanted = NucleusMass(top_p, mass);
  // All that are lighter than this weigh less than half of what may be left out, together, so that
  // they go before anything is ordered.
  const std::uint64_t lightest = (mass - wanted) / (2 * candidates.size());
  std::erase_if(candidates, [lightest](const Weighted& c) { return c.weight < lightest; });
  return TakeMass(std::move(candidates), wanted, Before);
}

std::int32_t DrawFrom(std::vector<Weighted> candidates, double uniform) {
  std::ranges::sort(candidates, {}, &Weighted::token);
  std::uint64_t left = MassBefore(uniform, MassOf(candidates));
  std::size_t i = 0;
  for (; left >= candidates[i].weight; ++i) left -= candidates[i].weight;
  return candidates[i].token;
}

std::int32_t DrawToken(std::span<const float> row, const MaxResult& max, const DrawSpec& spec) {
  if (spec.temperature == 0) return max.index;
  const Weights weights(row, max.value, spec.temperature);
  if (spec.top_k == 0 && spec.top_p == 1 && spec.min_p == 0 && spec.typical_p == 1) {
    return DrawFromRow(weights, spec.uniform);
  }
  std::vector<Weighted> candidates = MakeCandidates(row, weights, spec.top_k);
  if (spec.typical_p < 1) {
    candidates = FilterTypical(std::move(candidates), weights, spec.typical_p);
  }
  if (spec.top_p < 1) candidates = FilterTopP(std::move(candidates), spec.top_p);
  std::uint64_t heaviest = 0;
  for (const Weighted& c : candidates) heaviest = std::max(heaviest, c.weight);
  const std::uint64_t least = LeastWeight(spec.min_p, heaviest);
  std::erase_if(candidates, [least](const Weighted& c) { return c.weight < least; });
  return DrawFrom(std::move(candidates), spec.uniform);
}

bool HasNan(std::span<const float> row) {
  bool found = false;
  for (const float logit : row) found |= logit != logit;
  return found;
}

}  // namespace

Drawn Draw(std::span<const float> logits, const DrawSpec& spec) {
  CHECK_LE(logits.size(), static_cast<std::size_t>(kDrawVocabMax));
  CHECK_LE(spec.top_logits, kTopLogitsMax);
  std::vector<float> without_nan;
  if (HasNan(logits)) {
    without_nan.assign(logits.begin(), logits.end());
    for (float& logit : without_nan) {
      logit = std::isnan(logit) ? -std::numeric_limits<float>::infinity() : logit;
    }
    logits = without_nan;
  }
  const MaxResult max = ArgMax(logits);
  Drawn drawn = {.max = max.value};
  if (max.index < 0 || !std::isfinite(max.value)) return drawn;
  drawn.token = DrawToken(logits, max, spec);
  drawn.logit = logits[static_cast<std::size_t>(drawn.token)];
  if (spec.top_logits < 0) return drawn;
  drawn.exp_sum = SumExp(logits, max.value);
  for (const Candidate& c : TopK(logits, spec.top_logits)) {
    drawn.top[static_cast<std::size_t>(drawn.top_count++)] = c;
  }
  return drawn;
}

}  // namespace penstock::kernels
