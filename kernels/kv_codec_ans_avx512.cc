// SPDX-License-Identifier: Apache-2.0
// kernels/kv_codec_ans.h with AVX-512: the 32 states in two registers, whose work overlaps.
#include "kernels/kv_codec_ans_targets.h"
#include "kernels/simd.h"

#define SIMD_TARGET "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,popcnt"

namespace penstock::kernels {
namespace {

constexpr std::ptrdiff_t kLoadBytes = 64;  // Words are loaded as many as there are states.

// Of 16 columns, as offsets into tables of 2^kBits entries each.
template <int kBits>
SIMD_INLINE __m512i TableOf(const std::uint8_t* classes) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(classes));
  return _mm512_slli_epi32(_mm512_cvtepu8_epi32(bytes), kBits);
}

// x / f and x % f, for f up to 2^10 and x / f below 2^22: three roundings of floats, of 2^-24 each,
// put the quotient off by less than one, and then the remainder tells.
SIMD_INLINE void Divide(__m512i x, __m512i f, __m512i* quotient, __m512i* remainder) {
  // Not x / f, which would wait for x.
  const __m512 inverse = _mm512_div_ps(_mm512_set1_ps(1), _mm512_cvtepi32_ps(f));
  const __m512 about = _mm512_mul_ps(_mm512_cvtepu32_ps(x), inverse);
  __m512i q = _mm512_cvttps_epi32(about);
  __m512i r = _mm512_sub_epi32(x, _mm512_mullo_epi32(q, f));
  const __m512i one = _mm512_set1_epi32(1);
  const __mmask16 below = _mm512_movepi32_mask(r);
  q = _mm512_mask_sub_epi32(q, below, q, one);
  r = _mm512_mask_add_epi32(r, below, r, f);
  const __mmask16 above = _mm512_cmpge_epi32_mask(r, f);
  *quotient = _mm512_mask_add_epi32(q, above, q, one);
  *remainder = _mm512_mask_sub_epi32(r, above, r, f);
}

// One register of states takes the codes of 16 columns; returns where its words begin.
SIMD_INLINE std::byte* EncodeSixteen(const std::uint32_t* entries, const std::uint8_t* classes,
                                     const std::int16_t* codes, __m512i* states, std::byte* end) {
  const __m256i shorts = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
  const __m512i code = _mm512_add_epi32(_mm512_cvtepi16_epi32(shorts), _mm512_set1_epi32(128));
  const __m512i at =
      _mm512_add_epi32(TableOf<8>(classes), _mm512_and_si512(code, _mm512_set1_epi32(255)));
  const __m512i entry = _mm512_i32gather_epi32(at, entries, 4);
  const __m512i frequency = _mm512_and_si512(entry, _mm512_set1_epi32(2047));
  __m512i x = *states;
  const __mmask16 full = _mm512_cmpge_epu32_mask(_mm512_srli_epi32(x, 32 - kAnsBits), frequency);
  const auto words = static_cast<unsigned>(_mm_popcnt_u32(full));
  end -= 2 * words;
  const __m256i low = _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(full, x));
  _mm256_mask_storeu_epi16(end, static_cast<__mmask16>((1u << words) - 1), low);
  x = _mm512_mask_srli_epi32(x, full, x, 16);
  __m512i quotient, remainder;
  Divide(x, frequency, &quotient, &remainder);
  *states = _mm512_add_epi32(_mm512_add_epi32(_mm512_slli_epi32(quotient, kAnsBits), remainder),
                             _mm512_srli_epi32(entry, 11));
  return end;
}

SIMD_CALL std::byte* EncodeRows(const KvAnsTables& tables, const KvAnsRows& rows,
                                const std::int16_t* codes, KvAnsStates& states, std::byte* end) {
  const std::uint32_t* const entries = tables.encode.data();
  __m512i low = _mm512_loadu_si512(states.data()), high = _mm512_loadu_si512(states.data() + 16);
  codes += rows.rows * rows.dim;
  for (std::size_t row = rows.rows; row-- > 0;) {
    codes -= rows.dim;
    for (std::size_t c = rows.dim; c > 0;) {
      c -= kAnsLanes;
      end = EncodeSixteen(entries, rows.classes + c + 16, codes + c + 16, &high, end);
      end = EncodeSixteen(entries, rows.classes + c, codes + c, &low, end);
    }
  }
  _mm512_storeu_si512(states.data(), low);
  _mm512_storeu_si512(states.data() + 16, high);
  return end;
}

// One register of states gives the codes of 16 columns, and which states then need a word.
SIMD_INLINE __mmask16 DecodeSixteen(const std::uint32_t* entries, const std::uint8_t* classes,
                                    __m512i* states, std::int16_t* codes) {
  const __m512i mask = _mm512_set1_epi32((1 << kAnsBits) - 1);
  const __m512i x = *states;
  const __m512i at = _mm512_or_si512(TableOf<kAnsBits>(classes), _mm512_and_si512(x, mask));
  const __m512i entry = _mm512_i32gather_epi32(at, entries, 4);
  const __m512i frequency = _mm512_and_si512(entry, _mm512_set1_epi32(2047));
  const __m512i beyond = _mm512_and_si512(_mm512_srli_epi32(entry, 11), mask);
  *states = _mm512_add_epi32(_mm512_mullo_epi32(frequency, _mm512_srli_epi32(x, kAnsBits)), beyond);
  const __m512i code = _mm512_sub_epi32(_mm512_srli_epi32(entry, 21), _mm512_set1_epi32(128));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes), _mm512_cvtepi32_epi16(code));
  return _mm512_cmplt_epu32_mask(*states, _mm512_set1_epi32(kAnsLow));
}

SIMD_INLINE const std::byte* Refill(__mmask16 empty, const std::byte* in, __m512i* states) {
  const __m512i words =
      _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(in)));
  *states = _mm512_mask_or_epi32(*states, empty, _mm512_slli_epi32(*states, 16),
                                 _mm512_maskz_expand_epi32(empty, words));
  return in + 2 * _mm_popcnt_u32(empty);
}

SIMD_CALL const std::byte* DecodeRows(const KvAnsTables& tables, const KvAnsRows& rows,
                                      KvAnsStates& states, const std::byte* in,
                                      const std::byte* end, std::int16_t* codes) {
  const std::uint32_t* const entries = tables.decode.data();
  __m512i low = _mm512_loadu_si512(states.data()), high = _mm512_loadu_si512(states.data() + 16);
  for (std::size_t row = 0; row < rows.rows; ++row, codes += rows.dim) {
    for (std::size_t c = 0; c < rows.dim; c += kAnsLanes) {
      if (end - in < kLoadBytes) {
        _mm512_storeu_si512(states.data(), low);
        _mm512_storeu_si512(states.data() + 16, high);
        in = DecodeAnsGroup(tables, rows, c, states, in, end, codes);
        if (in == nullptr) return nullptr;
        low = _mm512_loadu_si512(states.data());
        high = _mm512_loadu_si512(states.data() + 16);
        continue;
      }
      const __mmask16 low_empty = DecodeSixteen(entries, rows.classes + c, &low, codes + c);
      const __mmask16 high_empty =
          DecodeSixteen(entries, rows.classes + c + 16, &high, codes + c + 16);
      in = Refill(low_empty, in, &low);
      in = Refill(high_empty, in, &high);
    }
  }
  _mm512_storeu_si512(states.data(), low);
  _mm512_storeu_si512(states.data() + 16, high);
  return in;
}

std::byte* Encode(const KvAnsTables& tables, const KvAnsRows& rows, const std::int16_t* codes,
                  KvAnsStates& states, std::byte* end) {
  const auto run = rows.dim % kAnsLanes == 0 ? EncodeRows : kKvAnsScalar.encode;
  return run(tables, rows, codes, states, end);
}

const std::byte* Decode(const KvAnsTables& tables, const KvAnsRows& rows, KvAnsStates& states,
                        const std::byte* in, const std::byte* end, std::int16_t* codes) {
  const auto run = rows.dim % kAnsLanes == 0 ? DecodeRows : kKvAnsScalar.decode;
  return run(tables, rows, states, in, end, codes);
}

}  // namespace

const KvAnsTarget kKvAnsAvx512 = {"avx512", Encode, Decode};

}  // namespace penstock::kernels
