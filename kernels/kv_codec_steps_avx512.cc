// SPDX-License-Identifier: Apache-2.0
// kernels/kv_codec_steps.h with AVX-512.
#include "kernels/kv_codec_steps_targets.h"
#include "kernels/simd.h"

#define SIMD_TARGET "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"

namespace penstock::kernels {
namespace {

#include "kernels/kv_codec_avx512.inc"

SIMD_INLINE Floats Root(Floats v) { return _mm512_sqrt_ps(v); }
SIMD_INLINE Floats ToFloats(Ints v) { return _mm512_cvtepi32_ps(v); }
SIMD_INLINE Ints Plus(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
SIMD_INLINE Ints Minus(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
SIMD_INLINE Ints Larger(Ints a, Ints b) { return _mm512_max_epi32(a, b); }
SIMD_INLINE Ints Magnitude(Ints v) { return _mm512_abs_epi32(v); }
SIMD_INLINE Ints LoadShorts(const std::int16_t* from) {
  return _mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
SIMD_INLINE void StoreShorts(std::int16_t* to, Ints v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(v));
}
SIMD_INLINE Ints LoadSignedBytes(const std::int8_t* from) {
  return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
SIMD_INLINE void StoreInts(std::int32_t* to, Ints v) { _mm512_storeu_si512(to, v); }
SIMD_INLINE Ints LoadInts(const std::int32_t* from) { return _mm512_loadu_si512(from); }

constexpr std::size_t kSums = 1;
SIMD_INLINE __m256 AddHalves(const Floats (&sums)[kSums]) {
  return _mm256_add_ps(_mm512_castps512_ps256(sums[0]), _mm512_extractf32x8_ps(sums[0], 1));
}

#include "kernels/kv_codec_steps_simd.inc"

}  // namespace

const KvStepsTarget kKvStepsAvx512 = StepsTargetNamed("avx512");

}  // namespace penstock::kernels
