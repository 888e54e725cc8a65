// SPDX-License-Identifier: Apache-2.0
// The coordinator's numbers, as metrics (base/metrics.h).
#pragma once

#include <cstddef>

#include "base/metrics.h"
#include "coordinator/coordinator.h"

namespace penstock::coordinator {

// `gateways`: how many attend. On the coordinator's thread.
void WriteMetrics(const Coordinator& coordinator, std::size_t gateways, MetricsWriter& writer);

}  // namespace penstock::coordinator
