// SPDX-License-Identifier: Apache-2.0
// What libpenstock_cuda.so gives to the program: tables of plain functions, and nothing else
// crosses between the two. The program needs no CUDA header to be built and no CUDA library to
// start; the plug-in, which is linked with cudart and holds the kernels, is opened at run time
// (device/cuda_plugin.h).
//
// Both sides are built from one source tree: a table of another version or size is refused. Any
// thread may call; the tables live as long as the process.
#pragma once

#include <cstddef>
#include <cstdint>

// cudart's own names for what cudaStream_t, cudaEvent_t and cudaGraphExec_t point to.
struct CUstream_st;
struct CUevent_st;
struct CUgraphExec_st;

namespace penstock {

namespace kernels {
struct CudaKernels;  // kernels/cuda_kernels.h
}

struct NcclLibrary;      // device/nccl_api.h
struct CublasLtLibrary;  // device/cublas_lt_api.h
struct CudnnLibrary;     // device/cudnn_api.h

using CudaStreamHandle = CUstream_st*;
using CudaEventHandle = CUevent_st*;
using CudaGraphHandle = CUgraphExec_st*;

struct CudaGpu {
  char name[256] = {};
  std::size_t memory_bytes = 0;
  std::int32_t compute_major = 0;
  std::int32_t compute_minor = 0;
  std::int32_t multiprocessors = 0;
};

// cudart's functions by their names. A thread calls set_device first; device 0 it need not. All but
// the last give a cudaError_t, 0 for success. An asynchronous failure may come back from any later
// call.
struct CudaRuntime {
  int (*driver_get_version)(int* version);  // 0 without a driver; 12040 is CUDA 12.4.
  int (*runtime_get_version)(int* version);
  int (*get_device_count)(int* count);
  int (*get_device_properties)(CudaGpu* gpu, int device);
  int (*get_pci_bus_id)(char* id, int bytes, int device);  // "0000:3b:00.0"; 13 bytes are enough.
  int (*set_device)(int device);                           // Of the calling thread, from then on.
  int (*mem_get_info)(std::size_t* free_bytes, std::size_t* total_bytes);
  int (*malloc)(void** data, std::size_t bytes);
  int (*free)(void* data);
  int (*malloc_host)(void** data, std::size_t bytes);  // Pinned.
  int (*free_host)(void* data);
  int (*memset_async)(void* data, int value, std::size_t bytes, CudaStreamHandle stream);
  // Either side may be of the host (cudaMemcpyDefault).
  int (*memcpy_async)(void* to, const void* from, std::size_t bytes, CudaStreamHandle stream);
  int (*stream_create)(CudaStreamHandle* stream);  // Does not wait for the default stream.
  int (*stream_destroy)(CudaStreamHandle stream);
  int (*stream_synchronize)(CudaStreamHandle stream);
  int (*stream_wait_event)(CudaStreamHandle stream, CudaEventHandle event);
  int (*event_create)(CudaEventHandle* event);  // Without timing.
  int (*event_create_timed)(CudaEventHandle* event);
  int (*event_destroy)(CudaEventHandle event);
  int (*event_record)(CudaEventHandle event, CudaStreamHandle stream);
  int (*event_query)(CudaEventHandle event);
  // From one timed event to another, both reached.
  int (*event_elapsed)(float* milliseconds, CudaEventHandle begin, CudaEventHandle end);
  // Between these two, what the calling thread puts into the stream is noted, not done.
  int (*stream_begin_capture)(CudaStreamHandle stream);
  int (*stream_end_capture)(CudaStreamHandle stream, CudaGraphHandle* graph);  // Instantiated.
  int (*graph_launch)(CudaGraphHandle graph, CudaStreamHandle stream);
  int (*graph_destroy)(CudaGraphHandle graph);
  const char* (*get_error_name)(int error);  // "cudaErrorMemoryAllocation"
};

// The values of cudaError_t that the program tells apart.
inline constexpr int kCudaSuccess = 0;
inline constexpr int kCudaOutOfMemory = 2;
inline constexpr int kCudaStubLibrary = 34;
inline constexpr int kCudaInsufficientDriver = 35;
inline constexpr int kCudaNoDevice = 100;
inline constexpr int kCudaNotReady = 600;

inline constexpr std::uint32_t kCudaPluginVersion = 7;

struct CudaPlugin {
  std::uint32_t version = kCudaPluginVersion;
  std::uint32_t plugin_bytes = 0;  // sizeof(CudaPlugin)
  CudaRuntime runtime = {};
  const kernels::CudaKernels* kernels = nullptr;
  // Looks for NCCL when first called, and says what it found. Null in a plug-in of tests without
  // it.
  const NcclLibrary* (*nccl)() = nullptr;
  // Likewise of cuBLASLt, and of cuDNN.
  const CublasLtLibrary* (*cublas_lt)() = nullptr;
  const CudnnLibrary* (*cudnn)() = nullptr;
};

using CudaPluginEntry = const CudaPlugin* (*)();
inline constexpr char kCudaPluginEntry[] = "penstock_cuda_plugin";

}  // namespace penstock

// The one symbol of a plug-in.
extern "C" const penstock::CudaPlugin* penstock_cuda_plugin();
