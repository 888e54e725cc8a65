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

constexpr std::int32_t kTileRows = 8;
constexpr bool kSignedBytes = false;

// Unsigned levels times signed q, four products straight into 32 bits.
template <int kBits, int kR, bool kStart, bool kFlush>
SIMD_INLINE void DotQuad(VI level, const std::int8_t* q, std::int64_t q_stride, VI (&)[kR],
                         VI (&i)[kR]) {
  SIMD_UNROLL for (int r = 0; r < kR; ++r) {
    i[r] = _mm512_dpbusd_epi32(i[r], level, Broadcast(q + r * q_stride));
  }
}

#include "kernels/linear_simd.inc"

}  // namespace

void MultiplyPanelsAvx512Vnni(const PackedMatrix& w, const Activations& x, std::int32_t rows,
                              std::int32_t panel_begin, std::int32_t panel_end, float* y,
                              std::int64_t y_stride) {
  MultiplyAny({w, x, rows, panel_begin, panel_end, y, y_stride});
}

}  // namespace penstock::kernels
