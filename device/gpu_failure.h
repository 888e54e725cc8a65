// SPDX-License-Identifier: Apache-2.0
// A GPU that fails under work, said to a person. Nothing of the GPU can be used by the process from
// then on (CUDA gives the same error from every later call), so it ends, with one line that names
// the GPU, CUDA's error and what to do.
//
// Pure functions.
#pragma once

#include <string>
#include <string_view>

#include "base/time.h"

namespace penstock {

// Ends the process, or, in tests, takes note. Any thread, and several at once. Null: nobody is told,
// and whoever needs the GPU CHECKs.
using OnGpuFailed = void (*)(const std::string& text);

struct FailedGpu {
  int number = 0;  // As --device counts.
  std::string_view name = {};
  std::string_view bus_id = {};  // Empty: not known.
};

// "GPU cuda:1 (NVIDIA H100 80GB HBM3, PCI 0000:3b:00.0)".
std::string GpuText(const FailedGpu& gpu);

// "GPU cuda:1 (NVIDIA H100 80GB HBM3, PCI 0000:3b:00.0) was lost while computing:
// cudaErrorECCUncorrectable (214): its memory has ...". `doing`: "computing"; `error`, a cudaError_t,
// and `error_text` are one error.
std::string LostGpuText(const FailedGpu& gpu, std::string_view doing, int error,
                        std::string_view error_text);
// The same where a step that has begun finds no memory, of the GPU or pinned; `what` says how much.
std::string FullGpuText(const FailedGpu& gpu, std::string_view what);
// The same where CUDA gives no error, but a call for the GPU has not returned for so long.
std::string SilentGpuText(const FailedGpu& gpu, Duration waited);
// The same where it cannot be known which of several GPUs failed: what they exchange does not come,
// and each is well when asked. `why` has NCCL's error and the GPU that got it, or who waited for whom.
std::string PartedGpusText(std::string_view gpus, std::string_view why);

}  // namespace penstock
