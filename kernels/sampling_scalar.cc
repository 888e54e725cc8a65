// SPDX-License-Identifier: Apache-2.0
// The specification of kernels/sampling.h. Every other target is tested against it.
#include <limits>

#include "kernels/exp.h"
#include "kernels/sampling_targets.h"

namespace penstock::kernels {
namespace {

MaxResult ArgMaxScalar(const float* logits, std::int32_t n) {
  MaxResult best = {-std::numeric_limits<float>::infinity(), -1};
  for (std::int32_t i = 0; i < n; ++i) {
    if (logits[i] > best.value || (best.index < 0 && logits[i] == best.value)) {
      best = {logits[i], i};
    }
  }
  return best;
}

double SumExpScalar(const float* logits, std::int32_t n, float max) {
  double sums[16] = {};
  for (std::int32_t i = 0; i < n; ++i) sums[i % 16] += static_cast<double>(Exp(logits[i] - max));
  for (int distance = 8; distance > 0; distance /= 2) {
    for (int i = 0; i < distance; ++i) sums[i] += sums[i + distance];
  }
  return sums[0];
}

std::int32_t FilterScalar(const float* logits, std::int32_t begin, std::int32_t end,
                          float threshold, std::int32_t* out, std::int32_t capacity,
                          std::int32_t* count) {
  std::int32_t i = begin;
  for (; i < end && *count + 16 <= capacity; ++i) {
    if (logits[i] > threshold) out[(*count)++] = i;
  }
  return i;
}

}  // namespace

const SamplingTarget kSamplingScalar = {"scalar", ArgMaxScalar, SumExpScalar, FilterScalar};

}  // namespace penstock::kernels
