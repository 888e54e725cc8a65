// SPDX-License-Identifier: Apache-2.0
// kernels/elementwise.h with AVX2. What is left at the end of a row goes through masks; of 16-bit
// elements, which have none, through a copy on the stack.
#include <bit>
#include <cstring>

#include "kernels/elementwise_targets.h"
#include "kernels/exp_avx2.h"
#include "kernels/simd.h"

#define SIMD_TARGET "avx2,fma,f16c"

namespace penstock::kernels {
namespace {

constexpr std::int32_t kLanes = 8;
using Floats = __m256;
using Halves = __m128i;

alignas(64) constexpr std::int32_t kMasks[16] = {-1, -1, -1, -1, -1, -1, -1, -1};

SIMD_INLINE __m256i FirstLanes(std::int32_t count) {
  const std::int32_t lanes = count < 0 ? 0 : count;
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kMasks + 8 - lanes));
}

SIMD_INLINE Floats All(float v) { return _mm256_set1_ps(v); }
SIMD_INLINE Floats Load(const float* from) { return _mm256_loadu_ps(from); }
SIMD_INLINE void Store(float* to, Floats v) { _mm256_storeu_ps(to, v); }
SIMD_INLINE Floats LoadFirst(const float* from, std::int32_t count) {
  return _mm256_maskload_ps(from, FirstLanes(count));
}
SIMD_INLINE void StoreFirst(float* to, std::int32_t count, Floats v) {
  _mm256_maskstore_ps(to, FirstLanes(count), v);
}

SIMD_INLINE Halves LoadHalves(const std::byte* from) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
}
SIMD_INLINE void StoreHalves(std::byte* to, Halves v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), v);
}
SIMD_INLINE Halves LoadHalvesFirst(const std::byte* from, std::int32_t count) {
  std::byte rest[16] = {};
  std::memcpy(rest, from, 2 * static_cast<std::size_t>(count));
  return LoadHalves(rest);
}
SIMD_INLINE void StoreHalvesFirst(std::byte* to, std::int32_t count, Halves v) {
  std::byte rest[16];
  StoreHalves(rest, v);
  std::memcpy(to, rest, 2 * static_cast<std::size_t>(count));
}

SIMD_INLINE Floats Fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
SIMD_INLINE Floats FmaAddSub(Floats a, Floats b, Floats c) { return _mm256_fmaddsub_ps(a, b, c); }
SIMD_INLINE Floats SwapPairs(Floats v) { return _mm256_permute_ps(v, 0xB1); }
SIMD_INLINE Floats Twice(Floats v) {
  return _mm256_permutevar8x32_ps(v, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3));
}
SIMD_INLINE __m256 SumParts(const Floats (&parts)[2]) { return parts[0] + parts[1]; }

SIMD_INLINE Halves ToF16(Floats v) { return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }
SIMD_INLINE Floats FromF16(Halves v) { return _mm256_cvtph_ps(v); }
SIMD_INLINE Floats FromBF16(Halves v) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
}

#include "kernels/elementwise_simd.inc"

}  // namespace

const ElementwiseTarget kElementwiseAvx2 = TargetNamed("avx2");

}  // namespace penstock::kernels
