// SPDX-License-Identifier: Apache-2.0
// A running cluster as a benchmark's target: penstock.v1.Inference, token ids both ways, so that no
// text is measured.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "base/event_loop.h"
#include "cli/bench_driver.h"

namespace penstock::cli {

struct BenchTargetOptions {
  std::string server = {};  // "host:port" of a gateway.
  std::string model = {};   // Empty where it has one.
  std::int32_t vocab = 256;
  double temperature = 0;
  std::string tenant = {};
  Duration timeout = std::chrono::minutes(10);  // Of each request.
};

// `loop` outlives the target, which ends after the last request has.
std::unique_ptr<BenchTarget> MakeBenchTarget(Loop& loop, const BenchTargetOptions& options);

// The name of the model that is meant. Blocks. UNAVAILABLE: nobody answers there.
// NOT_FOUND, FAILED_PRECONDITION.
absl::StatusOr<std::string> FindBenchModel(const BenchTargetOptions& options);

}  // namespace penstock::cli
