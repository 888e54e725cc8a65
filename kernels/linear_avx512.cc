// SPDX-License-Identifier: Apache-2.0
#include <bit>
#include <utility>

#include "kernels/linear_targets.h"
#include "kernels/packed_layout.h"
#include "kernels/simd.h"

#define SIMD_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"

namespace penstock::kernels {
namespace {

#include "kernels/linear_simd_avx512.inc"

constexpr std::int32_t kDirectRows = 4;
constexpr bool kSignedBytes = true;
// Two registers of weight rows each, and three sums (16 bits, 32 bits, float): 24 registers.
constexpr std::int32_t TileRows(ProductKind) { return 4; }

// Pairs of products in 16 bits, added there while they fit, then in pairs to 32 bits.
template <int kBits, bool kStart, bool kFlush>
SIMD_INLINE void DotQuad(VI level, VI four, VI& sum16, VI& i) {
  const VI ones = _mm512_set1_epi16(1);
  if constexpr (kBits == 8) {
    // |level| times q with the level's sign: 2 * 128 * 127 is below 2^15.
    const VI centred = _mm512_xor_si512(level, _mm512_set1_epi8(-128));
    const __mmask64 negative = _mm512_movepi8_mask(centred);
    const VI signed_four = _mm512_mask_sub_epi8(four, negative, _mm512_setzero_si512(), four);
    const VI pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(centred), signed_four);
    i = _mm512_add_epi32(i, _mm512_madd_epi16(pairs, ones));
  } else {
    const VI pairs = _mm512_maddubs_epi16(level, four);
    sum16 = kStart ? pairs : _mm512_add_epi16(sum16, pairs);
    if constexpr (kFlush) i = _mm512_add_epi32(i, _mm512_madd_epi16(sum16, ones));
  }
}

#include "kernels/linear_simd.inc"

}  // namespace

void MultiplyPanelsAvx512(const PackedMatrix& w, const Activations& x, std::int32_t rows,
                          std::int32_t panel_begin, std::int32_t panel_end, float* y,
                          std::int64_t y_stride) {
  MultiplyAny({w, x, rows, panel_begin, panel_end, y, y_stride});
}

}  // namespace penstock::kernels
