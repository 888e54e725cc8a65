// SPDX-License-Identifier: Apache-2.0
// A weight matrix [rows, cols], repacked so that one vector register holds the same columns of 16
// rows. One packing serves every CPU target, so that workers of one host can share it whatever each
// one runs. Nothing is lost: every weight keeps the exact value that its file gives it.
//
// A PackedMatrix does not own its bytes: the model's weights arena does (model/weights.h), and
// outlives it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/weight_format.h"

namespace penstock::kernels {

inline constexpr std::int32_t kPanelRows =
    16;  // Rows that lie side by side; a matrix is padded to a multiple.
inline constexpr std::int32_t kQuantBlock = 32;  // Columns that share one activation scale.

struct PackedMatrix {
  WeightFormat format = WeightFormat::kF32;
  std::int32_t rows = 0;
  std::int32_t cols = 0;
  const std::byte* data = nullptr;  // PackedBytes(format, rows, cols) bytes, aligned to 64.

  // Whether products with it take int8 activations (all quantized formats) or float ones (F32, F16,
  // BF16).
  bool takes_int8() const {
    return format != WeightFormat::kF32 && format != WeightFormat::kF16 &&
           format != WeightFormat::kBF16;
  }
};

// Bytes of the packed form; at most 3 % above the file's but for the padding to 16 rows. (Q2_K and
// Q3_K are widened to 4 bits.)
std::size_t PackedBytes(WeightFormat format, std::int32_t rows, std::int32_t cols);

// Packs rows [row_begin, row_begin + rows.size / row bytes) of a matrix into `to` (PackedBytes of
// the whole matrix). row_begin is a multiple of kPanelRows, and the piece ends on one or at the
// last row: pieces may be packed by several threads, and a caller can drop each piece of a mapped
// file when it is done. `from`: the piece in file layout, row after row.
void PackRows(WeightFormat format, std::int32_t rows, std::int32_t cols, std::int32_t row_begin,
              std::span<const std::byte> from, std::byte* to);

// out[i] = the exact value of weight (row, i) as DequantizeRow gives it. `out`: [cols].
void UnpackRow(const PackedMatrix& matrix, std::int32_t row, std::span<float> out);

// One of several products of the same input.
struct LinearOutput {
  const PackedMatrix* matrix = nullptr;
  const float* bias = nullptr;  // [matrix->rows] or null
  float* y = nullptr;           // [rows, matrix->rows]
  bool add = false;             // y += instead of y =: the residual.
};
// So many of them are computed side by side by one launch on a GPU.
inline constexpr std::size_t kCudaLinearOutputsMax = 3;

}  // namespace penstock::kernels
