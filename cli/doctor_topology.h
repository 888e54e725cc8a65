// SPDX-License-Identifier: Apache-2.0
// What penstock doctor says of how a machine's GPUs are connected.
#pragma once

#include "cli/doctor_report.h"
#include "device/cuda_plugin.h"
#include "device/gpu_topology.h"

namespace penstock::cli {

// The matrix of GPUs and network cards with the words of nvidia-smi, those used explained; nothing
// of a single GPU without a card. Where NVML is missing, why, once: that is no fault.
void ReportTopology(const GpuTopology& topology, DoctorReport& report);

// The models of the worker's GPUs, where they are not all alike: its shards compute the same bits, as
// what it checks at its start ensures, but wait for the slowest.
void ReportUnlike(const std::string& worker, const CudaSystem& system,
                  const std::vector<std::size_t>& gpus, DoctorReport& report);

}  // namespace penstock::cli
