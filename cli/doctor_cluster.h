// SPDX-License-Identifier: Apache-2.0
// A deployment file's cluster as it runs: whether it does, and how fast its pairs of a prefill and a
// decode worker are, between hosts, too. The pairs measured that themselves, as they joined.
#pragma once

#include <optional>
#include <string>

#include "cli/doctor_pairs_client.h"
#include "cli/doctor_report.h"
#include "launch/deployment.h"

namespace penstock::cli {

// Asks at `server`, or, where that is empty, at the addresses of the file's coordinators. Nothing where
// no cluster of this file answers, which is a fault only if `server` was given, or another answers.
std::optional<RunningCluster> FindRunningCluster(const launch::Deployment& deployment,
                                                 const std::string& server, DoctorReport& report);

// A line for each pair of `cluster`, a fault for each that has an error, and a warning for each worker
// of the file that is not there. Of none: how to ask.
void ReportPairs(const launch::Deployment& deployment, const std::optional<RunningCluster>& cluster,
                 DoctorReport& report);

}  // namespace penstock::cli
