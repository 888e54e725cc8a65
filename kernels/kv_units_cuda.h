// SPDX-License-Identifier: Apache-2.0
// Launches of kernels that work on a block of KV by its units: the K or the V of one head and cache
// layer. For kernel files only.
#pragma once

#include "kernels/gpu.h"
//
#include <type_traits>

#include "base/kv_dtype.h"

namespace penstock::kernels {

// One block of threads per unit: x is twice the head, and one more for V; y the cache layer.
// kernel_of(std::integral_constant<KvDtype, ...>) gives the kernel of that element type. Gives what the
// launch said; cudaErrorInvalidValue for int8, which no codec takes apart, and for blocks of less than 8
// tokens.
template <typename KernelOf, typename Arguments>
cudaError_t LaunchOnUnits(const Arguments& a, const KernelOf& kernel_of, int threads,
                          cudaStream_t stream) {
  if (a.block.block_tokens < 8) return cudaErrorInvalidValue;
  const auto launch = [&](auto dtype) {
    const dim3 grid(static_cast<unsigned>(2 * a.block.kv_heads),
                    static_cast<unsigned>(a.block.cache_layers));
    const auto kernel = kernel_of(dtype);
    GPU_LAUNCH(kernel, grid, dim3(static_cast<unsigned>(threads)), 0, stream, a);
    return cudaGetLastError();
  };
  switch (a.block.dtype) {
    case KvDtype::kF16:
      return launch(std::integral_constant<KvDtype, KvDtype::kF16>());
    case KvDtype::kBF16:
      return launch(std::integral_constant<KvDtype, KvDtype::kBF16>());
    case KvDtype::kF32:
      return launch(std::integral_constant<KvDtype, KvDtype::kF32>());
    case KvDtype::kInt8:
      break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace penstock::kernels
