// SPDX-License-Identifier: Apache-2.0
// kernels/elementwise.h with AVX-512. What is left at the end of a row goes through masks.
#include <bit>
#include <cstring>

#include "kernels/elementwise_targets.h"
#include "kernels/exp_avx512.h"
#include "kernels/simd.h"

#define SIMD_TARGET "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"

namespace penstock::kernels {
namespace {

constexpr std::int32_t kLanes = 16;
using Floats = __m512;
using Halves = __m256i;

SIMD_INLINE __mmask16 FirstLanes(std::int32_t count) {
  return count < 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
}

SIMD_INLINE Floats All(float v) { return _mm512_set1_ps(v); }
SIMD_INLINE Floats Load(const float* from) { return _mm512_loadu_ps(from); }
SIMD_INLINE void Store(float* to, Floats v) { _mm512_storeu_ps(to, v); }
SIMD_INLINE Floats LoadFirst(const float* from, std::int32_t count) {
  return _mm512_maskz_loadu_ps(FirstLanes(count), from);
}
SIMD_INLINE void StoreFirst(float* to, std::int32_t count, Floats v) {
  _mm512_mask_storeu_ps(to, FirstLanes(count), v);
}

SIMD_INLINE Halves LoadHalves(const std::byte* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}
SIMD_INLINE void StoreHalves(std::byte* to, Halves v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), v);
}
SIMD_INLINE Halves LoadHalvesFirst(const std::byte* from, std::int32_t count) {
  return _mm256_maskz_loadu_epi16(FirstLanes(count), from);
}
SIMD_INLINE void StoreHalvesFirst(std::byte* to, std::int32_t count, Halves v) {
  _mm256_mask_storeu_epi16(to, FirstLanes(count), v);
}

SIMD_INLINE Floats Fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
SIMD_INLINE Floats FmaAddSub(Floats a, Floats b, Floats c) { return _mm512_fmaddsub_ps(a, b, c); }
SIMD_INLINE Floats SwapPairs(Floats v) { return _mm512_permute_ps(v, 0xB1); }
SIMD_INLINE Floats Twice(Floats v) {
  return _mm512_permutexvar_ps(_mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7),
                               v);
}
SIMD_INLINE __m256 SumParts(const Floats (&parts)[1]) {
  return _mm512_castps512_ps256(parts[0]) + _mm512_extractf32x8_ps(parts[0], 1);
}

SIMD_INLINE Halves ToF16(Floats v) { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }
SIMD_INLINE Floats FromF16(Halves v) { return _mm512_cvtph_ps(v); }
SIMD_INLINE Floats FromBF16(Halves v) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}

#include "kernels/elementwise_simd.inc"

}  // namespace

const ElementwiseTarget kElementwiseAvx512 = TargetNamed("avx512");

}  // namespace penstock::kernels
