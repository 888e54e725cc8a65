// SPDX-License-Identifier: Apache-2.0
// Floats as numbers of 16 bits and back, on a GPU: the bits of NarrowRow and WidenRow of
// kernels/elementwise.h.
//
// Pointers are device memory, aligned to 16. Calls return when the work is in `stream`.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "base/kv_dtype.h"

namespace penstock::kernels {

// dtype: F16 or BF16; n: a multiple of 8. x: [n]; out: [n], apart.
cudaError_t NarrowCuda(const float* x, std::int64_t n, KvDtype dtype, std::byte* out,
                       cudaStream_t stream);
cudaError_t WidenCuda(const std::byte* x, std::int64_t n, KvDtype dtype, float* out,
                      cudaStream_t stream);

}  // namespace penstock::kernels
