// SPDX-License-Identifier: Apache-2.0
// What else a program needs of the CUDA runtime that has its stand-in and no emulated kernels;
// those bring their own (kernels/simt_cudart.cc), which takes the place of this one.
#include <cuda_runtime_api.h>

extern "C" [[gnu::weak]] cudaError_t cudaGetLastError() { return cudaSuccess; }
