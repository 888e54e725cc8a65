// SPDX-License-Identifier: Apache-2.0
// Packed weights and activations as a library's matrix products take them: rows of one type, one after
// another.
//
// All pointers are device memory. Calls return when the work is in `stream`; they allocate nothing
// and wait for nothing.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/activations.h"
#include "kernels/packed_matrix.h"

namespace penstock::kernels {

// out row i = row i of `matrix` as UnpackRow gives it, in DenseFormat(matrix.format). out:
// [matrix.rows, matrix.cols], rows out_stride elements apart (a multiple of 2), aligned to 8; what lies
// between rows is left alone.
cudaError_t UnpackRowsCuda(const PackedMatrix& matrix, std::byte* out, std::int32_t out_stride,
                           cudaStream_t stream);

// out row i = row i of x, of its floats where it has them, else q * scale, in `format`: kF16 or kBF16.
// x: [rows, x.cols]. out as above.
cudaError_t RoundRowsCuda(const Activations& x, std::int32_t rows, WeightFormat format,
                          std::byte* out, std::int32_t out_stride, cudaStream_t stream);

}  // namespace penstock::kernels
