// SPDX-License-Identifier: Apache-2.0
// The coordinator's numbers, as metrics (base/metrics.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/metrics.h"
#include "coordinator/coordinator.h"

namespace penstock::coordinator {

// `gateways`: how many attend. On the coordinator's thread.
void WriteMetrics(const Coordinator& coordinator, std::size_t gateways, MetricsWriter& writer);

// Of the store that keeps membership, and the leadership in it.
struct StoreStats {
  bool leading = true;
  std::uint64_t errors = 0;
  std::uint64_t late = 0;
};
void WriteMetrics(const StoreStats& stats, MetricsWriter& writer);

}  // namespace penstock::coordinator
