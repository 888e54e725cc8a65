// SPDX-License-Identifier: Apache-2.0
// How goodput grows with workers: the sizes to run, and what comes out.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/bench_report.h"
#include "nlohmann/json_fwd.hpp"

namespace penstock::cli {

// Of one cluster.
struct ScaleSize {
  int prefill = 0;  // 0: the decode workers compute the prompts, too.
  int decode = 1;
  int workers() const { return prefill + decode; }
};

// "1,2,4" workers, divided by "P:D" as evenly as whole workers allow, with at least one that
// decodes and, from two on and unless P is 0, one that prefills. INVALID_ARGUMENT.
absl::StatusOr<std::vector<ScaleSize>> ParseSizes(std::string_view workers, std::string_view ratio);

struct ScalePoint {
  ScaleSize size = {};
  BenchReport report = {};
  double cpu_cores = 0;  // That the cluster and the client used; see whole_machine.
  int hosts = 0;         // 0: of this machine alone.
};
struct ScaleReport {
  int cpus = 1;  // There are.
  // Whether cpu_cores is all that this machine did: its clusters' processes are not ours to ask.
  bool whole_machine = false;
  std::vector<ScalePoint> points = {};

  // goodput(N) / (N goodput(1)), the first point standing for 1. Goodput is the steady one.
  double Efficiency(std::size_t point) const;
  // Nine tenths of this machine's cores: more workers cannot make more of them.
  bool CpuBound(std::size_t point) const;
};
std::string ScaleText(const ScaleReport& report);
nlohmann::ordered_json ScaleJson(const ScaleReport& report);
std::string ScaleSvg(const ScaleReport& report);

}  // namespace penstock::cli
