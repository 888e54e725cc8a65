// SPDX-License-Identifier: Apache-2.0
// What nvcc's host code calls of cudart, for a library in cudart's place (device/cuda_standin.h)
// that has the emulated kernels: a program or plug-in that nvcc built runs as it is, and its launches
// go to the emulated kernels of the same names. A launch of a kernel that is not there fails with
// cudaErrorInvalidDeviceFunction, and says which on standard error.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <functional>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "device/cuda_standin.h"
#include "device/cuda_standin_graph.h"
#include "kernels/simt.h"
#include "kernels/simt_by_name.h"

namespace penstock::simt {
namespace {

struct Registered {
  std::string name;
  NamedKernel kernel;  // Once it was asked for.
  bool asked = false;
};

struct Registry {
  std::mutex mutex;
  std::unordered_map<const void*, Registered> kernels;  // By their host functions.
};
Registry& TheRegistry() {
  static Registry* const registry = new Registry;  // Programs register before main.
  return *registry;
}

// Null, after saying why, where it cannot be.
const Registered* Find(const void* host) {
  Registry& registry = TheRegistry();
  const std::lock_guard lock(registry.mutex);
  const auto found = registry.kernels.find(host);
  if (found == registry.kernels.end()) {
    std::fprintf(stderr, "stand-in for cudart: a launch of something that was never registered\n");
    return nullptr;
  }
  Registered& registered = found->second;
  if (!std::exchange(registered.asked, true)) registered.kernel = FindKernel(registered.name);
  if (registered.kernel.kernel == nullptr) {
    std::fprintf(stderr, "stand-in for cudart: %s\n", registered.kernel.why.c_str());
    return nullptr;
  }
  return &registered;
}

struct Shape {
  dim3 grid, block;
  std::size_t shared_bytes = 0;
  bool early = false;
};

void Run(const Registered& registered, const Shape& shape, const std::function<void()>& call) {
  const cuda_standin::Work work;
  RunGrid(
      {registered.name.c_str(),
       registered.kernel.kernel,
       shape.grid,
       shape.block,
       shape.shared_bytes,
       shape.early,
       {"its launcher", 0}},
      [](const void* closure) { (*static_cast<const std::function<void()>*>(closure))(); }, &call);
}

cudaError_t LaunchNamed(const void* host, const Shape& shape, void* const* arguments,
                        cudaStream_t stream) {
  const Registered* const found = Find(host);
  if (found == nullptr) return cudaErrorInvalidDeviceFunction;
  const NamedKernel& kernel = found->kernel;
  const auto run = [found, shape, call = kernel.bind(kernel.kernel, arguments)] {
    Run(*found, shape, call);
  };
  if (cuda_standin::Note(stream, run)) return cudaSuccess;
  cuda_standin::Await(stream);
  run();
  if (const std::string failure = TakeFailure(); !failure.empty()) {
    std::fprintf(stderr, "stand-in for cudart: %s\n", failure.c_str());
  }
  return LastError(false);
}

struct Configured {
  Shape shape;
  cudaStream_t stream;
};
thread_local std::vector<Configured> t_configured;

}  // namespace
}  // namespace penstock::simt

using penstock::simt::Shape;

extern "C" {

void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterVar(void**, char*, char*, const char*, int, std::size_t, int, int) {}

void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*,
                            dim3*, dim3*, int*) {
  penstock::simt::Registry& registry = penstock::simt::TheRegistry();
  const std::lock_guard lock(registry.mutex);
  registry.kernels[host].name = name;
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, std::size_t shared_bytes,
                                     cudaStream_t stream) {
  penstock::simt::t_configured.push_back({{grid, block, shared_bytes, false}, stream});
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, std::size_t* shared_bytes,
                                       void* stream) {
  if (penstock::simt::t_configured.empty()) return cudaErrorMissingConfiguration;
  const penstock::simt::Configured last = penstock::simt::t_configured.back();
  penstock::simt::t_configured.pop_back();
  *grid = last.shape.grid;
  *block = last.shape.block;
  *shared_bytes = last.shape.shared_bytes;
  *static_cast<cudaStream_t*>(stream) = last.stream;
  return cudaSuccess;
}

cudaError_t cudaLaunchKernel(const void* host, dim3 grid, dim3 block, void** arguments,
                             std::size_t shared_bytes, cudaStream_t stream) {
  return penstock::simt::LaunchNamed(host, {grid, block, shared_bytes, false}, arguments, stream);
}
// A cudaKernel_t is the kernel's host function here.
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* host) {
  *kernel = static_cast<cudaKernel_t>(const_cast<void*>(host));
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments,
                               std::size_t shared_bytes, cudaStream_t stream) {
  return cudaLaunchKernel(kernel, grid, block, arguments, shared_bytes, stream);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* host,
                                void** arguments) {
  Shape shape = {config->gridDim, config->blockDim, config->dynamicSmemBytes, false};
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config->attrs[i];
    shape.early |= attribute.id == cudaLaunchAttributeProgrammaticStreamSerialization &&
                   attribute.val.programmaticStreamSerializationAllowed != 0;
  }
  return penstock::simt::LaunchNamed(host, shape, arguments, config->stream);
}

cudaError_t cudaGetLastError() { return penstock::simt::LastError(true); }
cudaError_t cudaPeekAtLastError() { return penstock::simt::LastError(false); }

cudaError_t cudaFuncSetAttribute(const void* host, cudaFuncAttribute attribute, int value) {
  const penstock::simt::Registered* const found = penstock::simt::Find(host);
  if (found == nullptr) return cudaErrorInvalidDeviceFunction;
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;  // A hint.
  return penstock::simt::AllowSharedBytes(found->kernel.kernel, value);
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (attribute != cudaDevAttrComputeCapabilityMajor) return cudaErrorNotSupported;
  cudaDeviceProp properties = {};
  const cudaError_t error = cudaGetDeviceProperties(&properties, device);
  *value = properties.major;
  return error;
}
}
