// SPDX-License-Identifier: Apache-2.0
// Whether the models of a deployment file are there, and whether this machine has the memory that its
// workers here will take.
#pragma once

#include <optional>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "cli/doctor_cluster.h"
#include "cli/doctor_report.h"
#include "device/cuda_plugin.h"
#include "launch/deployment.h"

namespace penstock::cli {

// `file` is the deployment's, `workers` are those of this machine. Those that run in `cluster` have
// their memory; a GPU's counts as all free. A worker whose GPU `gpus` does not have is a fault.
void CheckModelsAndMemory(const launch::Deployment& deployment, const std::string& file,
                          std::span<const launch::Worker* const> workers,
                          const std::optional<RunningCluster>& cluster,
                          const absl::StatusOr<CudaSystem>& gpus, DoctorReport& report);

}  // namespace penstock::cli
