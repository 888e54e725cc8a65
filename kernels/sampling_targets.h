// SPDX-License-Identifier: Apache-2.0
// The targets behind kernels/sampling.h, for its dispatch and its tests.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "kernels/sampling.h"

namespace penstock::kernels {

struct SamplingTarget {
  std::string_view name;
  // As ArgMax.
  MaxResult (*arg_max)(const float* logits, std::int32_t n);
  // As SumExp, of one piece.
  double (*sum_exp)(const float* logits, std::int32_t n, float max);
  // Appends to `out` the indices in [begin, end), ascending, of the logits above `threshold` (a NaN
  // never is), and adds their count to *count, until the end is reached or fewer than 16 more fit
  // into `capacity`. Returns where it stopped.
  std::int32_t (*filter)(const float* logits, std::int32_t begin, std::int32_t end, float threshold,
                         std::int32_t* out, std::int32_t capacity, std::int32_t* count);
};
// All this CPU can run: scalar first, best last.
std::span<const SamplingTarget> SamplingTargets();

// On one target.
double SumExpWith(const SamplingTarget& target, std::span<const float> logits, float max);
double LogSumExpWith(const SamplingTarget& target, std::span<const float> logits);
std::vector<Candidate> TopKWith(const SamplingTarget& target, std::span<const float> logits,
                                std::int32_t k);

extern const SamplingTarget kSamplingScalar;
extern const SamplingTarget kSamplingAvx2;
extern const SamplingTarget kSamplingAvx512;

}  // namespace penstock::kernels
