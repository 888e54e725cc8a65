// SPDX-License-Identifier: Apache-2.0
#include "cli/doctor_gpus.h"

#include <cstddef>

#include "base/device_name.h"
#include "cli/gpu_pairs.h"

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

void ReportNccl(const launch::Deployment& deployment, const std::string& plugin,
                DoctorReport& report) {
  std::size_t pairs = 0, over_nccl = 0;
  std::string why;  // Of the first that is not.
  for (const launch::Worker& prefill : deployment.workers) {
    for (const launch::Worker& decode : deployment.workers) {
      if (!IsGpuPair(prefill, decode)) continue;
      ++pairs;
      const std::string own = WhyNotNccl(prefill, decode);
      over_nccl += own.empty() ? 1 : 0;
      if (why.empty()) why = own;
    }
  }
  if (pairs == 0) return;
  const absl::StatusOr<LoadedCudaPlugin> loaded = LoadCudaPlugin(plugin);
  absl::Status there = loaded.status();
  if (loaded.ok()) there = FindNccl(*loaded->plugin).status();
  if (!there.ok()) {
    report.Warning("transfer over nccl: none, KV goes through the host: ", there.message());
  } else if (over_nccl == pairs) {
    report.Ok("transfer over nccl: all ", pairs, " pairs of GPU workers");
  } else {
    report.Ok("transfer over nccl: ", over_nccl, " of ", pairs,
              " pairs of GPU workers, the others through the host: ", why);
  }
}

}  // namespace penstock::cli
