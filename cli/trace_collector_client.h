// SPDX-License-Identifier: Apache-2.0
// Asks every process of a cluster for its spans and its clock.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/trace_data.h"

namespace penstock::cli {

struct CollectedTrace {
  ClusterTrace trace = {};
  std::vector<std::string> missing =
      {};  // "decode-1 at 127.0.0.1:7072: why" of those that did not answer.
};

// `server` is the coordinator, which knows the workers; `also` are addresses of other processes, such
// as gateways of their own. `request_id` empty: all requests. Each
// process has two seconds to answer. UNAVAILABLE, DEADLINE_EXCEEDED: no coordinator answers there.
absl::StatusOr<CollectedTrace> CollectTrace(const std::string& server,
                                            const std::vector<std::string>& also,
                                            const std::string& request_id);

}  // namespace penstock::cli
