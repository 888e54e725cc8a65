// SPDX-License-Identifier: Apache-2.0
// kernels/exp.h on 16 lanes of AVX-512. Only for functions that are themselves compiled for it.
#pragma once

#include "kernels/exp_constants.h"
#include "kernels/simd.h"

#define PENSTOCK_AVX512 gnu::target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")

namespace penstock::kernels {

// p * 2^n with n in the low bits of `rounded`, 0 where not in `keep`.
[[gnu::always_inline, PENSTOCK_AVX512]] inline __m512 ScaleByPowerOfTwo(__mmask16 keep, __m512 p,
                                                                        __m512 rounded) {
  const __m512i shifted = _mm512_slli_epi32(_mm512_castps_si512(rounded), 23);
  return _mm512_castsi512_ps(_mm512_maskz_add_epi32(keep, _mm512_castps_si512(p), shifted));
}

[[gnu::always_inline, PENSTOCK_AVX512]] inline __m512 Exp(__m512 x) {
  const __m512 magic = _mm512_set1_ps(kRoundToInteger);
  const __m512 rounded = _mm512_fmadd_ps(x, _mm512_set1_ps(kLog2E), magic);
  const __m512 n = _mm512_sub_ps(rounded, magic);
  __m512 r = _mm512_fmadd_ps(n, _mm512_set1_ps(-kLn2High), x);
  r = _mm512_fmadd_ps(n, _mm512_set1_ps(-kLn2Low), r);
  __m512 p = _mm512_set1_ps(kExpPoly[0]);
  for (int i = 1; i < kExpTerms; ++i) p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(kExpPoly[i]));
  const __mmask16 keep = _mm512_cmp_ps_mask(x, _mm512_set1_ps(kExpLow), _CMP_NLT_UQ);
  const __mmask16 high = _mm512_cmp_ps_mask(x, _mm512_set1_ps(kExpHigh), _CMP_GT_OQ);
  const __m512 infinity = _mm512_castsi512_ps(_mm512_set1_epi32(0x7F800000));
  return _mm512_mask_mov_ps(ScaleByPowerOfTwo(keep, p, rounded), high, infinity);
}

[[gnu::always_inline, PENSTOCK_AVX512]] inline __m512 Exp2(__m512 x) {
  const __m512 magic = _mm512_set1_ps(kRoundToInteger);
  const __m512 rounded = _mm512_add_ps(x, magic);
  const __m512 r = _mm512_sub_ps(x, _mm512_sub_ps(rounded, magic));
  __m512 p = _mm512_set1_ps(kExp2Poly[0]);
  for (int i = 1; i < kExp2Terms; ++i) p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(kExp2Poly[i]));
  const __mmask16 keep = _mm512_cmp_ps_mask(x, _mm512_set1_ps(kExp2Low), _CMP_NLT_UQ);
  return ScaleByPowerOfTwo(keep, p, rounded);
}

}  // namespace penstock::kernels
