// SPDX-License-Identifier: Apache-2.0
// kernels/sampling.h with AVX2. What is left at the end of a row is copied to the stack, padded.
#include <cstring>
#include <limits>

#include "kernels/exp_avx2.h"
#include "kernels/sampling_targets.h"
#include "kernels/simd.h"

namespace penstock::kernels {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// 8 logits from i on, minus infinity behind the end.
[[gnu::always_inline, PENSTOCK_AVX2]] inline __m256 LoadAt(const float* logits, std::int32_t i,
                                                           std::int32_t n) {
  if (i + 8 <= n) return _mm256_loadu_ps(logits + i);
  float rest[8];
  for (int j = 0; j < 8; ++j) rest[j] = i + j < n ? logits[i + j] : kMinusInfinity;
  return _mm256_loadu_ps(rest);
}

// Two passes: the maximum, then where it first is.
[[PENSTOCK_AVX2]] MaxResult ArgMax256(const float* logits, std::int32_t n) {
  const __m256 lowest = _mm256_set1_ps(kMinusInfinity);
  __m256 max[4] = {lowest, lowest, lowest, lowest};
  // max(a, b) is b where a is NaN, so that NaNs never get in.
  std::int32_t i = 0;
  for (; i + 32 <= n; i += 32) {
    SIMD_UNROLL for (int j = 0; j < 4; ++j) {
      max[j] = _mm256_max_ps(_mm256_loadu_ps(logits + i + 8 * j), max[j]);
    }
  }
  for (; i < n; i += 8) max[0] = _mm256_max_ps(LoadAt(logits, i, n), max[0]);
  const __m256 all = _mm256_max_ps(_mm256_max_ps(max[0], max[1]), _mm256_max_ps(max[2], max[3]));
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  const float best = _mm_cvtss_f32(_mm_max_ss(four, _mm_shuffle_ps(four, four, 1)));
  const __m256 best_all = _mm256_set1_ps(best);
  for (i = 0; i < n; i += 8) {
    const int equal = _mm256_movemask_ps(_mm256_cmp_ps(LoadAt(logits, i, n), best_all, _CMP_EQ_OQ));
    if (equal == 0) continue;
    const std::int32_t index = i + __builtin_ctz(static_cast<unsigned>(equal));
    if (index < n) return {logits[index], index};
  }
  return {kMinusInfinity, -1};
}

[[PENSTOCK_AVX2]] double SumExp256(const float* logits, std::int32_t n, float max) {
  __m256d sums[4] = {_mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd(),
                     _mm256_setzero_pd()};
  const __m256 max_all = _mm256_set1_ps(max);
  for (std::int32_t i = 0; i < n; i += 16) {
    // The exp of what is not there is 0; adding it changes no sum, none is -0.
    const __m256 a = Exp(_mm256_sub_ps(LoadAt(logits, i, n), max_all));
    const __m256 b = Exp(_mm256_sub_ps(LoadAt(logits, i + 8, n), max_all));
    sums[0] = _mm256_add_pd(sums[0], _mm256_cvtps_pd(_mm256_castps256_ps128(a)));
    sums[1] = _mm256_add_pd(sums[1], _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1)));
    sums[2] = _mm256_add_pd(sums[2], _mm256_cvtps_pd(_mm256_castps256_ps128(b)));
    sums[3] = _mm256_add_pd(sums[3], _mm256_cvtps_pd(_mm256_extractf128_ps(b, 1)));
  }
  const __m256d four =
      _mm256_add_pd(_mm256_add_pd(sums[0], sums[2]), _mm256_add_pd(sums[1], sums[3]));
  const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
  return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

[[PENSTOCK_AVX2]] std::int32_t Filter256(const float* logits, std::int32_t begin, std::int32_t end,
                                         float threshold, std::int32_t* out, std::int32_t capacity,
                                         std::int32_t* count) {
  const __m256 limit = _mm256_set1_ps(threshold);
  std::int32_t i = begin;
  for (; i < end && *count + 8 <= capacity; i += 8) {
    const __m256 above = _mm256_cmp_ps(LoadAt(logits, i, end), limit, _CMP_GT_OQ);
    auto bits = static_cast<unsigned>(_mm256_movemask_ps(above));
    for (; bits != 0; bits &= bits - 1) out[(*count)++] = i + __builtin_ctz(bits);
  }
  return i < end ? i : end;
}

}  // namespace

const SamplingTarget kSamplingAvx2 = {"avx2", ArgMax256, SumExp256, Filter256};

}  // namespace penstock::kernels
