// SPDX-License-Identifier: Apache-2.0
// What penstock doctor says of GPUs.
#pragma once

#include <string>

#include "cli/doctor_report.h"

namespace penstock::cli {

// The plug-in, the driver and each GPU, or why there is none, which is no fault: the CPU computes
// then. A plug-in that is there and cannot be used is a warning. `plugin`: as LoadCudaPlugin.
void ReportGpus(const std::string& plugin, DoctorReport& report);

}  // namespace penstock::cli
