// SPDX-License-Identifier: Apache-2.0
// Finds the CUDA plug-in and the GPUs behind it, or says why there is none. Any thread.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "device/cublas_lt_api.h"
#include "device/cuda_api.h"
#include "device/nccl_api.h"

namespace penstock {

inline constexpr char kCudaPluginFile[] = "libpenstock_cuda.so";

struct LoadedCudaPlugin {
  const CudaPlugin* plugin = nullptr;  // Never unloaded.
  std::string path;
};

// Opens the file at `path`; where that is empty, kCudaPluginFile in the folder of the running
// program, else where the system looks for libraries. NOT_FOUND: no such file (all places looked at
// are named). FAILED_PRECONDITION: it cannot be opened (a library that it needs is missing), or is
// not of this version of the program.
absl::StatusOr<LoadedCudaPlugin> LoadCudaPlugin(const std::string& path);

struct CudaSystem {
  int driver_version = 0;   // 13000 is CUDA 13.0.
  int runtime_version = 0;  // Of the cudart that the plug-in uses.
  std::vector<CudaGpu> gpus;
};

// UNAVAILABLE where there is no driver, one older than cudart needs, or no GPU.
absl::StatusOr<CudaSystem> FindGpus(const CudaPlugin& plugin);
// Of those, whether kernels run on number `gpu`, which counts the GPUs that the process may see
// (CUDA_VISIBLE_DEVICES): UNAVAILABLE where there are fewer (both numbers), or it is older than the
// kernels need (compute capability 8.0).
absl::Status CheckGpu(const CudaSystem& system, int gpu);

// The plug-in's NCCL, with its functions. UNIMPLEMENTED: it has none, with the reason.
absl::StatusOr<const NcclLibrary*> FindNccl(const CudaPlugin& plugin);
// "2.28.9"
std::string NcclVersionText(int version);
// The plug-in's cuBLASLt, likewise.
absl::StatusOr<const CublasLtLibrary*> FindCublasLt(const CudaPlugin& plugin);
// "13.1.0"
std::string CublasLtVersionText(int version);

// "13.0"
std::string CudaVersionText(int version);
// Whether work takes both the same time, and fits both: of one capability, with as many
// multiprocessors and as much memory.
bool Alike(const CudaGpu& a, const CudaGpu& b);
// "NVIDIA H100 80GB HBM3, compute 9.0, 79.1 GiB"
std::string Describe(const CudaGpu& gpu);
// "cudaErrorMemoryAllocation (2)"
std::string CudaErrorText(const CudaPlugin& plugin, int error);

}  // namespace penstock
