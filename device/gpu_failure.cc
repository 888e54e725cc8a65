// SPDX-License-Identifier: Apache-2.0
#include "device/gpu_failure.h"

#include <array>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace penstock {
namespace {

struct Advice {
  int error;  // cudaError_t.
  std::string_view text;
};
constexpr std::string_view kOurs =
    "a kernel went wrong, which is a fault of this program or of the GPU: started again it works "
    "on; "
    "if it comes again, report it, and try the GPU with deploy/gpu-acceptance.sh";
constexpr std::string_view kHardware =
    "`nvidia-smi -q` and the kernel's log (\"NVRM: Xid\") say what its hardware has: reset the "
    "GPU, "
    "or leave it out";
constexpr std::array kAdvice = std::to_array<Advice>({
    {46, "another process has it for itself, or it is gone: `nvidia-smi` shows both"},
    {100, "the driver shows none any more: `nvidia-smi` and the kernel's log say why"},
    {101, "the driver does not know it any more: `nvidia-smi` and the kernel's log say why"},
    {214,
     "its memory has an error that cannot be corrected: `nvidia-smi -q -d ECC,ROW_REMAPPER` shows "
     "it; reset the GPU, and replace it if the error comes back"},
    {220, "an NVLink has errors that cannot be corrected: `nvidia-smi nvlink -e` shows it"},
    {700, kOurs},
    {702, "a kernel took longer than the driver allows: is a display attached to this GPU?"},
    {710, kOurs},
    {714, kOurs},
    {715, kOurs},
    {716, kOurs},
    {717, kOurs},
    {718, kOurs},
    {719, kOurs},
    {802, "the machine's fabric is not ready: is nvidia-fabricmanager running?"},
});

std::string_view AdviceOn(int error) {
  for (const Advice& advice : kAdvice) {
    if (advice.error == error) return advice.text;
  }
  return kHardware;
}

}  // namespace

std::string GpuText(const FailedGpu& gpu) {
  const std::string where =
      gpu.bus_id.empty() ? std::string() : absl::StrCat(", PCI ", ToAbsl(gpu.bus_id));
  return absl::StrCat("GPU cuda:", gpu.number, " (", ToAbsl(gpu.name), where, ")");
}

std::string LostGpuText(const FailedGpu& gpu, std::string_view doing, int error,
                        std::string_view error_text) {
  return absl::StrCat(GpuText(gpu), " was lost while ", ToAbsl(doing), ": ", ToAbsl(error_text),
                      ": ", ToAbsl(AdviceOn(error)));
}

std::string FullGpuText(const FailedGpu& gpu, std::string_view what) {
  return absl::StrCat(GpuText(gpu), " lacks memory for a step: ", ToAbsl(what),
                      ": give a smaller kv_bytes, or end what else uses it");
}

std::string SilentGpuText(const FailedGpu& gpu, Duration waited) {
  return absl::StrCat(GpuText(gpu), " was lost: no call for it has returned for ", ToMillis(waited),
                      " ms: ", ToAbsl(kHardware));
}

std::string PartedGpusText(std::string_view gpus, std::string_view why) {
  return absl::StrCat(
      ToAbsl(gpus), " cannot go on together, and none says that it was lost: ", ToAbsl(why),
      ": `nvidia-smi -q` and the kernel's log (\"NVRM: Xid\") show whether one of them failed; if "
      "none did, give a smaller kv_bytes, since NCCL takes memory too, and see NCCL_DEBUG=WARN");
}

}  // namespace penstock
