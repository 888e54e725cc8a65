// SPDX-License-Identifier: Apache-2.0
#include "model/rope_frequencies.h"

#include <cmath>
#include <numbers>

namespace penstock::model {
namespace {

double InverseFrequency(float base, std::int32_t rotary_dim, std::int32_t pair) {
  return std::pow(static_cast<double>(base), -2.0 * pair / rotary_dim);
}

}  // namespace

std::vector<float> InverseFrequencies(float base, std::int32_t rotary_dim, float factor) {
  std::vector<float> out;
  for (std::int32_t i = 0; i < rotary_dim / 2; ++i) {
    out.push_back(static_cast<float>(InverseFrequency(base, rotary_dim, i) / factor));
  }
  return out;
}

std::vector<float> Llama3InverseFrequencies(float base, std::int32_t rotary_dim,
                                            const Llama3Scaling& s) {
  const double longest = static_cast<double>(s.original_context_tokens) / s.low_freq_factor;
  const double shortest = static_cast<double>(s.original_context_tokens) / s.high_freq_factor;
  std::vector<float> out;
  for (std::int32_t i = 0; i < rotary_dim / 2; ++i) {
    const double frequency = InverseFrequency(base, rotary_dim, i);
    const double wave = 2 * std::numbers::pi / frequency;
    double scaled = frequency;
    if (wave > longest) {
      scaled = frequency / s.factor;
    } else if (wave >= shortest) {
      const double kept = (s.original_context_tokens / wave - s.low_freq_factor) /
                          (s.high_freq_factor - s.low_freq_factor);
      scaled = (1 - kept) * frequency / s.factor + kept * frequency;
    }
    out.push_back(static_cast<float>(scaled));
  }
  return out;
}

}  // namespace penstock::model
