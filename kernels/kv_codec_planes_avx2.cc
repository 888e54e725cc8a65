// SPDX-License-Identifier: Apache-2.0
// kernels/kv_codec_planes.h with AVX2, a chunk of 32 values at a time; the last, shorter one is the
// scalar target's.
#include "kernels/kv_codec_planes_targets.h"
#include "kernels/simd.h"

#define SIMD_TARGET "avx2"

namespace penstock::kernels {
namespace {

SIMD_INLINE __m256i Load32(const void* from) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}
SIMD_INLINE void Store32(void* to, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(to), v); }
SIMD_INLINE __m256i All(int byte) { return _mm256_set1_epi8(static_cast<char>(byte)); }
// Of each byte the bits above `count`, moved down, and of those the ones in `mask`.
template <int kCount>
SIMD_INLINE __m256i Down(__m256i v, int mask) {
  return _mm256_and_si256(_mm256_srli_epi16(v, kCount), All(mask));
}
template <int kCount>
SIMD_INLINE __m256i Up(__m256i v, int mask) {
  return _mm256_and_si256(_mm256_slli_epi16(v, kCount), All(mask));
}

// The low and the high bytes of 32 values.
struct Halves {
  __m256i low, high;
};
SIMD_INLINE Halves LoadChunk(const std::byte* x) {
  const __m256i a = Load32(x);
  const __m256i b = Load32(x + 32);
  const __m256i byte = _mm256_set1_epi16(0xFF);
  const __m256i low = _mm256_packus_epi16(_mm256_and_si256(a, byte), _mm256_and_si256(b, byte));
  const __m256i high = _mm256_packus_epi16(_mm256_srli_epi16(a, 8), _mm256_srli_epi16(b, 8));
  return {_mm256_permute4x64_epi64(low, 0xD8), _mm256_permute4x64_epi64(high, 0xD8)};
}
SIMD_INLINE void StoreChunk(Halves v, std::byte* x) {
  const __m256i low = _mm256_permute4x64_epi64(v.low, 0xD8);
  const __m256i high = _mm256_permute4x64_epi64(v.high, 0xD8);
  Store32(x, _mm256_unpacklo_epi8(low, high));
  Store32(x + 32, _mm256_unpackhi_epi8(low, high));
}

// Writes 32 codes of 4 bits.
SIMD_INLINE void StoreNibbles(__m256i codes, std::byte* to) {
  const __m128i high = _mm_slli_epi16(_mm256_extracti128_si256(codes, 1), 4);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                   _mm_or_si128(_mm256_castsi256_si128(codes), high));
}
SIMD_INLINE __m256i LoadNibbles(const std::byte* from) {
  const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  const __m256i both =
      _mm256_inserti128_si256(_mm256_castsi128_si256(codes), _mm_srli_epi16(codes, 4), 1);
  return _mm256_and_si256(both, All(15));
}

// Writes 32 fields of 6 bits: the last 8 of them in the upper bits of the others.
SIMD_INLINE void StoreSixes(__m256i fields, std::byte* to) {
  const __m256i last = _mm256_permute4x64_epi64(fields, 0xFF);
  const __m256i tops = _mm256_srlv_epi64(last, _mm256_setr_epi64x(0, 2, 4, 0));
  const __m256i bytes = _mm256_or_si256(fields, Up<6>(tops, 0xC0));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(bytes));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to + 16), _mm256_extracti128_si256(bytes, 1));
}
SIMD_INLINE __m256i LoadSixes(const std::byte* from) {
  const __m128i first = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  const __m128i third = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + 16));
  const __m256i bytes = _mm256_inserti128_si256(_mm256_castsi128_si256(first), third, 1);
  const __m256i tops = _mm256_sllv_epi64(Down<6>(bytes, 3), _mm256_setr_epi64x(0, 2, 4, 0));
  const __m128i two = _mm_or_si128(_mm256_castsi256_si128(tops), _mm256_extracti128_si256(tops, 1));
  const __m256i last = _mm256_broadcastq_epi64(_mm_or_si128(two, _mm_unpackhi_epi64(two, two)));
  return _mm256_blend_epi32(_mm256_and_si256(bytes, All(63)), last, 0xC0);
}

template <KvDtype kDtype>
SIMD_CALL std::size_t Split(const KvExponents& e, const std::byte* x, std::byte* rest,
                            std::byte* codes, std::byte* escapes) {
  constexpr bool kBF16 = kDtype == KvDtype::kBF16;
  constexpr int kTop = KvExponentCodes(kDtype) - 1;
  std::size_t escaped = 0;
  std::size_t begin = 0;
  std::size_t column = 0;
  for (; e.n - begin >= kKvChunkValues; begin += kKvChunkValues) {
    const Halves v = LoadChunk(x + 2 * begin);
    const __m256i exponents =
        kBF16 ? _mm256_or_si256(Up<1>(v.high, 0xFE), Down<7>(v.low, 1)) : Down<2>(v.high, 31);
    const __m256i above = _mm256_sub_epi8(exponents, Load32(e.firsts + column));
    const __m256i coded = _mm256_cmpeq_epi8(_mm256_min_epu8(above, All(kTop)), above);
    const __m256i code = _mm256_and_si256(coded, _mm256_sub_epi8(above, All(-1)));
    if constexpr (kBF16) {
      Store32(rest + begin, _mm256_or_si256(_mm256_and_si256(v.low, All(0x7F)),
                                            _mm256_and_si256(v.high, All(0x80))));
      StoreNibbles(code, codes + KvCodeBytes(kDtype, begin));
    } else {
      Store32(rest + begin, v.low);
      const __m256i high = _mm256_or_si256(_mm256_and_si256(v.high, All(3)), Down<5>(v.high, 4));
      StoreSixes(_mm256_or_si256(_mm256_slli_epi16(code, 3), high),
                 codes + KvCodeBytes(kDtype, begin));
    }
    std::uint32_t lost = ~static_cast<std::uint32_t>(_mm256_movemask_epi8(coded));
    if (lost != 0) {
      alignas(32) std::byte bytes[kKvChunkValues];
      Store32(bytes, exponents);
      for (; lost != 0; lost &= lost - 1) escapes[escaped++] = bytes[__builtin_ctz(lost)];
    }
    column += kKvChunkValues;
    if (column == e.period) column = 0;
  }
  const KvExponents tail = {kDtype, e.n - begin, e.firsts + column, kKvChunkValues};
  return escaped + kKvPlanesScalar.split(tail, x + 2 * begin, rest + begin,
                                         codes + KvCodeBytes(kDtype, begin), escapes + escaped);
}

template <KvDtype kDtype>
SIMD_CALL std::size_t Join(const KvExponents& e, const std::byte* rest, const std::byte* codes,
                           const std::byte* escapes, std::size_t escapes_bytes, std::byte* x) {
  constexpr bool kBF16 = kDtype == KvDtype::kBF16;
  std::size_t used = 0;
  std::size_t begin = 0;
  std::size_t column = 0;
  for (; e.n - begin >= kKvChunkValues; begin += kKvChunkValues) {
    const std::byte* const from = codes + KvCodeBytes(kDtype, begin);
    const __m256i fields = kBF16 ? LoadNibbles(from) : LoadSixes(from);
    const __m256i code = kBF16 ? fields : Down<3>(fields, 7);
    __m256i exponents = _mm256_add_epi8(Load32(e.firsts + column), _mm256_add_epi8(code, All(-1)));
    auto lost = static_cast<std::uint32_t>(
        _mm256_movemask_epi8(_mm256_cmpeq_epi8(code, _mm256_setzero_si256())));
    if (lost != 0) {
      if (static_cast<std::size_t>(__builtin_popcount(lost)) > escapes_bytes - used) {
        return escapes_bytes + 1;
      }
      alignas(32) std::byte bytes[kKvChunkValues];
      Store32(bytes, exponents);
      for (; lost != 0; lost &= lost - 1) bytes[__builtin_ctz(lost)] = escapes[used++];
      exponents = Load32(bytes);
    }
    const __m256i low = Load32(rest + begin);
    if constexpr (kBF16) {
      const __m256i high = _mm256_and_si256(low, All(0x80));
      StoreChunk({_mm256_or_si256(_mm256_and_si256(low, All(0x7F)), Up<7>(exponents, 0x80)),
                  _mm256_or_si256(high, Down<1>(exponents, 0x7F))},
                 x + 2 * begin);
    } else {
      const __m256i high = _mm256_or_si256(_mm256_and_si256(fields, All(3)), Up<5>(fields, 0x80));
      StoreChunk({low, _mm256_or_si256(high, Up<2>(exponents, 0x7C))}, x + 2 * begin);
    }
    column += kKvChunkValues;
    if (column == e.period) column = 0;
  }
  const KvExponents tail = {kDtype, e.n - begin, e.firsts + column, kKvChunkValues};
  // Of too few escapes it says one more than were left, which makes one more than there were.
  return used + kKvPlanesScalar.join(tail, rest + begin, codes + KvCodeBytes(kDtype, begin),
                                     escapes + used, escapes_bytes - used, x + 2 * begin);
}

std::size_t SplitAvx2(const KvExponents& e, const std::byte* x, std::byte* rest, std::byte* codes,
                      std::byte* escapes) {
  return e.dtype == KvDtype::kBF16 ? Split<KvDtype::kBF16>(e, x, rest, codes, escapes)
                                   : Split<KvDtype::kF16>(e, x, rest, codes, escapes);
}

std::size_t JoinAvx2(const KvExponents& e, const std::byte* rest, const std::byte* codes,
                     const std::byte* escapes, std::size_t escapes_bytes, std::byte* x) {
  return e.dtype == KvDtype::kBF16 ? Join<KvDtype::kBF16>(e, rest, codes, escapes, escapes_bytes, x)
                                   : Join<KvDtype::kF16>(e, rest, codes, escapes, escapes_bytes, x);
}

}  // namespace

const KvPlanesTarget kKvPlanesAvx2 = {"avx2", SplitAvx2, JoinAvx2};

}  // namespace penstock::kernels
