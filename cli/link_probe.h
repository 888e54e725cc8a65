// SPDX-License-Identifier: Apache-2.0
// How fast KV moves between two processes of this machine, measured with the very links that
// workers use.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "base/time.h"
#include "transfer/link.h"

namespace penstock::cli {

struct LinkFigures {
  double bytes_per_s = 0;  // Verified, in pieces of 1 MiB; the best of a few passes.
  Duration round_trip{};   // Of a small message; the best of many.
};

// Blocks for about a second. `address`: what TCP and UCX listen on. What the transfer layer says where the
// kind does not work here; DEADLINE_EXCEEDED after ten seconds.
absl::StatusOr<LinkFigures> MeasureLink(transfer::Kind kind, const std::string& address);

}  // namespace penstock::cli
