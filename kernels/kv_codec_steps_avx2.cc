// SPDX-License-Identifier: Apache-2.0
// kernels/kv_codec_steps.h with AVX2.
#include "kernels/kv_codec_steps_targets.h"
#include "kernels/simd.h"

#define SIMD_TARGET "avx2,fma,f16c"

namespace penstock::kernels {
namespace {

#include "kernels/kv_codec_avx2.inc"

SIMD_INLINE Floats Root(Floats v) { return _mm256_sqrt_ps(v); }
SIMD_INLINE Floats ToFloats(Ints v) { return _mm256_cvtepi32_ps(v); }
SIMD_INLINE Ints Plus(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
SIMD_INLINE Ints Minus(Ints a, Ints b) { return _mm256_sub_epi32(a, b); }
SIMD_INLINE Ints Larger(Ints a, Ints b) { return _mm256_max_epi32(a, b); }
SIMD_INLINE Ints Magnitude(Ints v) { return _mm256_abs_epi32(v); }
SIMD_INLINE Ints LoadShorts(const std::int16_t* from) {
  return _mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
// Of numbers that are int16.
SIMD_INLINE void StoreShorts(std::int16_t* to, Ints v) {
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packs_epi32(v, v), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(packed));
}
SIMD_INLINE Ints LoadSignedBytes(const std::int8_t* from) {
  return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
}
SIMD_INLINE void StoreInts(std::int32_t* to, Ints v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), v);
}
SIMD_INLINE Ints LoadInts(const std::int32_t* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}

constexpr std::size_t kSums = 2;
SIMD_INLINE __m256 AddHalves(const Floats (&sums)[kSums]) {
  return _mm256_add_ps(sums[0], sums[1]);
}

#include "kernels/kv_codec_steps_simd.inc"

}  // namespace

const KvStepsTarget kKvStepsAvx2 = StepsTargetNamed("avx2");

}  // namespace penstock::kernels
