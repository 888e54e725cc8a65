// SPDX-License-Identifier: Apache-2.0
#include <cfloat>

#include "kernels/linear_targets.h"
#include "kernels/simd.h"

#define SIMD_TARGET "avx2,fma"

namespace penstock::kernels {
namespace {

SIMD_INLINE float MaxOf(__m256 a) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

// One block of 32, whole.
SIMD_INLINE void QuantizeBlock(const float* x, std::int8_t* q, float* scale, std::int32_t* sum) {
  __m256 v[4];
  SIMD_UNROLL for (int i = 0; i < 4; ++i) v[i] = _mm256_loadu_ps(x + 8 * i);
  const __m256 sign = _mm256_set1_ps(-0.0f);
  __m256 max_abs = _mm256_andnot_ps(sign, v[0]);
  SIMD_UNROLL for (int i = 1; i < 4; ++i) {
    max_abs = _mm256_max_ps(max_abs, _mm256_andnot_ps(sign, v[i]));
  }
  float s = MaxOf(max_abs) / 127;
  if (s < FLT_MIN) s = 0;
  const __m256 inverse = _mm256_set1_ps(s > 0 ? 1 / s : 0);
  __m256i n[4];
  SIMD_UNROLL for (int i = 0; i < 4; ++i) n[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));
  // Packing interleaves the 128-bit halves; the permutation puts the groups of four in order.
  const __m256i packed =
      _mm256_packs_epi16(_mm256_packs_epi32(n[0], n[1]), _mm256_packs_epi32(n[2], n[3]));
  const __m256i ordered =
      _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(q), ordered);
  const __m256i raised = _mm256_xor_si256(ordered, _mm256_set1_epi8(-128));  // q + 128, unsigned.
  const __m256i sums = _mm256_sad_epu8(raised, _mm256_setzero_si256());
  const __m128i two =
      _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
  *sum = _mm_cvtsi128_si32(two) + _mm_extract_epi16(two, 4) - 32 * 128;
  *scale = s;
}

}  // namespace

SIMD_CALL void QuantizeRowAvx2(const float* x, std::int32_t cols, std::int8_t* q, float* scale,
                               std::int32_t* sum) {
  for (; cols >= 32; cols -= 32, x += 32, q += 32) QuantizeBlock(x, q, scale++, sum++);
  if (cols > 0) QuantizeRowScalar(x, cols, q, scale, sum);
}

}  // namespace penstock::kernels
