// SPDX-License-Identifier: Apache-2.0
// Products of activations with packed weights: y[r, n] = sum over k of x[r, k] * w[n, k], for one
// row or thousands.
//
// The bits of y[r, n] are a function of row r and of weight row n alone: the order of every sum is
// fixed here and every target (scalar, AVX2, AVX-512, VNNI) follows it, so the same model gives the
// same bits on every CPU, for any number of rows and any split over threads.
//
// int8 activations, formats of 32-blocks, blocks b = 0, 1, ... in ascending order, acc starts at 0:
//   i   = sum over the block of weight level * q         (exact, int32)
//   Q4_0, Q5_0, Q8_0:  (levels centred: level - 8, level - 16, level)
//         acc = fma(float(i), d_b * scale_b, acc)
//   Q4_1, Q5_1:
//         acc = fma(float(i), d_b * scale_b, acc);  acc = fma(m_b, scale_b * float(sum_b), acc)
// K formats, 32 columns at a time, with the super-block's d (and dmin) and integer sub-scales:
//   Q4_K, Q5_K:
//         acc = fma(float(i * sc), d * scale_b, acc);  acc = fma(-(dmin * float(mn)), scale_b *
//         float(sum_b), acc)
//   Q6_K, Q3_K (two halves of 16 columns, each with its own signed sub-scale; levels centred: level
//   - 32, level - 4):
//         acc = fma(float(i_0 * sc_0 + i_1 * sc_1), d * scale_b, acc)
//   Q2_K (two halves; h_j = sum of q over half j):
//         acc = fma(float(i_0 * sc_0 + i_1 * sc_1), d * scale_b, acc)
//         acc = fma(-dmin, scale_b * float(h_0 * mn_0 + h_1 * mn_1), acc)
// float activations (F32, F16, BF16 weights), widened exactly to float: four partial sums p_j over
// k = j mod 4 in ascending k by fma from 0; y = (p_0 + p_1) + (p_2 + p_3). Products written `a * b`
// above are rounded once to float.
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
// thread.
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
