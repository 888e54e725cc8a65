// SPDX-License-Identifier: Apache-2.0
// What penstock doctor says of the store nodes of a deployment file: memory, disk and secret of those
// of this host, and how they do in a cluster that runs.
#pragma once

#include <cstddef>
#include <optional>
#include <string>

#include "cli/doctor_pairs_client.h"
#include "cli/doctor_report.h"
#include "launch/deployment.h"

namespace penstock::cli {

// Nothing where the file has no store node. Leaves no file behind. `file` is where the deployment was
// read.
void CheckStores(const launch::Deployment& deployment, const std::string& file, std::size_t host,
                 const std::optional<RunningCluster>& cluster, DoctorReport& report);

// A line for each tier of each node of `cluster`, and a warning for each node of the file that has not
// joined, or is not ready.
void ReportStores(const launch::Deployment& deployment,
                  const std::optional<RunningCluster>& cluster, DoctorReport& report);

}  // namespace penstock::cli
