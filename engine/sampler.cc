// SPDX-License-Identifier: Apache-2.0
#include "engine/sampler.h"

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_join.h"
#include "base/status.h"
#include "engine/philox.h"
#include "kernels/sampling.h"

namespace penstock::engine {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
constexpr std::uint32_t kDrawStream = 0;  // Of UniformAt: the draw itself is all there is so far.

// weights[i] = exp(exponents[i]) for exponents of at most 0, by plain multiplications and
// additions, within 2 ulp: libm picks its version by the CPU, and workers must agree on every bit.
// From -700 down, and for NaN, 0. Without branches, so that compilers vectorize it with what every
// x86-64 has.
void ExpNegative(const double* exponents, std::size_t count, double* weights) {
  constexpr double kLowest = -700;
  constexpr double kRound = 0x1.8p52;  // Adding it leaves x rounded to an integer in the low bits.
  constexpr double kTaylor[] = {1.0 / 479001600,
                                1.0 / 39916800,
                                1.0 / 3628800,
                                1.0 / 362880,
                                1.0 / 40320,
                                1.0 / 5040,
                                1.0 / 720,
                                1.0 / 120,
                                1.0 / 24,
                                1.0 / 6,
                                0.5,
                                1,
                                1};
  for (std::size_t i = 0; i < count; ++i) {
    const double x = exponents[i] > kLowest ? exponents[i] : kLowest;
    const double shifted = x * 0x1.71547652b82fep+0 + kRound;  // log2(e)
    const double n = shifted - kRound;
    const double r = (x - n * 0x1.62e42feep-1) - n * 0x1.a39ef35793c76p-33;  // ln(2) in two parts.
    double p = 1.0 / 6227020800.0;  // To r^13: |r| <= 0.3466, so that the rest is below 2^-57.
    for (const double c : kTaylor) p = p * r + c;
    const std::uint64_t exponent = (std::bit_cast<std::uint64_t>(shifted) + 1023) << 52;
    weights[i] = p * std::bit_cast<double>(exponent);
  }
  for (std::size_t i = 0; i < count; ++i) {
    weights[i] = exponents[i] > kLowest ? weights[i] : 0;
  }
}

bool ChangesLogits(const SamplingParams& params) {
  return !params.logit_bias.empty() || params.repetition_penalty != 1 ||
         params.presence_penalty != 0 || params.frequency_penalty != 0;
}

// The row with bias and penalties in it.
std::vector<float> AdjustedLogits(std::span<const float> logits, const SamplingParams& params,
                                  std::span<const TokenId> prompt,
                                  std::span<const TokenId> answer) {
  std::vector<float> row(logits.begin(), logits.end());
  const auto in_row = [&row](TokenId token) {
    return token >= 0 && static_cast<std::size_t>(token) < row.size();
  };
  const auto set = [&row](TokenId token, double value) {
    row[token] = static_cast<float>(std::clamp<double>(value, -FLT_MAX, FLT_MAX));
  };
  for (const auto& [token, bias] : params.logit_bias) {
    if (in_row(token) && std::isfinite(row[token])) set(token, row[token] + bias);
  }
  struct Seen {
    bool anywhere = false;
    std::uint32_t in_answer = 0;
  };
  std::vector<Seen> seen(row.size());
  std::vector<TokenId> distinct;
  const auto note = [&](TokenId token, std::uint32_t in_answer) {
    if (!in_row(token)) return;
    if (!seen[token].anywhere) distinct.push_back(token);
    seen[token].anywhere = true;
    seen[token].in_answer += in_answer;
  };
  for (const TokenId token : prompt) note(token, 0);
  for (const TokenId token : answer) note(token, 1);
  for (const TokenId token : distinct) {
    if (!std::isfinite(row[token])) continue;
    double value = row[token];
    value = value > 0 ? value / params.repetition_penalty : value * params.repetition_penalty;
    if (const std::uint32_t count = seen[token].in_answer; count > 0) {
      value -= params.presence_penalty + params.frequency_penalty * count;
    }
    set(token, value);
  }
  return row;
}

struct Weighted {
  TokenId token;
  double exponent;  // (logit - max) / temperature
  double weight;    // exp(exponent)
};

// More likely first, smaller id first.
bool Before(const Weighted& a, const Weighted& b) {
  return a.weight != b.weight ? a.weight > b.weight : a.token < b.token;
}

// Weights of consecutive tokens, a piece at a time, so that a draw without filters needs no memory.
class Weights {
 public:
  static constexpr std::size_t kPiece = 512;

  Weights(std::span<const float> row, float max, double temperature)
      : row_(row), max_(max), temperature_(temperature) {}

  std::size_t pieces() const { return (row_.size() + kPiece - 1) / kPiece; }
  // Fills in one piece and returns how many tokens it has. -infinity weighs nothing.
  std::size_t Piece(std::size_t piece, double* exponents, double* weights) const {
    const std::size_t begin = piece * kPiece;
    const std::size_t count = std::min(kPiece, row_.size() - begin);
    for (std::size_t i = 0; i < count; ++i) exponents[i] = Exponent(row_[begin + i]);
    ExpNegative(exponents, count, weights);
    return count;
  }
  Weighted Of(TokenId token, float logit) const {
    Weighted weighted = {token, Exponent(logit), 0};
    ExpNegative(&weighted.exponent, 1, &weighted.weight);
    return weighted;
  }

 private:
  double Exponent(float logit) const { return (double{logit} - max_) / temperature_; }

  const std::span<const float> row_;
  const double max_;
  const double temperature_;
};

// One draw over the whole row, in the order of ids.
TokenId DrawFromRow(const Weights& weights, double uniform) {
  double exponents[Weights::kPiece];
  double piece[Weights::kPiece];
  std::vector<double> sums(weights.pieces(), 0);
  double total = 0;
  for (std::size_t p = 0; p < sums.size(); ++p) {
    const std::size_t count = weights.Piece(p, exponents, piece);
    for (std::size_t i = 0; i < count; ++i) sums[p] += piece[i];
    total += sums[p];
  }
  // What is left after rounding belongs to the last piece that weighs anything.
  double left = uniform * total;
  std::size_t chosen = 0;
  for (std::size_t p = 0; p < sums.size(); ++p) {
    if (sums[p] == 0) continue;
    chosen = p;
    if (left < sums[p]) break;
    left -= sums[p];
  }
  const std::size_t count = weights.Piece(chosen, exponents, piece);
  std::size_t token = 0;
  for (std::size_t i = 0; i < count; ++i) {
    if (piece[i] == 0) continue;
    token = i;
    if (left < piece[i]) break;
    left -= piece[i];
  }
  return static_cast<TokenId>(chosen * Weights::kPiece + token);
}

double TotalOf(std::span<const Weighted> candidates) {
  double total = 0;
  for (const Weighted& c : candidates) total += c.weight;
  return total;
}

std::vector<Weighted> MakeCandidates(std::span<const float> row, const Weights& weights,
                                     std::int32_t top_k) {
  std::vector<Weighted> candidates;
  if (top_k > 0 && static_cast<std::size_t>(top_k) < row.size()) {
    for (const kernels::Candidate& c : kernels::TopK(row, top_k)) {
      candidates.push_back(weights.Of(c.token, c.logit));
    }
  } else {
    candidates.reserve(row.size());
    double exponents[Weights::kPiece];
    double piece[Weights::kPiece];
    for (std::size_t p = 0; p < weights.pieces(); ++p) {
      const std::size_t count = weights.Piece(p, exponents, piece);
      for (std::size_t i = 0; i < count; ++i) {
        candidates.push_back(
            {static_cast<TokenId>(p * Weights::kPiece + i), exponents[i], piece[i]});
      }
    }
  }
  std::erase_if(candidates, [](const Weighted& c) { return c.weight == 0; });
  return candidates;
}

// Takes the fewest of `candidates`, in the order that `before` gives them, whose weights reach
// `mass`. A heap gives only those taken in order: the rest of a large vocabulary is never sorted.
template <typename Order>
std::vector<Weighted> TakeMass(std::vector<Weighted> candidates, double mass, Order before) {
  const auto after = [&before](const Weighted& a, const Weighted& b) { return before(b, a); };
  std::make_heap(candidates.begin(), candidates.end(), after);
  std::vector<Weighted> taken;
  for (double sum = 0; !candidates.empty() && (taken.empty() || sum < mass);) {
    std::pop_heap(candidates.begin(), candidates.end(), after);
    taken.push_back(candidates.back());
    sum += taken.back().weight;
    candidates.pop_back();
  }
  return taken;
}

// Locally typical sampling: those whose surprise is nearest to the entropy come first. Surprise is
// log(total) - exponent and the entropy its mean, so that log(total) cancels.
std::vector<Weighted> FilterTypical(std::vector<Weighted> candidates, double typical_p) {
  const double total = TotalOf(candidates);
  double mean = 0;
  for (const Weighted& c : candidates) mean += c.weight / total * c.exponent;
  const auto before = [mean](const Weighted& a, const Weighted& b) {
    const double of_a = std::abs(mean - a.exponent);
    const double of_b = std::abs(mean - b.exponent);
    return of_a != of_b ? of_a < of_b : Before(a, b);
  };
  return TakeMass(std::move(candidates), typical_p * total, before);
}

// The nucleus (Holtzman et al. 2019, https://arxiv.org/abs/1904.09751), then min-p. Both keep a
// prefix of the descending order, so the lighter ones that cannot be in it go before anything is
// ordered.
std::vector<Weighted> FilterTopPAndMinP(std::vector<Weighted> candidates, double top_p,
                                        double min_p) {
  const double total = TotalOf(candidates);
  double heaviest = 0;
  for (const Weighted& c : candidates) heaviest = std::max(heaviest, c.weight);
  double lightest = min_p * heaviest;
  if (top_p < 1) {
    // All that are lighter than this weigh less than half of what may be left out, together.
    const double never_needed = total * (1 - top_p) / (2 * static_cast<double>(candidates.size()));
    lightest = std::max(lightest, std::min(never_needed, heaviest));
  }
  std::erase_if(candidates, [lightest](const Weighted& c) { return c.weight < lightest; });
  if (top_p < 1) return TakeMass(std::move(candidates), top_p * total, Before);
  return candidates;
}

TokenId DrawFrom(std::vector<Weighted> candidates, double uniform) {
  std::sort(candidates.begin(), candidates.end(), Before);
  double left = uniform * TotalOf(candidates);
  for (const Weighted& c : candidates) {
    if (left < c.weight) return c.token;
    left -= c.weight;
  }
  return candidates.back().token;  // Rounding left a crumb.
}

void AddLogprobs(std::span<const float> logits, std::int32_t count, SampledToken* sampled) {
  const double log_sum = kernels::LogSumExp(logits);
  sampled->logprob = logits[sampled->token] - log_sum;
  if (count == 0) return;
  for (const kernels::Candidate& c : kernels::TopK(logits, count)) {
    sampled->top.push_back({c.token, c.logit - log_sum});
  }
}

bool HasNan(std::span<const float> row) {
  bool found = false;
  for (const float logit : row) found |= logit != logit;
  return found;
}

absl::StatusOr<TokenId> Draw(std::span<const float> row, const SamplingParams& params,
                             std::int32_t choice, std::int32_t position) {
  const kernels::MaxResult max = kernels::ArgMax(row);
  if (max.index < 0 || !std::isfinite(max.value)) {
    return absl::InternalError(absl::StrCat("the model gave no usable logits: the largest of ",
                                            row.size(), " is ",
                                            max.index < 0 ? "NaN" : absl::StrCat(max.value)));
  }
  if (params.temperature == 0) return max.index;
  const double uniform = UniformAt(params.seed, choice, position, kDrawStream);
  const Weights weights(row, max.value, params.temperature);
  if (params.top_k == 0 && params.top_p == 1 && params.min_p == 0 && params.typical_p == 1) {
    return DrawFromRow(weights, uniform);
  }
  std::vector<Weighted> candidates = MakeCandidates(row, weights, params.top_k);
  if (params.typical_p < 1) candidates = FilterTypical(std::move(candidates), params.typical_p);
  candidates = FilterTopPAndMinP(std::move(candidates), params.top_p, params.min_p);
  return DrawFrom(std::move(candidates), uniform);
}

}  // namespace

absl::Status SamplingParams::Validate(std::int32_t vocab) const {
  std::vector<std::string> faults;
  // Written so that NaN is a fault.
  const auto check = [&faults](bool good, std::string_view field, double value,
                               std::string_view limits) {
    if (!good) {
      faults.push_back(absl::StrCat(ToAbsl(field), " is ", value, ", must be ", ToAbsl(limits)));
    }
  };
  check(temperature >= 0 && temperature <= 100, "temperature", temperature, "0 to 100");
  check(top_k >= 0, "top_k", top_k, "0 (off) or more");
  check(top_p > 0 && top_p <= 1, "top_p", top_p, "above 0, up to 1 (off)");
  check(min_p >= 0 && min_p <= 1, "min_p", min_p, "0 (off) to 1");
  check(typical_p > 0 && typical_p <= 1, "typical_p", typical_p, "above 0, up to 1 (off)");
  check(repetition_penalty > 0 && repetition_penalty <= 10, "repetition_penalty",
        repetition_penalty, "above 0, up to 10; 1 is off");
  check(presence_penalty >= -2 && presence_penalty <= 2, "presence_penalty", presence_penalty,
        "-2 to 2");
  check(frequency_penalty >= -2 && frequency_penalty <= 2, "frequency_penalty", frequency_penalty,
        "-2 to 2");
  check(logprobs >= -1 && logprobs <= 20, "logprobs", logprobs, "-1 (none) to 20");
  for (const auto& [token, bias] : logit_bias) {
    if (token < 0 || token >= vocab) {
      faults.push_back(
          absl::StrCat("logit_bias names token ", token, ", the vocabulary has 0 to ", vocab - 1));
    }
    if (!(bias >= -100 && bias <= 100)) {
      faults.push_back(
          absl::StrCat("logit_bias of token ", token, " is ", bias, ", must be -100 to 100"));
    }
    if (faults.size() > 32) {  // A hostile map must not make a hostile message.
      faults.push_back("and perhaps more");
      break;
    }
  }
  if (faults.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrJoin(faults, "; "));
}

absl::StatusOr<SampledToken> SampleToken(std::span<const float> logits,
                                         const SamplingParams& params,
                                         std::span<const TokenId> prompt,
                                         std::span<const TokenId> answer, std::int32_t choice,
                                         std::int32_t position) {
  std::vector<float> without_nan;
  if (HasNan(logits)) {
    without_nan.assign(logits.begin(), logits.end());
    for (float& logit : without_nan) logit = std::isnan(logit) ? kMinusInfinity : logit;
    logits = without_nan;
  }
  std::vector<float> adjusted;
  if (ChangesLogits(params)) adjusted = AdjustedLogits(logits, params, prompt, answer);
  SampledToken sampled;
  ASSIGN_OR_RETURN(sampled.token,
                   Draw(adjusted.empty() ? logits : adjusted, params, choice, position));
  if (params.logprobs >= 0) AddLogprobs(logits, params.logprobs, &sampled);
  return sampled;
}

double UniformAt(std::uint64_t seed, std::int32_t choice, std::int32_t position,
                 std::uint32_t stream) {
  const std::array<std::uint32_t, 4> words = Philox4x32(
      {static_cast<std::uint32_t>(choice), static_cast<std::uint32_t>(position), stream, 0},
      {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)});
  const std::uint64_t bits = std::uint64_t{words[1]} << 32 | words[0];
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

}  // namespace penstock::engine
