// SPDX-License-Identifier: Apache-2.0
// What a forward pass does to whole rows on a GPU: kernels/ops.h's operations of the same names, and
// their bits (the orders of kernels/elementwise.h and kernels/activations.h).
//
// All pointers are device memory. Calls return when the work is in `stream`; they allocate nothing
// and wait for nothing.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/activations.h"
#include "kernels/elementwise.h"
#include "kernels/packed_matrix.h"

namespace penstock::kernels {

// x[r] = table row tokens[r] * scale. tokens: [rows], in range. x: [rows, table.cols].
cudaError_t EmbedCuda(const PackedMatrix& table, const std::int32_t* tokens, std::int32_t rows,
                      float scale, float* x, cudaStream_t stream);

// out row i = x row index[i]. x: [*, cols]; index: [rows]; out: [rows, cols], apart from x.
cudaError_t GatherRowsCuda(const float* x, std::int32_t cols, const std::int32_t* index,
                           std::int32_t rows, float* out, cudaStream_t stream);

// out = RmsNorm(x) * w, in each form that `out` has. x: [rows, out.cols], may be out.f32.
cudaError_t RmsNormCuda(const float* x, const float* w, float eps, std::int32_t rows,
                        const Activations& out, cudaStream_t stream);

// x += RmsNorm(y) * w. x, y: [rows, cols], apart.
cudaError_t RmsNormAddCuda(const float* y, const float* w, float eps, std::int32_t rows,
                           std::int32_t cols, float* x, cudaStream_t stream);

// The int8 form of x; out.f32 is not written. x: [rows, out.cols].
cudaError_t QuantizeRowsCuda(const float* x, std::int32_t rows, const Activations& out,
                             cudaStream_t stream);

// out = activation(gate) * up, in each form that `out` has. gate, up: [rows, out.cols].
cudaError_t GateRowsCuda(const float* gate, const float* up, Activation activation,
                         std::int32_t rows, const Activations& out, cudaStream_t stream);

// out row r = columns [first, first + out.cols) of row r of x, in each form that `out` has. x:
// [rows, cols], apart from `out`.
cudaError_t TakeColumnsCuda(const float* x, std::int32_t cols, std::int32_t first,
                            std::int32_t rows, const Activations& out, cudaStream_t stream);

// y = parts[0] + parts[1] + ..., in that order; with `add`, y += that. parts: [count, n], count at
// least 1. y: [n], apart.
cudaError_t SumPartsCuda(const float* parts, std::int32_t count, std::int64_t n, bool add, float* y,
                         cudaStream_t stream);

}  // namespace penstock::kernels
