// SPDX-License-Identifier: Apache-2.0
// libpenstock_cuda.so: cudart and the kernels that nvcc compiled.
#include "device/cublas_lt_table.h"
#include "device/cuda_runtime_table.h"
#include "device/cudnn_table.h"
#include "device/nccl_table.h"
#include "kernels/cuda_kernels.h"

extern "C" [[gnu::visibility("default")]] const penstock::CudaPlugin* penstock_cuda_plugin() {
  static const penstock::CudaPlugin plugin = {.version = penstock::kCudaPluginVersion,
                                              .plugin_bytes = sizeof(penstock::CudaPlugin),
                                              .runtime = penstock::kCudaRuntime,
                                              .kernels = &penstock::kernels::kCudaKernels,
                                              .nccl = penstock::LoadNccl,
                                              .cublas_lt = penstock::LoadCublasLt,
                                              .cudnn = penstock::LoadCudnn};
  return &plugin;
}
