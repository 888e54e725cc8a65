// SPDX-License-Identifier: Apache-2.0
// Traces as tables for people. Pure functions.
#pragma once

#include <cstdint>
#include <string>

#include "cli/trace_data.h"
#include "cli/trace_summary.h"

namespace penstock::cli {

// "950 ns", "12.3 us", "4.56 ms", "7.89 s".
std::string FormatNanos(std::int64_t ns);

// The spans of one request, in order, each below what it is part of. Spans of one kind and process
// that repeat, as those of each layer do, share a line unless `all`. Ends with a newline.
std::string RequestTable(const ClusterTrace& trace, bool all);

// The processes with their clocks, percentiles of each phase, and of each pair of workers.
std::string SummaryTables(const ClusterTrace& trace, const TraceSummary& summary);

}  // namespace penstock::cli
