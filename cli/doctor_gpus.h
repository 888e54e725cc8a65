// SPDX-License-Identifier: Apache-2.0
// What penstock doctor says of GPUs.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "cli/doctor_report.h"
#include "device/cuda_plugin.h"

namespace penstock::cli {

// The plug-in, the driver and each GPU, or why there is none, which is no fault: the CPU computes
// then. A plug-in that is there and cannot be used is a warning. `plugin`: as LoadCudaPlugin. Gives what
// FindGpus found; errors as of both.
absl::StatusOr<CudaSystem> ReportGpus(const std::string& plugin, DoctorReport& report);

}  // namespace penstock::cli
