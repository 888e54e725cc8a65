// SPDX-License-Identifier: Apache-2.0
// What penstock doctor says of GPUs.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "cli/doctor_report.h"
#include "device/cuda_plugin.h"
#include "launch/deployment.h"

namespace penstock::cli {

// The plug-in, the driver and each GPU, or why there is none, which is no fault: the CPU computes
// then. A plug-in that is there and cannot be used is a warning. `plugin`: as LoadCudaPlugin. Gives what
// FindGpus found; errors as of both.
absl::StatusOr<CudaSystem> ReportGpus(const std::string& plugin, DoctorReport& report);

// Which pairs of GPU workers of the file will ship KV over nccl, and why others go through the host;
// nothing where it has no such pair. Whether NCCL is there is this host's answer.
void ReportNccl(const launch::Deployment& deployment, const std::string& plugin,
                DoctorReport& report);

}  // namespace penstock::cli
