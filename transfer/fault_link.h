// SPDX-License-Identifier: Apache-2.0
// A link with faults, for tests: what goes through it is dropped, delayed, repeated, changed or cut
// off, by a plan that a seed replays.
//
// Messages are hurt as they are sent; a delayed one is overtaken. Reads are delayed before they
// start; a corrupt one has a byte changed where it landed, and the checksum of that; over kind nccl
// the checksum alone. A disconnect destroys the link below: the peer sees it closed, this side too.
#pragma once

#include <cstdint>
#include <memory>

#include "base/event_loop.h"
#include "base/time.h"
#include "transfer/link.h"

namespace penstock::transfer {

// Each a probability from 0 to 1, drawn for each message or read.
struct FaultPlan {
  std::uint64_t seed = 0;
  double drop_message = 0;
  double delay_message = 0;
  double duplicate_message = 0;
  double corrupt_message = 0;
  double delay_read = 0;
  double corrupt_read = 0;
  double disconnect = 0;
  Duration delay_max = std::chrono::milliseconds(100);  // Delays are uniform up to it.
};

// `loop` outlives the link.
std::unique_ptr<Link> MakeFaultLink(Loop& loop, std::unique_ptr<Link> link, const FaultPlan& plan);

}  // namespace penstock::transfer
