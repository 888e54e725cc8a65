// SPDX-License-Identifier: Apache-2.0
// A part of a deployment: what is left of it on some of its hosts.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "launch/deployment.h"

namespace penstock::launch {

// The deployment without all that it puts on other hosts than `names`. What stays keeps its name and
// the order of the file, so all hosts that are told the same names agree. INVALID_ARGUMENT lists
// every fault: an unknown name or one given twice, and what would be missing - the coordinator, all
// gateways, or a model's workers of a role that it had.
absl::StatusOr<Deployment> OnlyHosts(const Deployment& deployment,
                                     const std::vector<std::string>& names);

}  // namespace penstock::launch
