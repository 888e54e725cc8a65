// SPDX-License-Identifier: Apache-2.0
#include <bit>
#include <utility>

#include "kernels/linear_targets.h"
#include "kernels/packed_layout.h"
#include "kernels/simd.h"

#define SIMD_TARGET "avx2,fma,f16c"

namespace penstock::kernels {
namespace {

using VF = __m256;
using VI = __m256i;
constexpr std::int32_t kLanes = 8;
constexpr std::int32_t kDirectRows = 2;
constexpr std::int32_t kFloatTileRows = 3;  // Times four partial sums: 12 of 16 registers.
constexpr bool kSignedBytes = true;
// Two registers of weight rows each, and sums in 16 bits and float: 12 of 16 registers. The sums in
// 32 bits are touched once in a while, and may wait in memory.
constexpr std::int32_t TileRows(ProductKind) { return 3; }

SIMD_INLINE VF SetF(float f) { return _mm256_set1_ps(f); }
SIMD_INLINE VI SetI(std::int32_t i) { return _mm256_set1_epi32(i); }
SIMD_INLINE VI Broadcast(const void* p) {
  std::int32_t word;
  __builtin_memcpy(&word, p, sizeof(word));
  return _mm256_set1_epi32(word);
}
SIMD_INLINE VF BroadcastF(const void* p) { return _mm256_castsi256_ps(Broadcast(p)); }
SIMD_INLINE VF Add(VF a, VF b) { return _mm256_add_ps(a, b); }
SIMD_INLINE VF Mul(VF a, VF b) { return _mm256_mul_ps(a, b); }
SIMD_INLINE VF Fma(VF a, VF b, VF c) { return _mm256_fmadd_ps(a, b, c); }
SIMD_INLINE VF Negate(VF a) { return _mm256_xor_ps(a, _mm256_set1_ps(-0.0f)); }
SIMD_INLINE VF AsFloat(VI a) { return _mm256_castsi256_ps(a); }
SIMD_INLINE VF ToFloat(VI a) { return _mm256_cvtepi32_ps(a); }

SIMD_INLINE VF LoadF(const float* p) { return _mm256_loadu_ps(p); }
SIMD_INLINE void StoreF(float* p, VF a) { _mm256_storeu_ps(p, a); }
SIMD_INLINE VI LoadBytes(const std::byte* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
SIMD_INLINE void StoreBytes(std::byte* p, VI a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a);
}
SIMD_INLINE __m128i LoadSixteen(const std::byte* p) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
}
SIMD_INLINE __m128i LoadEight(const std::byte* p) {
  return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
}
SIMD_INLINE VF LoadF16(const std::byte* p) { return _mm256_cvtph_ps(LoadSixteen(p)); }
SIMD_INLINE VF LoadBF16(const std::byte* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(LoadSixteen(p)), 16));
}
SIMD_INLINE VI LoadU8(const std::byte* p) { return _mm256_cvtepu8_epi32(LoadEight(p)); }
SIMD_INLINE VI LoadS8(const std::byte* p) { return _mm256_cvtepi8_epi32(LoadEight(p)); }
template <WeightFormat kFormat>
SIMD_INLINE VF LoadWeights(const std::byte* p) {
  if constexpr (kFormat == WeightFormat::kF32) {
    return _mm256_castsi256_ps(LoadBytes(p));
  } else if constexpr (kFormat == WeightFormat::kF16) {
    return LoadF16(p);
  } else {
    return LoadBF16(p);
  }
}

// The first lanes only; the others load as 0, and are not touched in memory.
using LaneMask = __m256i;
SIMD_INLINE LaneMask MaskOf(std::int32_t lanes) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(lanes), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
SIMD_INLINE VF LoadLanes(const float* p, LaneMask mask) { return _mm256_maskload_ps(p, mask); }
SIMD_INLINE void StoreLanes(float* p, VF a, LaneMask mask) { _mm256_maskstore_ps(p, mask, a); }

// Masks are bytes for levels, and also hold for 32-bit lanes below 256.
SIMD_INLINE VI And(VI a, int mask) {
  return _mm256_and_si256(a, _mm256_set1_epi8(static_cast<char>(mask)));
}
// a | (b & mask)
SIMD_INLINE VI OrMasked(VI a, VI b, int mask) { return _mm256_or_si256(a, And(b, mask)); }
template <int kBits>
SIMD_INLINE VI ShiftRight16(VI a) {
  return _mm256_srli_epi16(a, kBits);
}
template <int kBits>
SIMD_INLINE VI ShiftLeft16(VI a) {
  return kBits == 0 ? a : _mm256_slli_epi16(a, kBits);
}
template <int kBits>
SIMD_INLINE VI ShiftRight32(VI a) {
  return _mm256_srli_epi32(a, kBits);
}

// Pairs of products in 16 bits, added there while they fit, then in pairs to 32 bits.
template <int kBits, bool kStart, bool kFlush>
SIMD_INLINE void DotQuad(VI level, VI four, VI& sum16, VI& i) {
  const VI ones = _mm256_set1_epi16(1);
  if constexpr (kBits == 8) {
    // |level| times q with the level's sign: 2 * 128 * 127 is below 2^15.
    const VI centred = _mm256_xor_si256(level, _mm256_set1_epi8(-128));
    const VI pairs =
        _mm256_maddubs_epi16(_mm256_abs_epi8(centred), _mm256_sign_epi8(four, centred));
    i = _mm256_add_epi32(i, _mm256_madd_epi16(pairs, ones));
  } else {
    const VI pairs = _mm256_maddubs_epi16(level, four);
    sum16 = kStart ? pairs : _mm256_add_epi16(sum16, pairs);
    if constexpr (kFlush) i = _mm256_add_epi32(i, _mm256_madd_epi16(sum16, ones));
  }
}

#include "kernels/linear_simd.inc"

}  // namespace

void MultiplyPanelsAvx2(const PackedMatrix& w, const Activations& x, std::int32_t rows,
                        std::int32_t panel_begin, std::int32_t panel_end, float* y,
                        std::int64_t y_stride) {
  MultiplyAny({w, x, rows, panel_begin, panel_end, y, y_stride});
}

}  // namespace penstock::kernels
