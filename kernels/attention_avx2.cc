// SPDX-License-Identifier: Apache-2.0
// kernels/attention_driver.h with AVX2: a vector is 8 keys of one row, 8 values of one key, or two
// keys times the four partial sums of a score.
#include <algorithm>
#include <limits>

#include "kernels/attention_dispatch.h"
#include "kernels/attention_driver.h"
#include "kernels/exp_avx2.h"
#include "kernels/simd.h"

namespace penstock::kernels {
namespace {

// Inlined, so that rows and dims are constants and sums stay in registers.
#define INLINE_AVX2 gnu::always_inline, PENSTOCK_AVX2

[[INLINE_AVX2]] inline __m256 WidenHalves(KvDtype dtype, __m128i halves) {
  if (dtype == KvDtype::kF16) return _mm256_cvtph_ps(halves);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

[[INLINE_AVX2]] inline __m128i LoadHalves(const std::byte* row, std::int32_t i) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + 2 * std::int64_t{i}));
}

[[INLINE_AVX2]] inline __m256 LoadFloats(const std::byte* row, std::int32_t i) {
  return _mm256_loadu_ps(reinterpret_cast<const float*>(row + 4 * std::int64_t{i}));
}

[[INLINE_AVX2]] inline __m128i LoadLevels(const std::byte* row, std::int32_t i) {
  return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(row + i));
}

// 8 elements from index i on, exactly widened. `scale`: of a row of levels.
template <KvDtype dtype>
[[INLINE_AVX2]] inline __m256 Load8(const std::byte* row, float scale, std::int32_t i) {
  if constexpr (dtype == KvDtype::kF32) {
    return LoadFloats(row, i);
  } else if constexpr (dtype == KvDtype::kInt8) {
    return _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(LoadLevels(row, i))),
                         _mm256_set1_ps(scale));
  } else {
    return WidenHalves(dtype, LoadHalves(row, i));
  }
}

[[INLINE_AVX2]] inline void PrefetchRow(const std::byte* row, std::int32_t row_bytes) {
  for (std::int32_t i = 0; i < row_bytes; i += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(row + i), _MM_HINT_T0);
  }
}

// What comes with `keys` rows from row `key` on.
[[INLINE_AVX2]] inline void PrefetchAhead(RowsAhead ahead, std::int32_t key, std::int32_t keys,
                                          std::int32_t offset, std::int32_t row_bytes) {
  const std::int32_t end = ahead.Before(key + keys);
  for (std::int32_t i = ahead.Before(key); i < end; ++i) {
    PrefetchRow(ahead.rows[i] + offset, row_bytes);
  }
}

// The adds of l: 16 sums in pairs at distance 8, 4, 2, 1.
[[INLINE_AVX2]] inline float AddInPairs(__m256 low, __m256 high) {
  const __m256 a = _mm256_add_ps(low, high);
  __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  b = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(b, _mm_shuffle_ps(b, b, 1)));
}

[[PENSTOCK_AVX2]] void Scale(const float* from, std::int32_t n, float factor, float* to) {
  for (std::int32_t i = 0; i < n; i += 8) {
    _mm256_storeu_ps(to + i, _mm256_mul_ps(_mm256_loadu_ps(from + i), _mm256_set1_ps(factor)));
  }
}

// ---- Direct: scores. A chunk is four elements of each of two keys, so its 8 lanes are the four
// partial sums of two keys.

// Four times the scale of each of two rows, and -32,896 times that.
struct ChunkScales {
  __m256 scale;
  __m256 bias;
};
[[INLINE_AVX2]] inline ChunkScales ScalesOf(float a, float b) {
  const __m256 scale = _mm256_set_m128(_mm_set1_ps(b), _mm_set1_ps(a));
  return {scale, _mm256_mul_ps(scale, _mm256_set1_ps(-32896.0f))};
}

// 8 levels of two rows to two chunks. A level l comes as the float 32,768 + 128 + l, whose bits are
// those of 32,768 with the byte l + 128 in the second place; and as products of 17 bits and F16s are
// exact in float, so is fma(32,896 + l, scale, -32,896 * scale) = l * scale.
[[INLINE_AVX2]] inline void LoadLevelChunks(const std::byte* a, const std::byte* b, std::int32_t d,
                                            const ChunkScales& scales, __m256* chunks) {
  const __m256i levels = _mm256_set_m128i(LoadLevels(b, d), LoadLevels(a, d));
  SIMD_UNROLL for (int i = 0; i < 2; ++i) {
    // -1 makes a byte 0.
    const __m128i from =
        _mm_add_epi8(_mm_setr_epi8(-1, 0, -1, -1, -1, 1, -1, -1, -1, 2, -1, -1, -1, 3, -1, -1),
                     _mm_set1_epi32(0x400 * i));
    const __m256i placed = _mm256_shuffle_epi8(levels, _mm256_broadcastsi128_si256(from));
    const __m256i biased = _mm256_xor_si256(placed, _mm256_set1_epi32(0x47008000));
    chunks[i] = _mm256_fmadd_ps(_mm256_castsi256_ps(biased), scales.scale, scales.bias);
  }
}

// 8 elements of two rows to two chunks. `scales`: of levels.
template <KvDtype dtype>
[[INLINE_AVX2]] inline void LoadChunks(const std::byte* a, const std::byte* b,
                                       const ChunkScales& scales, std::int32_t d, __m256* chunks) {
  if constexpr (dtype == KvDtype::kF32) {
    const __m256 row_a = LoadFloats(a, d);
    const __m256 row_b = LoadFloats(b, d);
    chunks[0] = _mm256_permute2f128_ps(row_a, row_b, 0x20);
    chunks[1] = _mm256_permute2f128_ps(row_a, row_b, 0x31);
  } else if constexpr (dtype == KvDtype::kInt8) {
    LoadLevelChunks(a, b, d, scales, chunks);
  } else {
    const __m128i row_a = LoadHalves(a, d);
    const __m128i row_b = LoadHalves(b, d);
    chunks[0] = WidenHalves(dtype, _mm_unpacklo_epi64(row_a, row_b));
    chunks[1] = WidenHalves(dtype, _mm_unpackhi_epi64(row_a, row_b));
  }
}

// The partial sums of keys i and i + 4, for i in 0..kPairs-1. `scales` [kPairs]: of levels.
template <KvDtype dtype, int kRows, int kPairs>
[[INLINE_AVX2]] inline void SumPairs(const std::byte* const* rows, const ChunkScales* scales,
                                     std::int32_t k_dim, const float* q, __m256 (*sums)[kPairs]) {
  SIMD_UNROLL for (int r = 0; r < kRows; ++r) {
    SIMD_UNROLL for (int i = 0; i < kPairs; ++i) sums[r][i] = _mm256_setzero_ps();
  }
  for (std::int32_t d = 0; d < k_dim; d += 8) {
    __m256 chunks[kPairs][2];
    SIMD_UNROLL for (int i = 0; i < kPairs; ++i)
        LoadChunks<dtype>(rows[i], rows[i + 4], scales[i], d, chunks[i]);
    SIMD_UNROLL for (int half = 0; half < 2; ++half) {
      SIMD_UNROLL for (int r = 0; r < kRows; ++r) {
        const __m256 four = _mm256_broadcast_ps(
            reinterpret_cast<const __m128*>(q + r * std::int64_t{k_dim} + d + 4 * half));
        SIMD_UNROLL for (int i = 0; i < kPairs; ++i) {
          sums[r][i] = _mm256_fmadd_ps(four, chunks[i][half], sums[r][i]);
        }
      }
    }
  }
}

// Lane 4 i + j of sums[g] is partial sum j of key 4 i + g; the result has key i in lane i.
[[INLINE_AVX2]] inline __m256 AddPartialSums(const __m256* sums) {
  const __m256 a = _mm256_add_ps(_mm256_shuffle_ps(sums[0], sums[1], 0x44),
                                 _mm256_shuffle_ps(sums[0], sums[1], 0xEE));
  const __m256 b = _mm256_add_ps(_mm256_shuffle_ps(sums[2], sums[3], 0x44),
                                 _mm256_shuffle_ps(sums[2], sums[3], 0xEE));
  return _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xDD));
}

template <KvDtype dtype, int kRows>
[[PENSTOCK_AVX2]] void ScoreRows(const KvRows& key_rows, std::int32_t keys, std::int32_t k_dim,
                                 const float* q, RowsAhead ahead, float* scores) {
  constexpr int kPairs = kRows <= 4 ? 2 : 1;
  const std::int32_t row_bytes = k_dim * kElementBytes<dtype>;
  for (std::int32_t key = 0; key < keys; key += 8) {
    const std::byte* const* const rows = key_rows.at + key;
    __m256 sums[kRows][4];
    SIMD_UNROLL for (int group = 0; group < 4; group += kPairs) {
      PrefetchAhead(ahead, key + 2 * group, 2 * kPairs, 0, row_bytes);
      ChunkScales scales[kPairs];
      if constexpr (dtype == KvDtype::kInt8) {
        const float* const from = key_rows.scales + key + group;
        SIMD_UNROLL for (int i = 0; i < kPairs; ++i) scales[i] = ScalesOf(from[i], from[i + 4]);
      }
      __m256 pairs[kRows][kPairs];
      SumPairs<dtype, kRows, kPairs>(rows + group, scales, k_dim, q, pairs);
      SIMD_UNROLL for (int r = 0; r < kRows; ++r) {
        SIMD_UNROLL for (int i = 0; i < kPairs; ++i) sums[r][group + i] = pairs[r][i];
      }
    }
    SIMD_UNROLL for (int r = 0; r < kRows; ++r) {
      _mm256_storeu_ps(scores + r * kPartitionTokens + key, AddPartialSums(sums[r]));
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

// kVectors * 8 dims from `dim` on of every row.
template <KvDtype dtype, int kRows, int kVectors>
[[INLINE_AVX2]] inline void AddValues(const KvRows& value_rows, std::int32_t first,
                                      std::int32_t keys, std::int32_t dim, const float* weights,
                                      RowsAhead ahead, float* o, std::int32_t v_stride) {
  constexpr int kBytes = kElementBytes<dtype>;
  __m256 sums[kRows][kVectors];
  SIMD_UNROLL for (int r = 0; r < kRows; ++r) {
    SIMD_UNROLL for (int i = 0; i < kVectors; ++i) {
      sums[r][i] = _mm256_loadu_ps(o + r * std::int64_t{v_stride} + dim + 8 * i);
    }
  }
  for (std::int32_t key = 0; key < keys; ++key) {
    PrefetchAhead(ahead, first + key, 1, kBytes * dim, kBytes * kVectors * 8);
    const std::byte* const row = value_rows.at[first + key];
    const float scale = ScaleAt<dtype>(value_rows, first + key);
    __m256 v[kVectors];
    SIMD_UNROLL for (int i = 0; i < kVectors; ++i) v[i] = Load8<dtype>(row, scale, dim + 8 * i);
    SIMD_UNROLL for (int r = 0; r < kRows; ++r) {
      const __m256 weight = _mm256_broadcast_ss(weights + r * kPartitionTokens + key);
      SIMD_UNROLL for (int i = 0; i < kVectors; ++i) sums[r][i] =
          _mm256_fmadd_ps(weight, v[i], sums[r][i]);
    }
  }
  SIMD_UNROLL for (int r = 0; r < kRows; ++r) {
    SIMD_UNROLL for (int i = 0; i < kVectors; ++i) {
      _mm256_storeu_ps(o + r * std::int64_t{v_stride} + dim + 8 * i, sums[r][i]);
    }
  }
}

template <KvDtype dtype, int kRows>
[[PENSTOCK_AVX2]] void ValueRows(const KvRows& rows, std::int32_t keys, std::int32_t v_dim,
                                 const float* weights, RowsAhead ahead, float* o,
                                 std::int32_t v_stride) {
  constexpr int kVectors = kRows <= 3 ? 4 : kRows <= 6 ? 2 : 1;  // At most 12 sums in registers.
  // Few enough keys that a wide row is still in cache when its next dims are taken.
  constexpr std::int32_t kKeys = 16;
  for (std::int32_t key = 0; key < keys; key += kKeys) {
    const std::int32_t count = std::min(kKeys, keys - key);
    std::int32_t d = 0;
    for (; d + 8 * kVectors <= v_dim; d += 8 * kVectors) {
      AddValues<dtype, kRows, kVectors>(rows, key, count, d, weights + key, ahead, o, v_stride);
    }
    for (; d < v_dim; d += 8) {
      AddValues<dtype, kRows, 1>(rows, key, count, d, weights + key, ahead, o, v_stride);
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

#include "kernels/attention_avx2_tiled.inc"

// ---- Both.

// Minus infinity for the keys outside [begin, end) of the 16s that they share.
void HideEdges(float* scores, std::int32_t begin, std::int32_t end) {
  constexpr float kHidden = -std::numeric_limits<float>::infinity();
  for (std::int32_t i = begin / 16 * 16; i < begin; ++i) scores[i] = kHidden;
  for (std::int32_t i = end; i % 16 != 0; ++i) scores[i] = kHidden;
}

[[PENSTOCK_AVX2]] void Softmax(float* scores, std::int32_t begin, std::int32_t end, float* m,
                               float* l) {
  HideEdges(scores, begin, end);
  begin = begin / 16 * 16;
  __m256 max8 = _mm256_loadu_ps(scores + begin);
  for (std::int32_t i = begin + 8; i < end; i += 8) {
    max8 = _mm256_max_ps(max8, _mm256_loadu_ps(scores + i));
  }
  __m128 max4 = _mm_max_ps(_mm256_castps256_ps128(max8), _mm256_extractf128_ps(max8, 1));
  max4 = _mm_max_ps(max4, _mm_movehl_ps(max4, max4));
  *m = _mm_cvtss_f32(_mm_max_ss(max4, _mm_shuffle_ps(max4, max4, 1)));
  const __m256 max_all = _mm256_set1_ps(*m);
  __m256 low = _mm256_setzero_ps();
  __m256 high = _mm256_setzero_ps();
  for (std::int32_t i = begin; i < end; i += 16) {
    const __m256 p_low = Exp2(_mm256_sub_ps(_mm256_loadu_ps(scores + i), max_all));
    const __m256 p_high = Exp2(_mm256_sub_ps(_mm256_loadu_ps(scores + i + 8), max_all));
    _mm256_storeu_ps(scores + i, p_low);
    _mm256_storeu_ps(scores + i + 8, p_high);
    low = _mm256_add_ps(low, p_low);
    high = _mm256_add_ps(high, p_high);
  }
  *l = AddInPairs(low, high);
}

[[PENSTOCK_AVX2]] void Merge(float m, float l, const float* o, std::int32_t n, float* state_m,
                             float* state_l, float* state_o) {
  const float max = m > *state_m ? m : *state_m;
  const __m256 a = Exp2(_mm256_set1_ps(*state_m - max));
  const __m256 b = Exp2(_mm256_set1_ps(m - max));
  const float next_l = l * _mm256_cvtss_f32(b);
  *state_m = max;
  *state_l = _mm_cvtss_f32(
      _mm_fmadd_ss(_mm_set_ss(*state_l), _mm256_castps256_ps128(a), _mm_set_ss(next_l)));
  for (std::int32_t i = 0; i < n; i += 8) {
    const __m256 next = _mm256_mul_ps(_mm256_loadu_ps(o + i), b);
    _mm256_storeu_ps(state_o + i, _mm256_fmadd_ps(_mm256_loadu_ps(state_o + i), a, next));
  }
}

[[PENSTOCK_AVX2]] void Divide(float* o, std::int32_t n, float l) {
  for (std::int32_t i = 0; i < n; i += 8) {
    _mm256_storeu_ps(o + i, _mm256_div_ps(_mm256_loadu_ps(o + i), _mm256_set1_ps(l)));
  }
}

}  // namespace

const AttentionKernels kAttentionAvx2 = {
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
