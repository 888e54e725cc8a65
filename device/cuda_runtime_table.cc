// SPDX-License-Identifier: Apache-2.0
#include "device/cuda_runtime_table.h"

#include <cuda_runtime_api.h>

#include <cstring>

namespace penstock {
namespace {

static_assert(kCudaSuccess == cudaSuccess && kCudaOutOfMemory == cudaErrorMemoryAllocation &&
              kCudaStubLibrary == cudaErrorStubLibrary && kCudaNoDevice == cudaErrorNoDevice &&
              kCudaInsufficientDriver == cudaErrorInsufficientDriver &&
              kCudaNotReady == cudaErrorNotReady);

// The error of a call, which the next launch must not find again.
int Taken(cudaError_t error) {
  if (error != cudaSuccess) (void)cudaGetLastError();
  return error;
}

int GetDeviceProperties(CudaGpu* gpu, int device) {
  cudaDeviceProp properties = {};
  if (const int error = Taken(cudaGetDeviceProperties(&properties, device)); error != cudaSuccess) {
    return error;
  }
  static_assert(sizeof(gpu->name) == sizeof(properties.name));
  std::memcpy(gpu->name, properties.name, sizeof(gpu->name));
  gpu->memory_bytes = properties.totalGlobalMem;
  gpu->compute_major = properties.major;
  gpu->compute_minor = properties.minor;
  gpu->multiprocessors = properties.multiProcessorCount;
  return cudaSuccess;
}

int EndCapture(CudaStreamHandle stream, CudaGraphHandle* graph) {
  *graph = nullptr;
  cudaGraph_t captured = nullptr;
  if (const int error = Taken(cudaStreamEndCapture(stream, &captured)); error != cudaSuccess) {
    return error;
  }
  const int error = Taken(cudaGraphInstantiate(graph, captured, 0));
  (void)Taken(cudaGraphDestroy(captured));
  return error;
}

}  // namespace

const CudaRuntime kCudaRuntime = {
    .driver_get_version = [](int* version) { return Taken(cudaDriverGetVersion(version)); },
    .runtime_get_version = [](int* version) { return Taken(cudaRuntimeGetVersion(version)); },
    .get_device_count = [](int* count) { return Taken(cudaGetDeviceCount(count)); },
    .get_device_properties = GetDeviceProperties,
    .get_pci_bus_id = [](char* id, int bytes,
                         int device) { return Taken(cudaDeviceGetPCIBusId(id, bytes, device)); },
    .set_device = [](int device) { return Taken(cudaSetDevice(device)); },
    .mem_get_info = [](std::size_t* free_bytes,
                       std::size_t* total) { return Taken(cudaMemGetInfo(free_bytes, total)); },
    .malloc = [](void** data, std::size_t bytes) { return Taken(cudaMalloc(data, bytes)); },
    .free = [](void* data) { return Taken(cudaFree(data)); },
    .malloc_host = [](void** data,
                      std::size_t bytes) { return Taken(cudaMallocHost(data, bytes)); },
    .free_host = [](void* data) { return Taken(cudaFreeHost(data)); },
    .memset_async =
        [](void* data, int value, std::size_t bytes, CudaStreamHandle stream) {
          return Taken(cudaMemsetAsync(data, value, bytes, stream));
        },
    .memcpy_async =
        [](void* to, const void* from, std::size_t bytes, CudaStreamHandle stream) {
          return Taken(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream));
        },
    .stream_create =
        [](CudaStreamHandle* stream) {
          return Taken(cudaStreamCreateWithFlags(stream, cudaStreamNonBlocking));
        },
    .stream_destroy = [](CudaStreamHandle stream) { return Taken(cudaStreamDestroy(stream)); },
    .stream_synchronize =
        [](CudaStreamHandle stream) { return Taken(cudaStreamSynchronize(stream)); },
    .stream_wait_event =
        [](CudaStreamHandle stream, CudaEventHandle event) {
          return Taken(cudaStreamWaitEvent(stream, event, 0));
        },
    .event_create =
        [](CudaEventHandle* event) {
          return Taken(cudaEventCreateWithFlags(event, cudaEventDisableTiming));
        },
    .event_create_timed = [](CudaEventHandle* event) { return Taken(cudaEventCreate(event)); },
    .event_destroy = [](CudaEventHandle event) { return Taken(cudaEventDestroy(event)); },
    .event_record = [](CudaEventHandle event,
                       CudaStreamHandle stream) { return Taken(cudaEventRecord(event, stream)); },
    .event_query = [](CudaEventHandle event) { return Taken(cudaEventQuery(event)); },
    .event_elapsed =
        [](float* milliseconds, CudaEventHandle begin, CudaEventHandle end) {
          return Taken(cudaEventElapsedTime(milliseconds, begin, end));
        },
    .stream_begin_capture =
        [](CudaStreamHandle stream) {
          // Of this thread: others may take memory meanwhile.
          return Taken(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
        },
    .stream_end_capture = EndCapture,
    .graph_launch = [](CudaGraphHandle graph,
                       CudaStreamHandle stream) { return Taken(cudaGraphLaunch(graph, stream)); },
    .graph_destroy = [](CudaGraphHandle graph) { return Taken(cudaGraphExecDestroy(graph)); },
    .get_error_name = [](int error) { return cudaGetErrorName(static_cast<cudaError_t>(error)); },
};

}  // namespace penstock
