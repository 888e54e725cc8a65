// SPDX-License-Identifier: Apache-2.0
// Products of activations with packed weights: y[r, n] = sum over k of x[r, k] * w[n, k], for one
// row or thousands.
//
// The bits of y[r, n] are a function of row r and of weight row n alone: the order of every sum is
// fixed here and every target (scalar, AVX2, AVX-512, VNNI) follows it, so the same model gives the
// same bits on every CPU, for any number of rows and any split over threads.
//
// int8 activations, 32 columns at a time: blocks b = 0, 1, ... in ascending order, acc starts at 0.
// i = sum over the block of weight level * q, exact in int32, with centred levels (level - 8 for
// Q4_0, - 16 for Q5_0, - 4 for Q3_K, - 32 for Q6_K). i_0, i_1 are the same over columns 0..15 and
// 16..31, h_0, h_1 the sums of q there. Each product or fma() below is rounded once, to float.
//   Q4_0, Q5_0, Q8_0:
//         acc = fma(float(i), d * scale_b, acc)
//   Q4_1, Q5_1; Q4_K, Q5_K with d = d * sub-scale and m = -(dmin * sub-min), both exact in float:
//         acc = fma(float(i), d * scale_b, acc);  acc = fma(m, scale_b * float(sum_b), acc)
//   Q3_K, Q6_K with d_j = d * signed sub-scale of half j, exact in float:
//         t = fma(float(i_0), d_0, float(i_1) * d_1);  acc = fma(t, scale_b, acc)
//   Q2_K with d_j, m_j likewise:
//         t = fma(float(i_0), d_0, float(i_1) * d_1);  t = fma(float(h_0), m_0, t)
//         t = fma(float(h_1), m_1, t);  acc = fma(t, scale_b, acc)
// float activations (F32, F16, BF16 weights), widened exactly to float: four partial sums p_j over
// k = j mod 4 in ascending k by fma from 0; y = (p_0 + p_1) + (p_2 + p_3).
// A NaN or infinity in an input gives NaN or infinity; which NaN is not promised.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "kernels/activations.h"
#include "kernels/packed_matrix.h"

namespace penstock::kernels {

// Computes panels [panel_begin, panel_end) (16 weight rows each) of the product for all rows of x:
//   y[r * y_stride + n] = product, n from panel_begin * 16, up to min(panel_end * 16, w.rows).
// `x`: [rows, w.cols], in the form that w takes. Runs the best target of this CPU on the caller's
// thread, with up to 160 KiB of its stack.
void MultiplyPanels(const PackedMatrix& w, const Activations& x, std::int32_t rows,
                    std::int32_t panel_begin, std::int32_t panel_end, float* y,
                    std::int64_t y_stride);

using MultiplyPanelsFn = void (*)(const PackedMatrix& w, const Activations& x, std::int32_t rows,
                                  std::int32_t panel_begin, std::int32_t panel_end, float* y,
                                  std::int64_t y_stride);
struct MultiplyPanelsTarget {
  std::string_view name;
  MultiplyPanelsFn run;
};
// All this CPU can run: scalar first, best last.
std::span<const MultiplyPanelsTarget> MultiplyPanelsTargets();

}  // namespace penstock::kernels
