// SPDX-License-Identifier: Apache-2.0
// What penstock doctor says of GPUs.
#pragma once

#include <span>
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
// `file`: where the deployment was read from, for its models; of one that cannot be read pairs of
// GPUs are not counted.
void ReportNccl(const launch::Deployment& deployment, const std::string& file,
                const std::string& plugin, DoctorReport& report);

// Which of `workers` (of this machine) have numerics fast, and whether they find the cuBLASLt that they
// need; nothing where there are none.
void ReportFast(std::span<const launch::Worker* const> workers, const std::string& plugin,
                DoctorReport& report);

}  // namespace penstock::cli
