// SPDX-License-Identifier: Apache-2.0
#include "cli/doctor_gpus.h"

#include <cstddef>

#include "device/cuda_plugin.h"

namespace penstock::cli {

void ReportGpus(const std::string& plugin, DoctorReport& report) {
  const absl::StatusOr<LoadedCudaPlugin> loaded = LoadCudaPlugin(plugin);
  if (!loaded.ok()) {
    if (absl::IsNotFound(loaded.status()) && plugin.empty()) {
      return report.Ok("GPU: none is used: ", loaded.status().message());
    }
    return report.Warning("GPU: none is used: ", loaded.status().message());
  }
  const absl::StatusOr<CudaSystem> found = FindGpus(*loaded->plugin);
  if (!found.ok()) {
    return report.Ok("GPU: none is used: ", found.status().message(), "; plug-in ", loaded->path);
  }
  report.Ok("CUDA: driver for ", CudaVersionText(found->driver_version), ", cudart ",
            CudaVersionText(found->runtime_version), ", plug-in ", loaded->path);
  for (std::size_t i = 0; i < found->gpus.size(); ++i) {
    report.Ok("GPU ", i, ": ", Describe(found->gpus[i]),
              i == 0 ? ", what --device cuda takes" : "");
  }
}

}  // namespace penstock::cli
