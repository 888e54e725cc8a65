// SPDX-License-Identifier: Apache-2.0
// The plug-in of tests: the stand-in for cudart, and the kernels as kernels/simt.h runs them.
#include "device/cuda_runtime_table.h"
#include "device/cuda_standin.h"
#include "device/nccl_table.h"
#include "kernels/cuda_kernels.h"

namespace penstock::kernels {
namespace {

template <auto kKernel>
struct Opened;
template <typename Result, typename... Arguments, Result (*CudaKernels::*kKernel)(Arguments...)>
struct Opened<kKernel> {
  static Result Run(Arguments... arguments) {
    const cuda_standin::Work work;
    return (kCudaKernels.*kKernel)(arguments...);
  }
};

const CudaKernels kOpened = {
    .embed = Opened<&CudaKernels::embed>::Run,
    .gather_rows = Opened<&CudaKernels::gather_rows>::Run,
    .rms_norm = Opened<&CudaKernels::rms_norm>::Run,
    .rms_norm_add = Opened<&CudaKernels::rms_norm_add>::Run,
    .quantize_rows = Opened<&CudaKernels::quantize_rows>::Run,
    .take_columns = Opened<&CudaKernels::take_columns>::Run,
    .sum_parts = Opened<&CudaKernels::sum_parts>::Run,
    .linear = Opened<&CudaKernels::linear>::Run,
    .gated_linear = Opened<&CudaKernels::gated_linear>::Run,
    .prepare_and_store = Opened<&CudaKernels::prepare_and_store>::Run,
    .attention_scratch_bytes = Opened<&CudaKernels::attention_scratch_bytes>::Run,
    .attention = Opened<&CudaKernels::attention>::Run,
    .encode_kv = Opened<&CudaKernels::encode_kv>::Run,
    .copy_units = Opened<&CudaKernels::copy_units>::Run,
};

}  // namespace
}  // namespace penstock::kernels

extern "C" [[gnu::visibility("default")]] const penstock::CudaPlugin* penstock_cuda_plugin() {
  static const penstock::CudaPlugin plugin = {.version = penstock::kCudaPluginVersion,
                                              .plugin_bytes = sizeof(penstock::CudaPlugin),
                                              .runtime = penstock::kCudaRuntime,
                                              .kernels = &penstock::kernels::kOpened,
                                              .nccl = penstock::LoadNccl};
  return &plugin;
}
