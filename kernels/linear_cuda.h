// SPDX-License-Identifier: Apache-2.0
// Products with packed weights on a GPU: kernels/linear.h's sums in its order, so the bits are those
// of the CPU, whichever kernel and launch shape computes them.
//
// All pointers inside the arguments are device memory. Calls return when the work is in `stream`;
// they allocate nothing and wait for nothing. Shapes are the caller's to get right, as
// kernels/ops.h's Ops checks them: cudaErrorInvalidValue where they are not.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/activations.h"
#include "kernels/elementwise.h"
#include "kernels/packed_matrix.h"

namespace penstock::kernels {

// As Ops::Linear: up to kCudaLinearOutputsMax products of one x. x: [rows, matrix->cols] in the
// form that each matrix takes.
cudaError_t LinearCuda(std::span<const LinearOutput> outputs, const Activations& x,
                       std::int32_t rows, cudaStream_t stream);

// As Ops::GatedLinear: out = activation(x * gate^T) * (x * up^T), in each form that `out` has.
// scratch: [rows, 2 * gate.rows], left undefined.
cudaError_t GatedLinearCuda(const Activations& x, std::int32_t rows, const PackedMatrix& gate,
                            const PackedMatrix& up, Activation activation, const Activations& out,
                            float* scratch, cudaStream_t stream);

}  // namespace penstock::kernels
