// SPDX-License-Identifier: Apache-2.0

#include <bit>
#include <utility>

#include "kernels/linear_targets.h"
#include "kernels/packed_layout.h"
#include "kernels/simd.h"

#define SIMD_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c"

namespace penstock::kernels {
namespace {

#include "kernels/linear_simd_avx512.inc"

constexpr std::int32_t kDirectRows = 4;
constexpr bool kSignedBytes = false;
// Two registers of weight rows each: 24 registers of i and acc, or of i, t and acc.
constexpr std::int32_t TileRows(ProductKind kind) {
  return kind == ProductKind::kHalves || kind == ProductKind::kHalvesMin ? 4 : 6;
}

// Unsigned levels times signed q, four products straight into 32 bits.
template <int kBits, bool kStart, bool kFlush>
SIMD_INLINE void DotQuad(VI level, VI four, VI&, VI& i) {
  i = _mm512_dpbusd_epi32(i, level, four);
}

#include "kernels/linear_simd.inc"

}  // namespace

void MultiplyPanelsAvx512Vnni(const PackedMatrix& w, const Activations& x, std::int32_t rows,
                              std::int32_t panel_begin, std::int32_t panel_end, float* y,
                              std::int64_t y_stride) {
  MultiplyAny({w, x, rows, panel_begin, panel_end, y, y_stride});
}

}  // namespace penstock::kernels
