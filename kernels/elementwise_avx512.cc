// SPDX-License-Identifier: Apache-2.0
// kernels/elementwise.h with AVX-512. What is left at the end of a row goes through masks.
#include <cmath>
#include <cstring>

#include "kernels/elementwise_targets.h"
#include "kernels/exp_avx512.h"
#include "kernels/simd.h"

namespace penstock::kernels {
namespace {

#define INLINE_AVX512 gnu::always_inline, PENSTOCK_AVX512

// The lanes of a vector at `i` that lie below `n`.
[[INLINE_AVX512]] inline __mmask16 MaskAt(std::int32_t i, std::int32_t n) {
  return n - i >= 16 ? 0xFFFF : static_cast<__mmask16>((1u << (n - i)) - 1);
}

[[PENSTOCK_AVX512]] void RmsNorm512(const float* x, const float* w, std::int32_t n, float eps,
                                    float* y) {
  __m512 sums = _mm512_setzero_ps();
  std::int32_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m512 v = _mm512_loadu_ps(x + i);
    sums = _mm512_fmadd_ps(v, v, sums);
  }
  if (i < n) {
    const __mmask16 mask = MaskAt(i, n);
    const __m512 v = _mm512_maskz_loadu_ps(mask, x + i);
    sums = _mm512_mask3_fmadd_ps(v, v, sums, mask);
  }
  const __m256 a = _mm256_add_ps(_mm512_castps512_ps256(sums), _mm512_extractf32x8_ps(sums, 1));
  __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  b = _mm_add_ps(b, _mm_movehl_ps(b, b));
  const float sum = _mm_cvtss_f32(_mm_add_ss(b, _mm_shuffle_ps(b, b, 1)));
  const float square = sum / static_cast<float>(n) + eps;
  const float root = _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(square)));
  const __m512 factor = _mm512_set1_ps(1 / root);
  for (i = 0; i < n; i += 16) {
    const __mmask16 mask = MaskAt(i, n);
    const __m512 scaled = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + i), factor);
    _mm512_mask_storeu_ps(y + i, mask, _mm512_mul_ps(scaled, _mm512_maskz_loadu_ps(mask, w + i)));
  }
}

[[PENSTOCK_AVX512]] void Add512(const float* y, std::int32_t n, float* x) {
  for (std::int32_t i = 0; i < n; i += 16) {
    const __mmask16 mask = MaskAt(i, n);
    const __m512 sum =
        _mm512_add_ps(_mm512_maskz_loadu_ps(mask, x + i), _mm512_maskz_loadu_ps(mask, y + i));
    _mm512_mask_storeu_ps(x + i, mask, sum);
  }
}

[[PENSTOCK_AVX512]] void RopeHalves(const float* cos, const float* sin, std::int32_t half,
                                    float* x) {
  for (std::int32_t i = 0; i < half; i += 16) {
    const __mmask16 mask = MaskAt(i, half);
    const __m512 c = _mm512_maskz_loadu_ps(mask, cos + i);
    const __m512 s = _mm512_maskz_loadu_ps(mask, sin + i);
    const __m512 a = _mm512_maskz_loadu_ps(mask, x + i);
    const __m512 b = _mm512_maskz_loadu_ps(mask, x + half + i);
    _mm512_mask_storeu_ps(x + i, mask, _mm512_fmsub_ps(a, c, _mm512_mul_ps(b, s)));
    _mm512_mask_storeu_ps(x + half + i, mask, _mm512_fmadd_ps(b, c, _mm512_mul_ps(a, s)));
  }
}

[[PENSTOCK_AVX512]] void RopeAdjacent(const float* cos, const float* sin, std::int32_t half,
                                      float* x) {
  const __m512i twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
  for (std::int32_t i = 0; i < half; i += 8) {
    const __mmask16 mask = MaskAt(2 * i, 2 * half);
    const __mmask16 pairs = MaskAt(i, half) & 0xFF;
    const __m512 c = _mm512_permutexvar_ps(twice, _mm512_maskz_loadu_ps(pairs, cos + i));
    const __m512 s = _mm512_permutexvar_ps(twice, _mm512_maskz_loadu_ps(pairs, sin + i));
    const __m512 v = _mm512_maskz_loadu_ps(mask, x + 2 * i);
    const __m512 other = _mm512_mul_ps(_mm512_permute_ps(v, 0xB1), s);
    // Even lanes subtract, odd ones add.
    _mm512_mask_storeu_ps(x + 2 * i, mask, _mm512_fmaddsub_ps(v, c, other));
  }
}

[[PENSTOCK_AVX512]] void Rope512(RopePairs pairs, const float* cos, const float* sin,
                                 std::int32_t rotary_dim, float* x) {
  if (pairs == RopePairs::kAdjacent) {
    RopeAdjacent(cos, sin, rotary_dim / 2, x);
  } else {
    RopeHalves(cos, sin, rotary_dim / 2, x);
  }
}

template <Activation activation>
[[PENSTOCK_AVX512]] void Gate(const float* up, std::int32_t n, float* gate) {
  const __m512 one = _mm512_set1_ps(1);
  for (std::int32_t i = 0; i < n; i += 16) {
    const __mmask16 mask = MaskAt(i, n);
    const __m512 x = _mm512_maskz_loadu_ps(mask, gate + i);
    __m512 power;
    if constexpr (activation == Activation::kSilu) {
      power = _mm512_xor_ps(x, _mm512_set1_ps(-0.0f));
    } else {
      const __m512 cube = _mm512_mul_ps(_mm512_mul_ps(x, x), x);
      power = _mm512_mul_ps(_mm512_set1_ps(kGeluFactor),
                            _mm512_fmadd_ps(_mm512_set1_ps(kGeluCubic), cube, x));
    }
    const __m512 active = _mm512_div_ps(x, _mm512_add_ps(one, Exp(power)));
    _mm512_mask_storeu_ps(gate + i, mask,
                          _mm512_mul_ps(active, _mm512_maskz_loadu_ps(mask, up + i)));
  }
}

void GatedActivation512(Activation activation, const float* up, std::int32_t n, float* gate) {
  if (activation == Activation::kSilu) {
    Gate<Activation::kSilu>(up, n, gate);
  } else {
    Gate<Activation::kGeluTanh>(up, n, gate);
  }
}

// Finite values beyond the largest F16 become it; infinities and NaNs stay.
[[INLINE_AVX512]] inline __m256i NarrowF16(__m512 v) {
  const __m512 largest = _mm512_set1_ps(65504.0f);
  const __m512 cut =
      _mm512_max_ps(_mm512_min_ps(v, largest), _mm512_sub_ps(_mm512_setzero_ps(), largest));
  const __mmask16 finite = _mm512_cmp_ps_mask(
      _mm512_abs_ps(v), _mm512_castsi512_ps(_mm512_set1_epi32(0x7F800000)), _CMP_LT_OQ);
  return _mm512_cvtps_ph(_mm512_mask_mov_ps(v, finite, cut),
                         _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

// In integers: the CPU's own conversion takes subnormals for zero.
[[INLINE_AVX512]] inline __m256i NarrowBF16(__m512 v) {
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16));
}

template <KvDtype dtype>
[[PENSTOCK_AVX512]] void Narrow(const float* from, std::int32_t n, std::byte* to) {
  for (std::int32_t i = 0; i < n; i += 16) {
    const __mmask16 mask = MaskAt(i, n);
    const __m512 v = _mm512_maskz_loadu_ps(mask, from + i);
    _mm256_mask_storeu_epi16(to + 2 * std::int64_t{i}, mask,
                             dtype == KvDtype::kF16 ? NarrowF16(v) : NarrowBF16(v));
  }
}

template <KvDtype dtype>
[[PENSTOCK_AVX512]] void Widen(const std::byte* from, std::int32_t n, float* to) {
  for (std::int32_t i = 0; i < n; i += 16) {
    const __mmask16 mask = MaskAt(i, n);
    const __m256i halves = _mm256_maskz_loadu_epi16(mask, from + 2 * std::int64_t{i});
    const __m512 v =
        dtype == KvDtype::kF16
            ? _mm512_cvtph_ps(halves)
            : _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
    _mm512_mask_storeu_ps(to + i, mask, v);
  }
}

void NarrowRow512(KvDtype dtype, const float* from, std::int32_t n, std::byte* to) {
  if (n == 0) return;  // Null is no address for memcpy.
  switch (dtype) {
    case KvDtype::kF16:
      return Narrow<KvDtype::kF16>(from, n, to);
    case KvDtype::kBF16:
      return Narrow<KvDtype::kBF16>(from, n, to);
    case KvDtype::kF32:
      std::memcpy(to, from, sizeof(float) * static_cast<std::size_t>(n));
  }
}

void WidenRow512(KvDtype dtype, const std::byte* from, std::int32_t n, float* to) {
  if (n == 0) return;  // Null is no address for memcpy.
  switch (dtype) {
    case KvDtype::kF16:
      return Widen<KvDtype::kF16>(from, n, to);
    case KvDtype::kBF16:
      return Widen<KvDtype::kBF16>(from, n, to);
    case KvDtype::kF32:
      std::memcpy(to, from, sizeof(float) * static_cast<std::size_t>(n));
  }
}

}  // namespace

const ElementwiseTarget kElementwiseAvx512 = {
    .name = "avx512",
    .rms_norm = RmsNorm512,
    .add = Add512,
    .rope = Rope512,
    .gated_activation = GatedActivation512,
    .narrow_row = NarrowRow512,
    .widen_row = WidenRow512,
};

}  // namespace penstock::kernels
