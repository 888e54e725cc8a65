// SPDX-License-Identifier: Apache-2.0
// The per-head work before attention on a GPU (Ops::PrepareAndStore): norms and rotates q and k, and
// writes K and V rows to their pages; the bits of kernels/elementwise.h's RmsNorm, Rope and
// NarrowRow.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/batch_cuda.h"

namespace penstock::kernels {

// For each of kv.rows: q and k are changed in place; k and v go to the row's page, of pool 0. k_dim
// and v_dim are up to 1,024.
cudaError_t PrepareAndStoreCuda(const CudaPrepare& qkv, const CudaKv& kv, cudaStream_t stream);

}  // namespace penstock::kernels
