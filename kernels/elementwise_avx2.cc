// SPDX-License-Identifier: Apache-2.0
// kernels/elementwise.h with AVX2. What is left at the end of a row goes through masks; of 16-bit
// elements, which have none, through a copy on the stack.
#include <cmath>
#include <cstring>

#include "kernels/elementwise_targets.h"
#include "kernels/exp_avx2.h"
#include "kernels/simd.h"

namespace penstock::kernels {
namespace {

#define INLINE_AVX2 gnu::always_inline, PENSTOCK_AVX2

alignas(64) constexpr std::int32_t kMasks[16] = {-1, -1, -1, -1, -1, -1, -1, -1};

// The lanes of a vector at `i` that lie below `n`.
[[INLINE_AVX2]] inline __m256i MaskAt(std::int32_t i, std::int32_t n) {
  const std::int32_t left = n - i >= 8 ? 8 : n - i < 0 ? 0 : n - i;
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kMasks + 8 - left));
}

[[INLINE_AVX2]] inline __m256 LoadAt(const float* from, std::int32_t i, std::int32_t n) {
  if (i + 8 <= n) return _mm256_loadu_ps(from + i);
  return i < n ? _mm256_maskload_ps(from + i, MaskAt(i, n)) : _mm256_setzero_ps();
}

[[INLINE_AVX2]] inline void StoreAt(float* to, std::int32_t i, std::int32_t n, __m256 v) {
  if (i + 8 <= n) {
    _mm256_storeu_ps(to + i, v);
  } else {
    _mm256_maskstore_ps(to + i, MaskAt(i, n), v);
  }
}

[[PENSTOCK_AVX2]] void RmsNorm256(const float* x, const float* w, std::int32_t n, float eps,
                                  float* y) {
  __m256 low = _mm256_setzero_ps();
  __m256 high = _mm256_setzero_ps();
  // Sums of squares are never -0, so that the zeros behind the end change no bit.
  for (std::int32_t i = 0; i < n; i += 16) {
    const __m256 a = LoadAt(x, i, n);
    const __m256 b = LoadAt(x, i + 8, n);
    low = _mm256_fmadd_ps(a, a, low);
    high = _mm256_fmadd_ps(b, b, high);
  }
  const __m256 a = _mm256_add_ps(low, high);
  __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  b = _mm_add_ps(b, _mm_movehl_ps(b, b));
  const float sum = _mm_cvtss_f32(_mm_add_ss(b, _mm_shuffle_ps(b, b, 1)));
  const float square = sum / static_cast<float>(n) + eps;
  const float root = _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(square)));
  const __m256 factor = _mm256_set1_ps(1 / root);
  for (std::int32_t i = 0; i < n; i += 8) {
    const __m256 scaled = _mm256_mul_ps(LoadAt(x, i, n), factor);
    StoreAt(y, i, n, _mm256_mul_ps(scaled, LoadAt(w, i, n)));
  }
}

[[PENSTOCK_AVX2]] void Add256(const float* y, std::int32_t n, float* x) {
  for (std::int32_t i = 0; i < n; i += 8) {
    StoreAt(x, i, n, _mm256_add_ps(LoadAt(x, i, n), LoadAt(y, i, n)));
  }
}

[[PENSTOCK_AVX2]] void RopeHalves(const float* cos, const float* sin, std::int32_t half, float* x) {
  for (std::int32_t i = 0; i < half; i += 8) {
    const __m256 c = LoadAt(cos, i, half);
    const __m256 s = LoadAt(sin, i, half);
    const __m256 a = LoadAt(x, i, half);
    const __m256 b = LoadAt(x + half, i, half);
    StoreAt(x, i, half, _mm256_fmsub_ps(a, c, _mm256_mul_ps(b, s)));
    StoreAt(x + half, i, half, _mm256_fmadd_ps(b, c, _mm256_mul_ps(a, s)));
  }
}

[[PENSTOCK_AVX2]] void RopeAdjacent(const float* cos, const float* sin, std::int32_t half,
                                    float* x) {
  const __m256i twice = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
  for (std::int32_t i = 0; i < half; i += 4) {
    const std::int32_t count = half - i < 4 ? half - i : 4;
    const __m256 c = _mm256_permutevar8x32_ps(LoadAt(cos + i, 0, count), twice);
    const __m256 s = _mm256_permutevar8x32_ps(LoadAt(sin + i, 0, count), twice);
    const __m256 v = LoadAt(x, 2 * i, 2 * half);
    const __m256 other = _mm256_mul_ps(_mm256_permute_ps(v, 0xB1), s);
    // Even lanes subtract, odd ones add.
    StoreAt(x, 2 * i, 2 * half, _mm256_fmaddsub_ps(v, c, other));
  }
}

[[PENSTOCK_AVX2]] void Rope256(RopePairs pairs, const float* cos, const float* sin,
                               std::int32_t rotary_dim, float* x) {
  if (pairs == RopePairs::kAdjacent) {
    RopeAdjacent(cos, sin, rotary_dim / 2, x);
  } else {
    RopeHalves(cos, sin, rotary_dim / 2, x);
  }
}

template <Activation activation>
[[PENSTOCK_AVX2]] void Gate(const float* up, std::int32_t n, float* gate) {
  const __m256 one = _mm256_set1_ps(1);
  for (std::int32_t i = 0; i < n; i += 8) {
    const __m256 x = LoadAt(gate, i, n);
    __m256 power;
    if constexpr (activation == Activation::kSilu) {
      power = _mm256_xor_ps(x, _mm256_set1_ps(-0.0f));
    } else {
      const __m256 cube = _mm256_mul_ps(_mm256_mul_ps(x, x), x);
      power = _mm256_mul_ps(_mm256_set1_ps(kGeluFactor),
                            _mm256_fmadd_ps(_mm256_set1_ps(kGeluCubic), cube, x));
    }
    const __m256 active = _mm256_div_ps(x, _mm256_add_ps(one, Exp(power)));
    StoreAt(gate, i, n, _mm256_mul_ps(active, LoadAt(up, i, n)));
  }
}

void GatedActivation256(Activation activation, const float* up, std::int32_t n, float* gate) {
  if (activation == Activation::kSilu) {
    Gate<Activation::kSilu>(up, n, gate);
  } else {
    Gate<Activation::kGeluTanh>(up, n, gate);
  }
}

// Finite values beyond the largest F16 become it; infinities and NaNs stay.
[[INLINE_AVX2]] inline __m128i NarrowF16(__m256 v) {
  const __m256 largest = _mm256_set1_ps(65504.0f);
  const __m256 sign = _mm256_set1_ps(-0.0f);
  const __m256 cut = _mm256_max_ps(_mm256_min_ps(v, largest), _mm256_xor_ps(largest, sign));
  const __m256 finite = _mm256_cmp_ps(
      _mm256_andnot_ps(sign, v), _mm256_castsi256_ps(_mm256_set1_epi32(0x7F800000)), _CMP_LT_OQ);
  return _mm256_cvtps_ph(_mm256_blendv_ps(v, cut, finite),
                         _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

[[INLINE_AVX2]] inline __m128i NarrowBF16(__m256 v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd);
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  const __m256i upper = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(upper), _mm256_extracti128_si256(upper, 1));
}

template <KvDtype dtype>
[[PENSTOCK_AVX2]] void Narrow(const float* from, std::int32_t n, std::byte* to) {
  for (std::int32_t i = 0; i < n; i += 8) {
    const __m256 v = LoadAt(from, i, n);
    const __m128i halves = dtype == KvDtype::kF16 ? NarrowF16(v) : NarrowBF16(v);
    std::byte* const at = to + 2 * std::int64_t{i};
    if (i + 8 <= n) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(at), halves);
    } else {
      alignas(16) std::byte rest[16];
      _mm_store_si128(reinterpret_cast<__m128i*>(rest), halves);
      std::memcpy(at, rest, 2 * static_cast<std::size_t>(n - i));
    }
  }
}

template <KvDtype dtype>
[[PENSTOCK_AVX2]] void Widen(const std::byte* from, std::int32_t n, float* to) {
  for (std::int32_t i = 0; i < n; i += 8) {
    const std::byte* const at = from + 2 * std::int64_t{i};
    __m128i halves;
    if (i + 8 <= n) {
      halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
    } else {
      alignas(16) std::byte rest[16] = {};
      std::memcpy(rest, at, 2 * static_cast<std::size_t>(n - i));
      halves = _mm_load_si128(reinterpret_cast<const __m128i*>(rest));
    }
    const __m256 v =
        dtype == KvDtype::kF16
            ? _mm256_cvtph_ps(halves)
            : _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
    StoreAt(to, i, n, v);
  }
}

void NarrowRow256(KvDtype dtype, const float* from, std::int32_t n, std::byte* to) {
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

void WidenRow256(KvDtype dtype, const std::byte* from, std::int32_t n, float* to) {
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

const ElementwiseTarget kElementwiseAvx2 = {
    .name = "avx2",
    .rms_norm = RmsNorm256,
    .add = Add256,
    .rope = Rope256,
    .gated_activation = GatedActivation256,
    .narrow_row = NarrowRow256,
    .widen_row = WidenRow256,
};

}  // namespace penstock::kernels
