// SPDX-License-Identifier: Apache-2.0
#include <cfloat>

#include "kernels/linear_targets.h"
#include "kernels/simd.h"

#define SIMD_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx2"

namespace penstock::kernels {
namespace {

// One block of 32 columns, of which the masks name those that exist.
SIMD_INLINE void QuantizeBlock(const float* x, __mmask16 low, __mmask16 high, std::int8_t* q,
                               float* scale, std::int32_t* sum) {
  const __m512 a = _mm512_maskz_loadu_ps(low, x);
  const __m512 b = _mm512_maskz_loadu_ps(high, x + 16);
  const float max_abs = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
  float s = max_abs / 127;
  if (s < FLT_MIN) s = 0;
  const __m512 inverse = _mm512_set1_ps(s > 0 ? 1 / s : 0);
  const __m128i first = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(a, inverse)));
  const __m128i second = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(b, inverse)));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(q), first);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(q + 16), second);
  const __m128i raise = _mm_set1_epi8(-128);  // q + 128, unsigned.
  const __m128i zero = _mm_setzero_si128();
  const __m128i two = _mm_add_epi32(_mm_sad_epu8(_mm_xor_si128(first, raise), zero),
                                    _mm_sad_epu8(_mm_xor_si128(second, raise), zero));
  *sum = _mm_cvtsi128_si32(two) + _mm_extract_epi16(two, 4) - 32 * 128;
  *scale = s;
}

}  // namespace

SIMD_CALL void QuantizeRowAvx512(const float* x, std::int32_t cols, std::int8_t* q, float* scale,
                                 std::int32_t* sum) {
  for (; cols >= 32; cols -= 32, x += 32, q += 32) {
    QuantizeBlock(x, 0xffff, 0xffff, q, scale++, sum++);
  }
  if (cols > 0) {
    const std::uint32_t exist = (1u << cols) - 1;
    QuantizeBlock(x, static_cast<__mmask16>(exist & 0xffff), static_cast<__mmask16>(exist >> 16), q,
                  scale, sum);
  }
}

}  // namespace penstock::kernels
