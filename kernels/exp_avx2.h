// SPDX-License-Identifier: Apache-2.0
// kernels/exp.h on 8 lanes of AVX2. Only for functions that are themselves compiled for it.
#pragma once

#include "kernels/exp_constants.h"
#include "kernels/simd.h"

#define PENSTOCK_AVX2 gnu::target("avx2,fma,f16c")

namespace penstock::kernels {

// p * 2^n with n in the low bits of `rounded`.
[[gnu::always_inline, PENSTOCK_AVX2]] inline __m256 ScaleByPowerOfTwo(__m256 p, __m256 rounded) {
  const __m256i shifted = _mm256_slli_epi32(_mm256_castps_si256(rounded), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), shifted));
}

[[gnu::always_inline, PENSTOCK_AVX2]] inline __m256 Exp(__m256 x) {
  const __m256 magic = _mm256_set1_ps(kRoundToInteger);
  const __m256 rounded = _mm256_fmadd_ps(x, _mm256_set1_ps(kLog2E), magic);
  const __m256 n = _mm256_sub_ps(rounded, magic);
  __m256 r = _mm256_fmadd_ps(n, _mm256_set1_ps(-kLn2High), x);
  r = _mm256_fmadd_ps(n, _mm256_set1_ps(-kLn2Low), r);
  __m256 p = _mm256_set1_ps(kExpPoly[0]);
  for (int i = 1; i < kExpTerms; ++i) p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(kExpPoly[i]));
  const __m256 low = _mm256_cmp_ps(x, _mm256_set1_ps(kExpLow), _CMP_LT_OQ);
  const __m256 high = _mm256_cmp_ps(x, _mm256_set1_ps(kExpHigh), _CMP_GT_OQ);
  const __m256 infinity = _mm256_castsi256_ps(_mm256_set1_epi32(0x7F800000));
  return _mm256_blendv_ps(_mm256_andnot_ps(low, ScaleByPowerOfTwo(p, rounded)), infinity, high);
}

[[gnu::always_inline, PENSTOCK_AVX2]] inline __m256 Exp2(__m256 x) {
  const __m256 magic = _mm256_set1_ps(kRoundToInteger);
  const __m256 rounded = _mm256_add_ps(x, magic);
  const __m256 r = _mm256_sub_ps(x, _mm256_sub_ps(rounded, magic));
  __m256 p = _mm256_set1_ps(kExp2Poly[0]);
  for (int i = 1; i < kExp2Terms; ++i) p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(kExp2Poly[i]));
  const __m256 low = _mm256_cmp_ps(x, _mm256_set1_ps(kExp2Low), _CMP_LT_OQ);
  return _mm256_andnot_ps(low, ScaleByPowerOfTwo(p, rounded));
}

}  // namespace penstock::kernels
