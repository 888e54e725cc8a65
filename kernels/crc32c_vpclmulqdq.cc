// SPDX-License-Identifier: Apache-2.0
// kernels/crc32c.h with carry-less multiplications of four lanes at once, in AVX-512 registers.
#include "kernels/crc32c_targets.h"
#include "kernels/simd.h"

#define SIMD_TARGET "avx512f,avx512bw,avx512dq,avx512vl,vpclmulqdq,pclmul,sse4.2"

namespace penstock::kernels {
namespace {

using Vector = __m512i;
constexpr std::size_t kWidth = 64;
constexpr std::size_t kSums = 2;

SIMD_INLINE Vector Zero() { return _mm512_setzero_si512(); }
SIMD_INLINE Vector Load(const std::byte* from) { return _mm512_loadu_si512(from); }
SIMD_INLINE void Store(std::byte* to, Vector v) { _mm512_storeu_si512(to, v); }
SIMD_INLINE void Stream(std::byte* to, Vector v) {
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), v);
}
SIMD_INLINE Vector Xor(Vector a, Vector b) { return _mm512_xor_si512(a, b); }
SIMD_INLINE Vector Pin(Vector v) {
  asm volatile("" : "+v"(v));
  return v;
}
SIMD_INLINE Vector FromState(std::uint32_t state) {
  return _mm512_zextsi128_si512(_mm_cvtsi32_si128(static_cast<int>(state)));
}
SIMD_INLINE Vector By(Crc32cFactor factor) {
  return _mm512_broadcast_i64x2(_mm_set_epi64x(static_cast<std::int64_t>(factor.second),
                                               static_cast<std::int64_t>(factor.first)));
}
SIMD_INLINE Vector Fold(Vector v, Vector factor, Vector next) {
  constexpr int kXor3 = 0x96;
  return _mm512_ternarylogic_epi64(_mm512_clmulepi64_epi128(v, factor, 0x00),
                                   _mm512_clmulepi64_epi128(v, factor, 0x11), next, kXor3);
}
SIMD_INLINE __m128i ToLane(Vector v) {
  constexpr Crc32cFactor k48 = Crc32cOver(48), k32 = Crc32cOver(32), k16 = Crc32cOver(16);
  // The last lane stays: nothing is behind it.
  const Vector over = _mm512_set_epi64(
      0, 0, static_cast<std::int64_t>(k16.second), static_cast<std::int64_t>(k16.first),
      static_cast<std::int64_t>(k32.second), static_cast<std::int64_t>(k32.first),
      static_cast<std::int64_t>(k48.second), static_cast<std::int64_t>(k48.first));
  const Vector last = _mm512_maskz_mov_epi64(0xc0, v);
  const Vector moved = Fold(v, over, last);
  const __m256i half =
      _mm256_xor_si256(_mm512_castsi512_si256(moved), _mm512_extracti64x4_epi64(moved, 1));
  return _mm_xor_si128(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

#include "kernels/crc32c_simd.inc"

}  // namespace

const Crc32cTarget kCrc32cVpclmulqdqOneStream = {"vpclmulqdq_one_stream", CrcSimd<Walk::kOneStream>,
                                                 CopySimd<Walk::kOneStream>};
const Crc32cTarget kCrc32cVpclmulqdq = {"vpclmulqdq", CrcSimd<Walk::kTwoStreams>,
                                        CopySimd<Walk::kTwoStreams>};

}  // namespace penstock::kernels
