// SPDX-License-Identifier: Apache-2.0
// kernels/kv_codec_quant.h with AVX-512.
#include <cstring>

#include "kernels/kv_codec_quant_targets.h"
#include "kernels/simd.h"

#define SIMD_TARGET "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"

namespace penstock::kernels {
namespace {

constexpr int kLanes = 16;
using Floats = __m512;
using Ints = __m512i;
using Halves = __m256i;

SIMD_INLINE Floats All(float v) { return _mm512_set1_ps(v); }
SIMD_INLINE Floats Load(const std::byte* from) { return _mm512_loadu_ps(from); }
SIMD_INLINE void Store(std::byte* to, Floats v) { _mm512_storeu_ps(to, v); }
SIMD_INLINE Halves LoadHalves(const std::byte* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}
SIMD_INLINE void StoreHalves(std::byte* to, Halves v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), v);
}
SIMD_INLINE Floats Min(Floats a, Floats b) { return _mm512_min_ps(a, b); }
SIMD_INLINE Floats Max(Floats a, Floats b) { return _mm512_max_ps(a, b); }
SIMD_INLINE Floats Abs(Floats v) { return _mm512_andnot_ps(All(-0.0f), v); }
SIMD_INLINE Floats Fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
SIMD_INLINE float MaxOf(Floats v) {
  const __m256 w = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(w), _mm256_extractf128_ps(w, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}
SIMD_INLINE float MinOf(Floats v) {
  const __m256 w = _mm256_min_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  __m128 m = _mm_min_ps(_mm256_castps256_ps128(w), _mm256_extractf128_ps(w, 1));
  m = _mm_min_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_min_ss(m, _mm_movehdup_ps(m)));
}
SIMD_INLINE Floats FromF16(Halves v) { return _mm512_cvtph_ps(v); }
SIMD_INLINE Floats FromBF16(Halves v) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}
SIMD_INLINE Halves ToF16(Floats v) { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }
SIMD_INLINE Halves ToF16Up(Floats v) { return _mm512_cvtps_ph(v, _MM_FROUND_TO_POS_INF); }
SIMD_INLINE Halves ToF16Down(Floats v) { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEG_INF); }
// Of finite values.
SIMD_INLINE Halves ToBF16(Floats v) {
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd);
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}
// 1 / v, and 0 for 0.
SIMD_INLINE Floats Inverse(Floats v) {
  return _mm512_maskz_div_ps(_mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_GT_OQ), All(1), v);
}
SIMD_INLINE Ints ToInts(Floats v) { return _mm512_cvtps_epi32(v); }
SIMD_INLINE Floats FromSignedBytes(const std::byte* from) {
  return _mm512_cvtepi32_ps(
      _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}
// 16 bytes from byte `at` on, 0 or 16.
SIMD_INLINE Floats FromBytes(__m256i bytes, int at) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(at == 16 ? _mm256_extracti128_si256(bytes, 1)
                                                          : _mm256_castsi256_si128(bytes)));
}
// The low bytes of 32 numbers.
SIMD_INLINE __m256i LowBytes(const Ints (&v)[2]) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm512_cvtepi32_epi8(v[0])),
                                 _mm512_cvtepi32_epi8(v[1]), 1);
}

// Packs a group's codes, of kBits each, and stores them.
template <int kBits>
SIMD_INLINE void StoreCodes(const Ints (&v)[2], std::byte* to) {
  const __m512i two = _mm512_or_si512(v[0], _mm512_slli_epi32(v[1], 4));
  if constexpr (kBits == 4) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(two));
  } else {
    const __m256i high = _mm256_slli_epi32(_mm512_extracti64x4_epi64(two, 1), 2);
    const __m256i four = _mm256_or_si256(_mm512_castsi512_si256(two), high);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm256_cvtepi32_epi8(four));
  }
}

#include "kernels/kv_codec_quant_simd.inc"

}  // namespace

const KvQuantTarget kKvQuantAvx512 = TargetNamed("avx512");

}  // namespace penstock::kernels
