// SPDX-License-Identifier: Apache-2.0
// Reductions over one row of logits [vocab], on the caller's thread, the same bits on every target.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace penstock::kernels {

struct MaxResult {
  float value;
  std::int32_t index;  // The smallest index that has it.
};
// NaNs are ignored; an empty or all-NaN row gives {-infinity, -1}.
MaxResult ArgMax(std::span<const float> logits);

// The sum of exp(logits[i] - max), in double from float exps (kernels/exp.h). Pieces of
// kSumExpPiece logits have 16 partial sums each, over i mod 16 in ascending order, added in pairs at
// distance 8, 4, 2, 1; the pieces' sums are added in ascending order.
inline constexpr std::int32_t kSumExpPiece = 512;
double SumExp(std::span<const float> logits, float max);
// log(sum of exp(logits[i])), from SumExp with the largest.
double LogSumExp(std::span<const float> logits);

struct Candidate {
  std::int32_t token;
  float logit;
};
// The k largest, descending; equal ones by ascending index. NaNs are left out; k is cut to what is
// there.
std::vector<Candidate> TopK(std::span<const float> logits, std::int32_t k);

}  // namespace penstock::kernels
