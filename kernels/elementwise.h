// SPDX-License-Identifier: Apache-2.0
// What a transformer does to one row at a time: norms, rotary positions, activations, additions.
// Every function works on one row (or one head of it) on the caller's thread, runs the best target
// of this CPU, and gives the same bits on every target: sums over a row keep 16 partial sums,
// element i into sum i mod 16, in ascending order by fma from 0, which are then added in pairs at
// distance 8, 4, 2, 1.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "base/kv_dtype.h"

namespace penstock::kernels {

// y[i] = x[i] * (1 / sqrt(mean of x^2 + eps)) * w[i]. Zhang and Sennrich 2019,
// https://arxiv.org/abs/1910.07467. x, w, y: [n]; y may be x.
void RmsNorm(const float* x, const float* w, std::int32_t n, float eps, float* y);

// x[i] += y[i]
void Add(const float* y, std::int32_t n, float* x);

enum class RopePairs : std::uint8_t {
  kAdjacent,  // (x[2i], x[2i+1]): llama in GGUF, whose Q and K rows are permuted for it.
  kHalves,    // (x[i], x[i + n/2]): Hugging Face layouts, gemma and qwen everywhere.
};
// Rotates pair i = (a, b) by position * inverse_frequency[i], to (fma(a, cos, -(b * sin)),
// fma(b, cos, a * sin)); cos and sin are [rotary_dim / 2] tables for
// this position. Elements from rotary_dim on stay. x: [head_dim]. Su et al. 2021,
// https://arxiv.org/abs/2104.09864.
void Rope(RopePairs pairs, const float* cos, const float* sin, std::int32_t rotary_dim, float* x);

enum class Activation : std::uint8_t { kSilu, kGeluTanh };
// gate[i] = activation(gate[i]) * up[i], with exp as kernels/exp.h has it.
//   silu(x) = x / (1 + exp(-x));  gelu(x) = x / (1 + exp(-2 * 0.7978845608 * (x + 0.044715 x^3))),
//   the inner sum as fma(0.044715, (x * x) * x, x), and -2 * 0.7978845608 one float
void GatedActivation(Activation activation, const float* up, std::int32_t n, float* gate);

// Converts one row of K or V to the pool's type, rounding to even; F16 saturates (base/float16.h).
// from: [n] floats, to: [n] of dtype, scale: [ScaleBytes(dtype)], so of no use but with int8.
// Widening is exact.
//
// To int8 as QuantizeInt8 (kernels/kv_codec_quant.h) does it: scale = max|x| / 127, rounded up to
// F16, and level = round(x / scale). What is beyond 127 * 65,504 becomes that. A row that holds an
// infinity or a NaN becomes NaNs: zeros of scale NaN. n is then a multiple of 8 and at least that.
void NarrowRow(KvDtype dtype, const float* from, std::int32_t n, std::byte* to, std::byte* scale);
void WidenRow(KvDtype dtype, const std::byte* from, const std::byte* scale, std::int32_t n,
              float* to);

}  // namespace penstock::kernels
