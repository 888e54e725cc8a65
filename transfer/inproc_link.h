// SPDX-License-Identifier: Apache-2.0
// Two ends of a link in one process, on one loop: for tests, the simulator, and workers that share
// a process. Messages and reads are as with other kinds, and the memory is copied in the same way.
#pragma once

#include <memory>
#include <utility>

#include "base/event_loop.h"
#include "transfer/link.h"
#include "transfer/segment_table.h"

namespace penstock::transfer {

// The first end reads what is in `second_segments`, the second what is in `first_segments`. All
// three outlive the links. When one end is destroyed the other one closes as UNAVAILABLE.
std::pair<std::unique_ptr<Link>, std::unique_ptr<Link>> MakeInprocLinks(
    Loop& loop, SegmentTable& first_segments, SegmentTable& second_segments);

}  // namespace penstock::transfer
