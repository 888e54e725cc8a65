// SPDX-License-Identifier: Apache-2.0
// kernels/attention_driver.h with AVX-512: a vector is 16 keys of one row, 16 values of one key, or
// four keys times the four partial sums of a score.
#include <algorithm>

#include "kernels/attention_dispatch.h"
#include "kernels/attention_driver.h"
#include "kernels/exp_avx512.h"
#include "kernels/simd.h"

namespace penstock::kernels {
namespace {

// Inlined, so that rows and dims are constants and sums stay in registers.
#define INLINE_AVX512 gnu::always_inline, PENSTOCK_AVX512

[[INLINE_AVX512]] inline __m512 WidenHalves(KvDtype dtype, __m256i halves) {
  if (dtype == KvDtype::kF16) return _mm512_cvtph_ps(halves);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

[[INLINE_AVX512]] inline __m512 WidenLevels(__m128i levels, float scale) {
  return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(levels)), _mm512_set1_ps(scale));
}

// 16 elements from index i on, exactly widened. `scale`: of a row of levels.
template <KvDtype dtype>
[[INLINE_AVX512]] inline __m512 Load16(const std::byte* row, float scale, std::int32_t i) {
  if constexpr (dtype == KvDtype::kF32) {
    return _mm512_loadu_ps(row + 4 * std::int64_t{i});
  } else if constexpr (dtype == KvDtype::kInt8) {
    return WidenLevels(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row + i)), scale);
  } else {
    return WidenHalves(
        dtype, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + 2 * std::int64_t{i})));
  }
}

// 8 elements, then what is of no use.
template <KvDtype dtype>
[[INLINE_AVX512]] inline __m512 Load8(const std::byte* row, float scale, std::int32_t i) {
  if constexpr (dtype == KvDtype::kF32) {
    return _mm512_maskz_loadu_ps(0xFF, row + 4 * std::int64_t{i});
  } else if constexpr (dtype == KvDtype::kInt8) {
    return WidenLevels(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(row + i)), scale);
  } else {
    const __m128i halves =
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + 2 * std::int64_t{i}));
    return WidenHalves(dtype, _mm256_zextsi128_si256(halves));
  }
}

[[INLINE_AVX512]] inline void PrefetchRow(const std::byte* row, std::int32_t row_bytes) {
  for (std::int32_t i = 0; i < row_bytes; i += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(row + i), _MM_HINT_T0);
  }
}

// What comes with `keys` rows from row `key` on.
[[INLINE_AVX512]] inline void PrefetchAhead(RowsAhead ahead, std::int32_t key, std::int32_t keys,
                                            std::int32_t offset, std::int32_t row_bytes) {
  const std::int32_t end = ahead.Before(key + keys);
  for (std::int32_t i = ahead.Before(key); i < end; ++i) {
    PrefetchRow(ahead.rows[i] + offset, row_bytes);
  }
}

// The adds of l: 16 sums in pairs at distance 8, 4, 2, 1.
[[INLINE_AVX512]] inline float AddInPairs(__m512 v) {
  __m256 a = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  b = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(b, _mm_shuffle_ps(b, b, 1)));
}

[[PENSTOCK_AVX512]] void Scale(const float* from, std::int32_t n, float factor, float* to) {
  for (std::int32_t i = 0; i < n; i += 8) {
    _mm256_storeu_ps(to + i, _mm256_mul_ps(_mm256_loadu_ps(from + i), _mm256_set1_ps(factor)));
  }
}

// ---- Direct: scores. A chunk is four elements of each of four keys, so its 16 lanes are the four
// partial sums of four keys.

// The upper half of `v`, by way of memory: a shuffle would take the port that the others wait for.
[[INLINE_AVX512]] inline __m256i UpperHalf(__m512i v) {
  __m512i stored;
  asm("vmovdqa64 %1, %0" : "=m"(stored) : "v"(v));  // Compilers make a shuffle of plain code.
  return reinterpret_cast<const __m256i*>(&stored)[1];
}

// Four rows of 32 16-bit elements (or `elements` of them, then zeros) to eight chunks.
template <KvDtype dtype>
[[INLINE_AVX512]] inline void LoadChunks16Bit(const std::byte* const* rows, std::int32_t stride,
                                              std::int32_t d, __mmask32 mask, __m512* chunks) {
  __m512i row[4];
  SIMD_UNROLL for (int i = 0; i < 4; ++i) {
    row[i] = _mm512_maskz_loadu_epi16(mask, rows[i * stride] + 2 * std::int64_t{d});
  }
  const __m512i even_ab = _mm512_unpacklo_epi64(row[0], row[1]);  // Elements 0-3 of each 8.
  const __m512i even_cd = _mm512_unpacklo_epi64(row[2], row[3]);
  const __m512i odd_ab = _mm512_unpackhi_epi64(row[0], row[1]);
  const __m512i odd_cd = _mm512_unpackhi_epi64(row[2], row[3]);
  const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
  const __m512i high = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
  const __m512i pairs[4] = {_mm512_permutex2var_epi64(even_ab, low, even_cd),   // Chunks 0, 2.
                            _mm512_permutex2var_epi64(odd_ab, low, odd_cd),     // 1, 3.
                            _mm512_permutex2var_epi64(even_ab, high, even_cd),  // 4, 6.
                            _mm512_permutex2var_epi64(odd_ab, high, odd_cd)};   // 5, 7.
  SIMD_UNROLL for (int i = 0; i < 4; ++i) {
    const int chunk = i / 2 * 4 + i % 2;
    chunks[chunk] = WidenHalves(dtype, _mm512_castsi512_si256(pairs[i]));
    chunks[chunk + 2] = WidenHalves(dtype, UpperHalf(pairs[i]));
  }
}

// Four rows of 16 floats (or fewer, then zeros) to four chunks.
[[INLINE_AVX512]] inline void LoadChunksFloat(const std::byte* const* rows, std::int32_t stride,
                                              std::int32_t d, __mmask16 mask, __m512* chunks) {
  __m512 row[4];
  SIMD_UNROLL for (int i = 0; i < 4; ++i) {
    row[i] = _mm512_maskz_loadu_ps(mask, rows[i * stride] + 4 * std::int64_t{d});
  }
  const __m512 ab_low = _mm512_shuffle_f32x4(row[0], row[1], 0x44);
  const __m512 ab_high = _mm512_shuffle_f32x4(row[0], row[1], 0xEE);
  const __m512 cd_low = _mm512_shuffle_f32x4(row[2], row[3], 0x44);
  const __m512 cd_high = _mm512_shuffle_f32x4(row[2], row[3], 0xEE);
  chunks[0] = _mm512_shuffle_f32x4(ab_low, cd_low, 0x88);
  chunks[1] = _mm512_shuffle_f32x4(ab_low, cd_low, 0xDD);
  chunks[2] = _mm512_shuffle_f32x4(ab_high, cd_high, 0x88);
  chunks[3] = _mm512_shuffle_f32x4(ab_high, cd_high, 0xDD);
}

// The same element of four keys' scales, and what a biased level is above it, for all 16 lanes of a
// chunk. A level l comes as the float 32,768 + 128 + l, whose bits are those of 32,768 with the byte
// l + 128 in the second place; and as products of 17 bits and F16s are exact in float, so is
// fma(32,896 + l, scale, -32,896 * scale) = l * scale. One addition for a conversion and a product.
struct ChunkScales {
  __m512 scale;
  __m512 bias;
};
// Of keys rows[i * 4 + k] for i = 0..3, from the scales of 16 rows.
[[INLINE_AVX512]] inline ChunkScales ScalesOf(const float* scales, int k) {
  const __m512 scale = _mm512_permutevar_ps(_mm512_loadu_ps(scales), _mm512_set1_epi32(k));
  return {scale, _mm512_mul_ps(scale, _mm512_set1_ps(-32896.0f))};
}

// Four rows of 16 levels (or 8, then what is of no use), biased by 128.
[[INLINE_AVX512]] inline __m512i LoadLevels(const std::byte* const* rows, std::int32_t stride,
                                            std::int32_t d, std::int32_t elements) {
  __m128i row[4];
  SIMD_UNROLL for (int i = 0; i < 4; ++i) {
    const auto* const from = reinterpret_cast<const __m128i*>(rows[i * stride] + d);
    row[i] = elements == 16 ? _mm_loadu_si128(from) : _mm_loadl_epi64(from);
  }
  __m512i levels = _mm512_castsi128_si512(row[0]);
  levels = _mm512_inserti32x4(levels, row[1], 1);
  levels = _mm512_inserti32x4(levels, row[2], 2);
  levels = _mm512_inserti32x4(levels, row[3], 3);
  return _mm512_xor_si512(levels, _mm512_set1_epi8(-128));
}

// Elements 4 i .. 4 i + 3 of the four.
[[INLINE_AVX512]] inline __m512 LevelChunk(__m512i levels, const ChunkScales& scales, int i) {
  const __m128i places = _mm_setr_epi32(0x000, 0x100, 0x200, 0x300);
  const __m512i from =
      _mm512_add_epi32(_mm512_broadcast_i32x4(places), _mm512_set1_epi32(0x400 * i));
  const __m512i biased =
      _mm512_mask_shuffle_epi8(_mm512_set1_epi32(0x47000000), 0x2222222222222222, levels, from);
  return _mm512_fmadd_ps(_mm512_castsi512_ps(biased), scales.scale, scales.bias);
}

// Two chunks at once: one alone would wait for its own sums. sums[k]: [kRows] of chunk k.
template <int kRows>
[[INLINE_AVX512]] inline void AddChunks(const float* q, std::int32_t k_dim, __m512 chunk0,
                                        __m512 chunk1, __m512 (*sums)[kRows]) {
  SIMD_UNROLL for (int r = 0; r < kRows; ++r) {
    const __m512 four = _mm512_broadcast_f32x4(_mm_loadu_ps(q + r * std::int64_t{k_dim}));
    sums[0][r] = _mm512_fmadd_ps(four, chunk0, sums[0][r]);
    sums[1][r] = _mm512_fmadd_ps(four, chunk1, sums[1][r]);
  }
}

// The first `elements` elements of a slice of dims, of keys rows[k], rows[4 + k], rows[8 + k],
// rows[12 + k] for k = 0, 1. `scales` [2]: of levels.
template <KvDtype dtype, int kRows>
[[INLINE_AVX512]] inline void AddSlice(const std::byte* const* rows, const ChunkScales* scales,
                                       std::int32_t d, std::int32_t elements, std::int32_t k_dim,
                                       const float* q, __m512 (*sums)[kRows]) {
  if constexpr (dtype == KvDtype::kInt8) {
    const __m512i levels[2] = {LoadLevels(rows, 4, d, elements),
                               LoadLevels(rows + 1, 4, d, elements)};
    SIMD_UNROLL for (int i = 0; i < 4; ++i) {
      if (4 * i >= elements) continue;
      AddChunks<kRows>(q + d + 4 * i, k_dim, LevelChunk(levels[0], scales[0], i),
                       LevelChunk(levels[1], scales[1], i), sums);
    }
    return;
  }
  constexpr int kChunks = dtype == KvDtype::kF32 ? 4 : 8;
  __m512 chunks[2][kChunks];
  SIMD_UNROLL for (int k = 0; k < 2; ++k) {
    if constexpr (dtype == KvDtype::kF32) {
      LoadChunksFloat(rows + k, 4, d, static_cast<__mmask16>((1u << elements) - 1), chunks[k]);
    } else {
      LoadChunks16Bit<dtype>(rows + k, 4, d,
                             static_cast<__mmask32>((std::uint64_t{1} << elements) - 1), chunks[k]);
    }
  }
  SIMD_UNROLL for (int i = 0; i < kChunks; ++i) {
    // Only what is there: adding 0 * 0 would turn a sum of -0 into +0.
    if (4 * i < elements) AddChunks<kRows>(q + d + 4 * i, k_dim, chunks[0][i], chunks[1][i], sums);
  }
}

// The partial sums of keys rows[k], rows[4 + k], rows[8 + k], rows[12 + k] for k = 0, 1.
template <KvDtype dtype, int kRows>
[[INLINE_AVX512]] inline void SumEightKeys(const std::byte* const* rows, const ChunkScales* scales,
                                           std::int32_t k_dim, const float* q,
                                           __m512 (*sums)[kRows]) {
  constexpr int kDims = dtype == KvDtype::kF32 || dtype == KvDtype::kInt8 ? 16 : 32;
  SIMD_UNROLL for (int r = 0; r < kRows; ++r) sums[0][r] = sums[1][r] = _mm512_setzero_ps();
  std::int32_t d = 0;
  for (; d + kDims <= k_dim; d += kDims) AddSlice<dtype>(rows, scales, d, kDims, k_dim, q, sums);
  if (d < k_dim) AddSlice<dtype>(rows, scales, d, k_dim - d, k_dim, q, sums);
}

// Lane 4 i + j of sums[g] is partial sum j of key 4 i + g; the result has key i in lane i.
[[INLINE_AVX512]] inline __m512 AddPartialSums(const __m512* sums) {
  const __m512 a = _mm512_add_ps(_mm512_shuffle_ps(sums[0], sums[1], 0x44),
                                 _mm512_shuffle_ps(sums[0], sums[1], 0xEE));
  const __m512 b = _mm512_add_ps(_mm512_shuffle_ps(sums[2], sums[3], 0x44),
                                 _mm512_shuffle_ps(sums[2], sums[3], 0xEE));
  return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xDD));
}

template <KvDtype dtype, int kRows>
[[PENSTOCK_AVX512]] void ScoreRows(const KvRows& key_rows, std::int32_t keys, std::int32_t k_dim,
                                   const float* q, RowsAhead ahead, float* scores) {
  const std::int32_t row_bytes = k_dim * kElementBytes<dtype>;
  for (std::int32_t key = 0; key < keys; key += 16) {
    const std::byte* const* const rows = key_rows.at + key;
    __m512 sums[kRows][4];
    SIMD_UNROLL for (int group = 0; group < 4; group += 2) {
      PrefetchAhead(ahead, key + 4 * group, 8, 0, row_bytes);
      ChunkScales scales[2];
      if constexpr (dtype == KvDtype::kInt8) {
        scales[0] = ScalesOf(key_rows.scales + key, group);
        scales[1] = ScalesOf(key_rows.scales + key, group + 1);
      }
      __m512 two[2][kRows];
      SumEightKeys<dtype, kRows>(rows + group, scales, k_dim, q, two);
      SIMD_UNROLL for (int r = 0; r < kRows; ++r) {
        sums[r][group] = two[0][r];
        sums[r][group + 1] = two[1][r];
      }
    }
    SIMD_UNROLL for (int r = 0; r < kRows; ++r) {
      _mm512_storeu_ps(scores + r * kPartitionTokens + key, AddPartialSums(sums[r]));
    }
  }
}

void Scores(const KvRows& key_rows, std::int32_t keys, std::int32_t k_dim, std::int32_t rows,
            const float* q, RowsAhead ahead, float* scores) {
  WithDtype(key_rows.dtype, [=]<KvDtype kDtype>() {
    WithCount<kDirectRowsMax>(rows, [=]<int kRows>() {
      ScoreRows<kDtype, kRows>(key_rows, keys, k_dim, q, ahead, scores);
    });
  });
}

// ---- Direct: values.

// kVectors * 16 dims from `dim` on of every row; with kHalf the last vector has 8.
template <KvDtype dtype, int kRows, int kVectors, bool kHalf>
[[INLINE_AVX512]] inline void AddValues(const KvRows& value_rows, std::int32_t first,
                                        std::int32_t keys, std::int32_t dim, const float* weights,
                                        RowsAhead ahead, float* o, std::int32_t v_stride) {
  constexpr int kBytes = kElementBytes<dtype>;
  __m512 sums[kRows][kVectors];
  SIMD_UNROLL for (int r = 0; r < kRows; ++r) {
    SIMD_UNROLL for (int i = 0; i < kVectors; ++i) {
      sums[r][i] = _mm512_loadu_ps(o + r * std::int64_t{v_stride} + dim + 16 * i);
    }
  }
  for (std::int32_t key = 0; key < keys; ++key) {
    PrefetchAhead(ahead, first + key, 1, kBytes * dim, kBytes * kVectors * 16);
    const std::byte* const row = value_rows.at[first + key];
    const float scale = ScaleAt<dtype>(value_rows, first + key);
    __m512 v[kVectors];
    SIMD_UNROLL for (int i = 0; i < kVectors; ++i) {
      v[i] = kHalf && i == kVectors - 1 ? Load8<dtype>(row, scale, dim + 16 * i)
                                        : Load16<dtype>(row, scale, dim + 16 * i);
    }
    SIMD_UNROLL for (int r = 0; r < kRows; ++r) {
      const __m512 weight = _mm512_set1_ps(weights[r * kPartitionTokens + key]);
      SIMD_UNROLL for (int i = 0; i < kVectors; ++i) sums[r][i] =
          _mm512_fmadd_ps(weight, v[i], sums[r][i]);
    }
  }
  SIMD_UNROLL for (int r = 0; r < kRows; ++r) {
    SIMD_UNROLL for (int i = 0; i < kVectors; ++i) {
      _mm512_storeu_ps(o + r * std::int64_t{v_stride} + dim + 16 * i, sums[r][i]);
    }
  }
}

template <KvDtype dtype, int kRows>
[[PENSTOCK_AVX512]] void ValueRows(const KvRows& rows, std::int32_t keys, std::int32_t v_dim,
                                   const float* weights, RowsAhead ahead, float* o,
                                   std::int32_t v_stride) {
  constexpr int kVectors = kRows <= 6 ? 4 : 2;  // At most 24 sums in registers.
  // Few enough keys that a wide row is still in cache when its next dims are taken.
  const std::int32_t step = v_dim <= 16 * kVectors ? keys : 16;
  for (std::int32_t key = 0; key < keys; key += step) {
    const std::int32_t count = std::min(step, keys - key);
    std::int32_t d = 0;
    for (; d + 16 * kVectors <= v_dim; d += 16 * kVectors) {
      AddValues<dtype, kRows, kVectors, false>(rows, key, count, d, weights + key, ahead, o,
                                               v_stride);
    }
    for (; d + 16 <= v_dim; d += 16) {
      AddValues<dtype, kRows, 1, false>(rows, key, count, d, weights + key, ahead, o, v_stride);
    }
    if (d < v_dim) {
      AddValues<dtype, kRows, 1, true>(rows, key, count, d, weights + key, ahead, o, v_stride);
    }
  }
}

void Values(const KvRows& value_rows, std::int32_t keys, std::int32_t v_dim, std::int32_t rows,
            const float* weights, RowsAhead ahead, float* o, std::int32_t v_stride) {
  WithDtype(value_rows.dtype, [=]<KvDtype kDtype>() {
    WithCount<kDirectRowsMax>(rows, [=]<int kRows>() {
      ValueRows<kDtype, kRows>(value_rows, keys, v_dim, weights, ahead, o, v_stride);
    });
  });
}

#include "kernels/attention_avx512_tiled.inc"

// ---- Both.

// Minus infinity for the keys outside [begin, end) of the 16s that they share.
[[INLINE_AVX512]] inline void HideEdges(float* scores, std::int32_t begin, std::int32_t end) {
  const __m512 hidden = _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(0xFF800000u)));
  const unsigned before = (1u << (begin % 16)) - 1;
  _mm512_mask_storeu_ps(scores + begin / 16 * 16, static_cast<__mmask16>(before), hidden);
  const unsigned after = 0xFFFFu << (end % 16);
  if (end % 16 != 0) {
    _mm512_mask_storeu_ps(scores + end / 16 * 16, static_cast<__mmask16>(after), hidden);
  }
}

[[PENSTOCK_AVX512]] void Softmax(float* scores, std::int32_t begin, std::int32_t end, float* m,
                                 float* l) {
  HideEdges(scores, begin, end);
  begin = begin / 16 * 16;
  __m512 max = _mm512_loadu_ps(scores + begin);
  for (std::int32_t i = begin + 16; i < end; i += 16) {
    max = _mm512_max_ps(max, _mm512_loadu_ps(scores + i));
  }
  *m = _mm512_reduce_max_ps(max);
  const __m512 max_all = _mm512_set1_ps(*m);
  __m512 sums = _mm512_setzero_ps();
  for (std::int32_t i = begin; i < end; i += 16) {
    const __m512 p = Exp2(_mm512_sub_ps(_mm512_loadu_ps(scores + i), max_all));
    _mm512_storeu_ps(scores + i, p);
    sums = _mm512_add_ps(sums, p);
  }
  *l = AddInPairs(sums);
}

[[PENSTOCK_AVX512]] void Merge(float m, float l, const float* o, std::int32_t n, float* state_m,
                               float* state_l, float* state_o) {
  const float max = m > *state_m ? m : *state_m;
  const __m512 a = Exp2(_mm512_set1_ps(*state_m - max));
  const __m512 b = Exp2(_mm512_set1_ps(m - max));
  const float next_l = l * _mm512_cvtss_f32(b);
  *state_m = max;
  *state_l = _mm_cvtss_f32(
      _mm_fmadd_ss(_mm_set_ss(*state_l), _mm512_castps512_ps128(a), _mm_set_ss(next_l)));
  const __m256 a8 = _mm512_castps512_ps256(a);
  const __m256 b8 = _mm512_castps512_ps256(b);
  for (std::int32_t i = 0; i < n; i += 8) {
    const __m256 next = _mm256_mul_ps(_mm256_loadu_ps(o + i), b8);
    _mm256_storeu_ps(state_o + i, _mm256_fmadd_ps(_mm256_loadu_ps(state_o + i), a8, next));
  }
}

[[PENSTOCK_AVX512]] void Divide(float* o, std::int32_t n, float l) {
  for (std::int32_t i = 0; i < n; i += 8) {
    _mm256_storeu_ps(o + i, _mm256_div_ps(_mm256_loadu_ps(o + i), _mm256_set1_ps(l)));
  }
}

}  // namespace

const AttentionKernels kAttentionAvx512 = {
    .scale = Scale,
    .scores = Scores,
    .values = Values,
    .pack_keys = PackKeys,
    .pack_values = PackValues,
    .score_tile = ScoreTile,
    .value_tile = ValueTile,
    .softmax = Softmax,
    .merge = Merge,
    .divide = Divide,
};

}  // namespace penstock::kernels
