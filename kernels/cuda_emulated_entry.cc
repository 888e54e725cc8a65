// SPDX-License-Identifier: Apache-2.0
// The plug-in of tests: the stand-in for cudart, and the kernels as kernels/simt.h runs them.
#include <span>
#include <tuple>
#include <type_traits>
#include <vector>

#include "device/cublas_lt_table.h"
#include "device/cuda_runtime_table.h"
#include "device/cuda_standin.h"
#include "device/cuda_standin_graph.h"
#include "device/cudnn_table.h"
#include "device/nccl_table.h"
#include "kernels/cuda_kernels.h"

namespace penstock::kernels {
namespace {

// An argument as a graph keeps it: what it is read from is gone by then.
template <typename T>
T Keep(const T& argument) {
  return argument;
}
template <typename T>
std::vector<T> Keep(std::span<const T> argument) {
  return {argument.begin(), argument.end()};
}

template <auto kKernel>
struct Opened;
template <typename Result, typename... Arguments, Result (*CudaKernels::*kKernel)(Arguments...)>
struct Opened<kKernel> {
  static Result Run(Arguments... arguments) {
    using Last = std::tuple_element_t<sizeof...(Arguments) - 1, std::tuple<Arguments...>>;
    if constexpr (std::is_same_v<Last, CudaStreamHandle>) {
      const auto run = [kept = std::tuple(Keep(arguments)...)] {
        const cuda_standin::Work work;
        (void)std::apply(kCudaKernels.*kKernel, kept);
      };
      if (cuda_standin::Note(std::get<sizeof...(Arguments) - 1>(std::tie(arguments...)), run)) {
        return kCudaSuccess;
      }
      cuda_standin::Await(std::get<sizeof...(Arguments) - 1>(std::tie(arguments...)));
    }
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
    .narrow = Opened<&CudaKernels::narrow>::Run,
    .widen = Opened<&CudaKernels::widen>::Run,
    .draw_scratch_bytes = Opened<&CudaKernels::draw_scratch_bytes>::Run,
    .draw = Opened<&CudaKernels::draw>::Run,
    .encode_kv = Opened<&CudaKernels::encode_kv>::Run,
    .decode_kv = Opened<&CudaKernels::decode_kv>::Run,
    .split_kv = Opened<&CudaKernels::split_kv>::Run,
    .join_kv = Opened<&CudaKernels::join_kv>::Run,
    .copy_units = Opened<&CudaKernels::copy_units>::Run,
    .gate_rows = Opened<&CudaKernels::gate_rows>::Run,
    .unpack_rows = Opened<&CudaKernels::unpack_rows>::Run,
    .round_rows = Opened<&CudaKernels::round_rows>::Run,
};

}  // namespace
}  // namespace penstock::kernels

extern "C" [[gnu::visibility("default")]] const penstock::CudaPlugin* penstock_cuda_plugin() {
  static const penstock::CudaPlugin plugin = {.version = penstock::kCudaPluginVersion,
                                              .plugin_bytes = sizeof(penstock::CudaPlugin),
                                              .runtime = penstock::kCudaRuntime,
                                              .kernels = &penstock::kernels::kOpened,
                                              .nccl = penstock::LoadNccl,
                                              .cublas_lt = penstock::LoadCublasLt,
                                              .cudnn = penstock::LoadCudnn};
  return &plugin;
}
