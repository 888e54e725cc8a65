// SPDX-License-Identifier: Apache-2.0
// Who attends to prompts on the GPUs of this machine: cuDNN or our kernel, and why.
#pragma once

#include <span>
#include <string>

#include "cli/doctor_report.h"
#include "launch/deployment.h"

namespace penstock::cli {

// Of those of `workers` (of this machine) that have numerics fast, each by its first GPU and its model's
// pages; tries cuDNN there (kernels/fast_attention.h), which may take seconds. Wrong numbers are a
// warning: such workers start, with our kernel. So is that it cannot be
// tried, since the model or the GPU cannot be opened or has no room. Nothing where there are no such workers.
void ReportPrefillAttention(const launch::Deployment& deployment, const std::string& file,
                            std::span<const launch::Worker* const> workers,
                            const std::string& plugin, DoctorReport& report);

}  // namespace penstock::cli
