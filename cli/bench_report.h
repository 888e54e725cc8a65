// SPDX-License-Identifier: Apache-2.0
// A benchmark's result for people, for programs, and as a picture.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "cli/bench_driver.h"
#include "cli/bench_stats.h"
#include "nlohmann/json_fwd.hpp"

namespace penstock::cli {

struct BenchReport {
  std::vector<std::pair<std::string, std::string>> config = {};  // What was run, in order.
  Slo slo = {};
  BenchDriver::Result result = {};
  BenchSummary summary = {};  // Of result.records.
  double client_cores = 0;    // CPU time of this process by time.
};

// Non-empty where the client was too slow for its own figures to be believed.
std::string ClientWarning(const BenchReport& report);

std::string ReportText(const BenchReport& report);
nlohmann::ordered_json ReportJson(const BenchReport& report);
// A line of JSON for each request, in the order of sending, with every gap between tokens.
// `ttft_ms` is -1 where no token came.
std::string RecordsJsonl(const BenchReport& report);
// A self-contained SVG: TTFT and ITL distributions, and the time line.
std::string ReportSvg(const BenchReport& report);

}  // namespace penstock::cli
