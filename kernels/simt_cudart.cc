// SPDX-License-Identifier: Apache-2.0
// What launchers call of the CUDA runtime, where kernels/simt.h runs their kernels and no other
// stand-in for the runtime is linked.
#include <cuda_runtime_api.h>

#include "kernels/simt.h"

extern "C" {

cudaError_t cudaGetLastError() { return penstock::simt::LastError(true); }

cudaError_t cudaPeekAtLastError() { return penstock::simt::LastError(false); }

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    return penstock::simt::AllowSharedBytes(kernel, value);
  }
  return cudaSuccess;  // The others are hints.
}
}
