// SPDX-License-Identifier: Apache-2.0
// kernels/sampling.h with AVX-512.
#include <limits>

#include "kernels/exp_avx512.h"
#include "kernels/sampling_targets.h"
#include "kernels/simd.h"

namespace penstock::kernels {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// The lanes of a vector at `i` that lie below `n`.
[[gnu::always_inline, PENSTOCK_AVX512]] inline __mmask16 MaskAt(std::int32_t i, std::int32_t n) {
  return n - i >= 16 ? 0xFFFF : static_cast<__mmask16>((1u << (n - i)) - 1);
}

// Two passes: the maximum, then where it first is.
[[PENSTOCK_AVX512]] MaxResult ArgMax512(const float* logits, std::int32_t n) {
  const __m512 lowest = _mm512_set1_ps(kMinusInfinity);
  __m512 max[4] = {lowest, lowest, lowest, lowest};
  std::int32_t i = 0;
  // max(a, b) is b where a is NaN, so that NaNs never get in.
  for (; i + 64 <= n; i += 64) {
    for (int j = 0; j < 4; ++j) {
      max[j] = _mm512_max_ps(_mm512_loadu_ps(logits + i + 16 * j), max[j]);
    }
  }
  for (; i < n; i += 16) {
    const __m512 v = _mm512_mask_loadu_ps(lowest, MaskAt(i, n), logits + i);
    max[0] = _mm512_max_ps(v, max[0]);
  }
  const __m512 all = _mm512_max_ps(_mm512_max_ps(max[0], max[1]), _mm512_max_ps(max[2], max[3]));
  const __m512 best = _mm512_set1_ps(_mm512_reduce_max_ps(all));
  for (i = 0; i < n; i += 16) {
    const __mmask16 mask = MaskAt(i, n);
    const __m512 v = _mm512_maskz_loadu_ps(mask, logits + i);
    const __mmask16 equal = _mm512_mask_cmp_ps_mask(mask, v, best, _CMP_EQ_OQ);
    if (equal != 0) {
      const std::int32_t index = i + __builtin_ctz(equal);
      return {logits[index], index};
    }
  }
  return {kMinusInfinity, -1};
}

[[PENSTOCK_AVX512]] double SumExp512(const float* logits, std::int32_t n, float max) {
  __m512d low = _mm512_setzero_pd();
  __m512d high = _mm512_setzero_pd();
  const __m512 max_all = _mm512_set1_ps(max);
  for (std::int32_t i = 0; i < n; i += 16) {
    const __mmask16 mask = MaskAt(i, n);
    // The exp of what is not there is 0; adding it changes no sum, none is -0.
    const __m512 v = _mm512_mask_loadu_ps(_mm512_set1_ps(kMinusInfinity), mask, logits + i);
    const __m512 p = Exp(_mm512_sub_ps(v, max_all));
    low = _mm512_add_pd(low, _mm512_cvtps_pd(_mm512_castps512_ps256(p)));
    high = _mm512_add_pd(high, _mm512_cvtps_pd(_mm512_extractf32x8_ps(p, 1)));
  }
  const __m512d a = _mm512_add_pd(low, high);
  const __m256d b = _mm256_add_pd(_mm512_castpd512_pd256(a), _mm512_extractf64x4_pd(a, 1));
  const __m128d c = _mm_add_pd(_mm256_castpd256_pd128(b), _mm256_extractf128_pd(b, 1));
  return _mm_cvtsd_f64(_mm_add_sd(c, _mm_unpackhi_pd(c, c)));
}

[[PENSTOCK_AVX512]] std::int32_t Filter512(const float* logits, std::int32_t begin,
                                           std::int32_t end, float threshold, std::int32_t* out,
                                           std::int32_t capacity, std::int32_t* count) {
  const __m512 limit = _mm512_set1_ps(threshold);
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  std::int32_t i = begin;
  for (; i < end && *count + 16 <= capacity; i += 16) {
    const __mmask16 mask = MaskAt(i, end);
    const __m512 v = _mm512_maskz_loadu_ps(mask, logits + i);
    const __mmask16 above = _mm512_mask_cmp_ps_mask(mask, v, limit, _CMP_GT_OQ);
    if (above == 0) continue;
    const __m512i indices = _mm512_add_epi32(_mm512_set1_epi32(i), lanes);
    // All 16 lanes fit; compressing straight to memory is slow microcode on some CPUs.
    _mm512_storeu_si512(out + *count, _mm512_maskz_compress_epi32(above, indices));
    *count += __builtin_popcount(above);
  }
  return i < end ? i : end;
}

}  // namespace

const SamplingTarget kSamplingAvx512 = {"avx512", ArgMax512, SumExp512, Filter512};

}  // namespace penstock::kernels
