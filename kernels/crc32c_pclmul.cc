// SPDX-License-Identifier: Apache-2.0
// kernels/crc32c.h with carry-less multiplications, in registers of 16 bytes.
#include "kernels/crc32c_targets.h"
#include "kernels/simd.h"

#define SIMD_TARGET "pclmul,sse4.2"

namespace penstock::kernels {
namespace {

using Vector = __m128i;
constexpr std::size_t kWidth = 16;
constexpr std::size_t kSums = 4;

SIMD_INLINE Vector Zero() { return _mm_setzero_si128(); }
SIMD_INLINE Vector Load(const std::byte* from) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
}
SIMD_INLINE void Store(std::byte* to, Vector v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), v);
}
SIMD_INLINE void Stream(std::byte* to, Vector v) {
  _mm_stream_si128(reinterpret_cast<__m128i*>(to), v);
}
SIMD_INLINE Vector Xor(Vector a, Vector b) { return _mm_xor_si128(a, b); }
SIMD_INLINE Vector Pin(Vector v) {
  asm volatile("" : "+x"(v));
  return v;
}
SIMD_INLINE Vector FromState(std::uint32_t state) {
  return _mm_cvtsi32_si128(static_cast<int>(state));
}
SIMD_INLINE Vector By(Crc32cFactor factor) {
  return _mm_set_epi64x(static_cast<std::int64_t>(factor.second),
                        static_cast<std::int64_t>(factor.first));
}
SIMD_INLINE Vector Fold(Vector v, Vector factor, Vector next) {
  return Xor(Xor(_mm_clmulepi64_si128(v, factor, 0x00), _mm_clmulepi64_si128(v, factor, 0x11)),
             next);
}
SIMD_INLINE __m128i ToLane(Vector v) { return v; }

#include "kernels/crc32c_simd.inc"

}  // namespace

const Crc32cTarget kCrc32cPclmulOneStream = {"pclmul_one_stream", CrcSimd<Walk::kOneStream>,
                                             CopySimd<Walk::kOneStream>};
const Crc32cTarget kCrc32cPclmul = {"pclmul", CrcSimd<Walk::kTwoStreams>,
                                    CopySimd<Walk::kTwoStreams>};

}  // namespace penstock::kernels
