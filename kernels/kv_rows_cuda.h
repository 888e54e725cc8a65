// SPDX-License-Identifier: Apache-2.0
// The per-head work before attention on a GPU (Ops::PrepareAndStore): norms and rotates q and k, and
// writes K and V rows to their pages; the bits of kernels/elementwise.h's RmsNorm, Rope and
// NarrowRow.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/batch_cuda.h"
#include "kernels/elementwise.h"

namespace penstock::kernels {

// The rotations of a batch's rows.
struct CudaRope {
  RopePairs pairs = RopePairs::kHalves;
  std::int32_t rotary_dim = 0;  // Even, at most k_dim.
  const float* cos = nullptr;   // [row_count, rotary_dim / 2], device; null: no positions.
  const float* sin = nullptr;   // The same.
};

// For each of kv.rows: q [rows, qo_heads * k_dim] and k [rows, kv_heads * k_dim] are changed in
// place; k and v [rows, kv_heads * v_dim] go to the row's page, of pool 0. q_norm, k_norm: [k_dim] RMS
// norm weights per head, or null. k_dim is up to 1,024.
cudaError_t PrepareAndStoreCuda(float* q, float* k, const float* v, std::int32_t qo_heads,
                                const float* q_norm, const float* k_norm, float norm_eps,
                                const CudaRope& rope, const CudaKv& kv, cudaStream_t stream);

}  // namespace penstock::kernels
