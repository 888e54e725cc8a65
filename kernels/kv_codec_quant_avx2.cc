// SPDX-License-Identifier: Apache-2.0
// kernels/kv_codec_quant.h with AVX2.
#include <cstring>

#include "kernels/kv_codec_quant_targets.h"
#include "kernels/simd.h"

#define SIMD_TARGET "avx2,fma,f16c"

namespace penstock::kernels {
namespace {

constexpr int kLanes = 8;
using Floats = __m256;
using Ints = __m256i;
using Halves = __m128i;

SIMD_INLINE Floats All(float v) { return _mm256_set1_ps(v); }
SIMD_INLINE Floats Load(const std::byte* from) {
  return _mm256_loadu_ps(reinterpret_cast<const float*>(from));
}
SIMD_INLINE void Store(std::byte* to, Floats v) {
  _mm256_storeu_ps(reinterpret_cast<float*>(to), v);
}
SIMD_INLINE Halves LoadHalves(const std::byte* from) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
}
SIMD_INLINE void StoreHalves(std::byte* to, Halves v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), v);
}
SIMD_INLINE Floats Min(Floats a, Floats b) { return _mm256_min_ps(a, b); }
SIMD_INLINE Floats Max(Floats a, Floats b) { return _mm256_max_ps(a, b); }
SIMD_INLINE Floats Abs(Floats v) { return _mm256_andnot_ps(All(-0.0f), v); }
SIMD_INLINE Floats Fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
SIMD_INLINE float MaxOf(Floats v) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}
SIMD_INLINE float MinOf(Floats v) {
  __m128 m = _mm_min_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_min_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_min_ss(m, _mm_movehdup_ps(m)));
}
SIMD_INLINE Floats FromF16(Halves v) { return _mm256_cvtph_ps(v); }
SIMD_INLINE Floats FromBF16(Halves v) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
}
SIMD_INLINE Halves ToF16(Floats v) { return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }
SIMD_INLINE Halves ToF16Up(Floats v) { return _mm256_cvtps_ph(v, _MM_FROUND_TO_POS_INF); }
SIMD_INLINE Halves ToF16Down(Floats v) { return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEG_INF); }
// Of finite values.
SIMD_INLINE Halves ToBF16(Floats v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd);
  const __m256i upper = _mm256_srli_epi32(rounded, 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(upper, upper), 0x08);
  return _mm256_castsi256_si128(packed);
}
// 1 / v, and 0 for 0.
SIMD_INLINE Floats Inverse(Floats v) {
  const Floats nonzero = _mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_GT_OQ);
  return _mm256_and_ps(nonzero, _mm256_div_ps(All(1), v));
}
SIMD_INLINE Ints ToInts(Floats v) { return _mm256_cvtps_epi32(v); }
SIMD_INLINE Floats FromSignedBytes(const std::byte* from) {
  return _mm256_cvtepi32_ps(
      _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
}
// 8 bytes from byte `at` on, a multiple of 8.
SIMD_INLINE Floats FromBytes(__m256i bytes, int at) {
  const __m128i half =
      at >= 16 ? _mm256_extracti128_si256(bytes, 1) : _mm256_castsi256_si128(bytes);
  return _mm256_cvtepi32_ps(
      _mm256_cvtepu8_epi32(at % 16 == 8 ? _mm_unpackhi_epi64(half, half) : half));
}
// The low bytes of 32 numbers from -128 to 255, those of each register in -128..127 or in 0..255.
SIMD_INLINE __m256i LowBytes(const Ints (&v)[4]) {
  const __m256i low = _mm256_set1_epi32(0xFF);
  const __m256i a = _mm256_packus_epi32(_mm256_and_si256(v[0], low), _mm256_and_si256(v[1], low));
  const __m256i b = _mm256_packus_epi32(_mm256_and_si256(v[2], low), _mm256_and_si256(v[3], low));
  return _mm256_permutevar8x32_epi32(_mm256_packus_epi16(a, b),
                                     _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

// Packs a group's codes, of kBits each, and stores them.
template <int kBits>
SIMD_INLINE void StoreCodes(const Ints (&v)[4], std::byte* to) {
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const __m256i a = _mm256_or_si256(v[0], _mm256_slli_epi32(v[2], 4));
  const __m256i b = _mm256_or_si256(v[1], _mm256_slli_epi32(v[3], 4));
  if constexpr (kBits == 4) {
    const __m256i shorts = _mm256_packus_epi32(a, b);
    const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(shorts, shorts), order);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(bytes));
  } else {
    const __m256i four = _mm256_or_si256(a, _mm256_slli_epi32(b, 2));
    const __m256i shorts = _mm256_packus_epi32(four, four);
    const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(shorts, shorts), order);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(bytes));
  }
}

#include "kernels/kv_codec_quant_simd.inc"

}  // namespace

const KvQuantTarget kKvQuantAvx2 = TargetNamed("avx2");

}  // namespace penstock::kernels
