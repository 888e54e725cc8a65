// SPDX-License-Identifier: Apache-2.0
#include "cli/doctor_gpus.h"

#include <cstddef>

#include "base/device_name.h"

namespace penstock::cli {

absl::StatusOr<CudaSystem> ReportGpus(const std::string& plugin, DoctorReport& report) {
  const absl::StatusOr<LoadedCudaPlugin> loaded = LoadCudaPlugin(plugin);
  if (!loaded.ok()) {
    if (absl::IsNotFound(loaded.status()) && plugin.empty()) {
      report.Ok("GPU: none is used: ", loaded.status().message());
    } else {
      report.Warning("GPU: none is used: ", loaded.status().message());
    }
    return loaded.status();
  }
  const absl::StatusOr<CudaSystem> found = FindGpus(*loaded->plugin);
  if (!found.ok()) {
    report.Ok("GPU: none is used: ", found.status().message(), "; plug-in ", loaded->path);
    return found;
  }
  report.Ok("CUDA: driver for ", CudaVersionText(found->driver_version), ", cudart ",
            CudaVersionText(found->runtime_version), ", plug-in ", loaded->path);
  const absl::StatusOr<const NcclLibrary*> nccl = FindNccl(*loaded->plugin);
  if (nccl.ok()) {
    report.Ok("NCCL: ", NcclVersionText((*nccl)->version), ", the plug-in was built for ",
              NcclVersionText((*nccl)->header_version));
  } else {
    report.Ok(nccl.status().message());
  }
  for (std::size_t i = 0; i < found->gpus.size(); ++i) {
    const absl::Status good = CheckGpu(*found, static_cast<int>(i));
    if (!good.ok()) {
      report.Ok("GPU ", i, ": not used: ", good.message());
      continue;
    }
    report.Ok("GPU ", i, ": ", Describe(found->gpus[i]), ", what --device ",
              DeviceOfGpus({{static_cast<int>(i)}}), " takes");
  }
  return found;
}

}  // namespace penstock::cli
