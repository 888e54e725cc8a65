// SPDX-License-Identifier: Apache-2.0
// kernels/kv_codec_ans.h with AVX2, 8 states at a time. Encoding has nothing that AVX2 does better
// than the plain loop, whose states are independent of each other.
#include <array>

#include "kernels/kv_codec_ans_targets.h"
#include "kernels/simd.h"

#define SIMD_TARGET "avx2,fma,f16c,popcnt"

namespace penstock::kernels {
namespace {

constexpr std::ptrdiff_t kLoadBytes = 64;  // Four loads of 8 words, the last up to 24 words on.

// By which of 8 states need a word: the number of the word for each.
constexpr std::array<std::array<std::uint8_t, 8>, 256> kWordOf = [] {
  std::array<std::array<std::uint8_t, 8>, 256> all{};
  for (std::size_t empty = 0; empty < all.size(); ++empty) {
    std::uint8_t next = 0;
    for (std::size_t lane = 0; lane < 8; ++lane) {
      if ((empty >> lane & 1) != 0) all[empty][lane] = next++;
    }
  }
  return all;
}();

struct Step {
  __m256i x, code;
  const std::byte* in;
};

SIMD_INLINE Step DecodeEight(const int* entries, const std::uint8_t* classes, __m256i x,
                             const std::byte* in) {
  const __m256i mask = _mm256_set1_epi32((1 << kAnsBits) - 1);
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(classes));
  const __m256i table = _mm256_slli_epi32(_mm256_cvtepu8_epi32(bytes), kAnsBits);
  const __m256i at = _mm256_or_si256(table, _mm256_and_si256(x, mask));
  const __m256i entry = _mm256_i32gather_epi32(entries, at, 4);
  const __m256i frequency = _mm256_and_si256(entry, _mm256_set1_epi32(2047));
  const __m256i beyond = _mm256_and_si256(_mm256_srli_epi32(entry, 11), mask);
  x = _mm256_add_epi32(_mm256_mullo_epi32(frequency, _mm256_srli_epi32(x, kAnsBits)), beyond);
  const __m256i empty = _mm256_cmpeq_epi32(_mm256_srli_epi32(x, 16), _mm256_setzero_si256());
  const auto which = static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(empty)));
  const __m256i words =
      _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in)));
  const __m256i order = _mm256_cvtepu8_epi32(
      _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kWordOf[which].data())));
  const __m256i filled =
      _mm256_or_si256(_mm256_slli_epi32(x, 16), _mm256_permutevar8x32_epi32(words, order));
  return {_mm256_blendv_epi8(x, filled, empty),
          _mm256_sub_epi32(_mm256_srli_epi32(entry, 21), _mm256_set1_epi32(128)),
          in + 2 * _mm_popcnt_u32(which)};
}

SIMD_CALL const std::byte* DecodeRows(const KvAnsTables& tables, const KvAnsRows& rows,
                                      KvAnsStates& states, const std::byte* in,
                                      const std::byte* end, std::int16_t* codes) {
  const auto* const entries = reinterpret_cast<const int*>(tables.decode.data());
  auto* const parts = reinterpret_cast<__m256i*>(states.data());
  for (std::size_t row = 0; row < rows.rows; ++row, codes += rows.dim) {
    for (std::size_t c = 0; c < rows.dim; c += kAnsLanes) {
      if (end - in < kLoadBytes) {
        in = DecodeAnsGroup(tables, rows, c, states, in, end, codes);
        if (in == nullptr) return nullptr;
        continue;
      }
      SIMD_UNROLL for (std::size_t p = 0; p < 4; p += 2) {
        const std::size_t at = c + 8 * p;
        const Step first =
            DecodeEight(entries, rows.classes + at, _mm256_loadu_si256(parts + p), in);
        const Step second = DecodeEight(entries, rows.classes + at + 8,
                                        _mm256_loadu_si256(parts + p + 1), first.in);
        _mm256_storeu_si256(parts + p, first.x);
        _mm256_storeu_si256(parts + p + 1, second.x);
        in = second.in;
        const __m256i packed =
            _mm256_permute4x64_epi64(_mm256_packs_epi32(first.code, second.code), 0xD8);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + at), packed);
      }
    }
  }
  return in;
}

std::byte* Encode(const KvAnsTables& tables, const KvAnsRows& rows, const std::int16_t* codes,
                  KvAnsStates& states, std::byte* end) {
  return kKvAnsScalar.encode(tables, rows, codes, states, end);
}

const std::byte* Decode(const KvAnsTables& tables, const KvAnsRows& rows, KvAnsStates& states,
                        const std::byte* in, const std::byte* end, std::int16_t* codes) {
  const auto run = rows.dim % kAnsLanes == 0 ? DecodeRows : kKvAnsScalar.decode;
  return run(tables, rows, states, in, end, codes);
}

}  // namespace

const KvAnsTarget kKvAnsAvx2 = {"avx2", Encode, Decode};

}  // namespace penstock::kernels
