// SPDX-License-Identifier: Apache-2.0
#include "kernels/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "device/cpu_info.h"
#include "kernels/sampling_targets.h"

namespace penstock::kernels {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

const SamplingTarget& Best() {
  static const SamplingTarget best = SamplingTargets().back();
  return best;
}

std::int32_t Count(std::span<const float> logits) {
  return static_cast<std::int32_t>(logits.size());
}

// A total order: larger logits first, equal ones by index.
struct Before {
  const float* logits;
  bool operator()(std::int32_t a, std::int32_t b) const {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  }
};

}  // namespace

std::span<const SamplingTarget> SamplingTargets() {
  static const std::vector<SamplingTarget> targets = [] {
    std::vector<SamplingTarget> all = {kSamplingScalar};
    if (ThisCpu().avx2) all.push_back(kSamplingAvx2);
    if (ThisCpu().avx512) all.push_back(kSamplingAvx512);
    return all;
  }();
  return targets;
}

MaxResult ArgMax(std::span<const float> logits) {
  return Best().arg_max(logits.data(), Count(logits));
}

double SumExpWith(const SamplingTarget& target, std::span<const float> logits, float max) {
  double sum = 0;
  for (std::int32_t begin = 0; begin < Count(logits); begin += kSumExpPiece) {
    sum +=
        target.sum_exp(logits.data() + begin, std::min(kSumExpPiece, Count(logits) - begin), max);
  }
  return sum;
}

double SumExp(std::span<const float> logits, float max) { return SumExpWith(Best(), logits, max); }

double LogSumExpWith(const SamplingTarget& target, std::span<const float> logits) {
  const float max = target.arg_max(logits.data(), Count(logits)).value;
  if (max == kMinusInfinity) return kMinusInfinity;
  return std::log(SumExpWith(target, logits, max)) + double{max};
}

double LogSumExp(std::span<const float> logits) { return LogSumExpWith(Best(), logits); }

std::vector<Candidate> TopKWith(const SamplingTarget& target, std::span<const float> logits,
                                std::int32_t k) {
  const std::int32_t n = Count(logits);
  k = std::clamp(k, 0, n);
  if (k == 0) return {};
  const Before before = {logits.data()};
  // Twice k, so that each cut to the best k, linear in the buffer, pays for as many new entries.
  // Little more than that, since an early cut raises the threshold for all that follow.
  const std::int32_t capacity =
      static_cast<std::int32_t>(std::min(std::int64_t{n}, std::int64_t{2} * k + 64)) + 16;
  std::vector<std::int32_t> kept(static_cast<std::size_t>(capacity));
  std::int32_t count = 0;
  float threshold = kMinusInfinity;
  for (std::int32_t i = 0; i < n;) {
    i = target.filter(logits.data(), i, n, threshold, kept.data(), capacity, &count);
    if (i < n) {
      // Later logits equal to the k-th best lose against it by index, so "above" is enough.
      std::nth_element(kept.begin(), kept.begin() + (k - 1), kept.begin() + count, before);
      threshold = logits[kept[k - 1]];
      count = k;
    }
  }
  kept.resize(count);
  // Minus infinity is above no threshold; such logits come last, in order.
  for (std::int32_t i = 0; i < n && static_cast<std::int32_t>(kept.size()) < k; ++i) {
    if (logits[i] == kMinusInfinity) kept.push_back(i);
  }
  k = std::min(k, static_cast<std::int32_t>(kept.size()));
  std::partial_sort(kept.begin(), kept.begin() + k, kept.end(), before);
  std::vector<Candidate> top;
  top.reserve(k);
  for (std::int32_t i = 0; i < k; ++i) top.push_back({kept[i], logits[kept[i]]});
  return top;
}

std::vector<Candidate> TopK(std::span<const float> logits, std::int32_t k) {
  return TopKWith(Best(), logits, k);
}

}  // namespace penstock::kernels
