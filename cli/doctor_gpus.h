// SPDX-License-Identifier: Apache-2.0
// What penstock doctor says of GPUs.
#pragma once

#include <string>
#include <vector>

#include "cli/doctor_report.h"
#include "device/cuda_api.h"

namespace penstock::cli {

// The plug-in, the driver and each GPU, or why there is none, which is no fault: the CPU computes
// then. A plug-in that is there and cannot be used is a warning. `plugin`: as LoadCudaPlugin. Gives the
// GPUs that the process may see.
std::vector<CudaGpu> ReportGpus(const std::string& plugin, DoctorReport& report);

}  // namespace penstock::cli
