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
// 16..31; sum_b, h_0, h_1 are the sums of q there. K formats' d, m (or d_j, m_j of half j) are the
// super-block's d and -dmin times the block's sub-scale and sub-min, both exact in float. Each
// product or fma() below is rounded once, to float; a product written (a * b) that is zero is +0.
//   Q4_0, Q5_0, Q8_0:         t = (float(i) * d)
//   Q4_1, Q5_1, Q4_K, Q5_K:   t = (float(i) * d);  t = fma(m, float(sum_b), t)
//   Q3_K, Q6_K:               t = (float(i_1) * d_1);  t = fma(float(i_0), d_0, t)
//   Q2_K:                     as Q3_K, then t = fma(float(h_0), m_0, t);  t = fma(float(h_1), m_1,
//   t) all:                      acc = fma(t, scale_b, acc)
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
// thread, with up to 192 KiB of its stack.
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
