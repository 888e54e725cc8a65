// SPDX-License-Identifier: Apache-2.0
// Graphs of the stand-in for cudart: while a thread captures a stream, work that is put there is noted
// instead of done; a graph does it, in its order, whenever it is launched. What cudart refuses
// meanwhile ends the capture: waiting for the stream, its events, and memory that the thread takes or
// gives.
#pragma once

#include <cstdint>
#include <functional>

struct CUstream_st;

namespace penstock::cuda_standin {

// Any thread. Whether the stream is captured: then `work` is noted. It touches device memory as
// Enqueue's does, and runs with no lock held.
bool Note(CUstream_st* stream, std::function<void()> work);
// What the calling thread must not do while it captures a stream, whichever: gives
// cudaErrorStreamCaptureUnsupported, and the capture cannot end well; or 0 where it captures none.
int RefuseCaptured();

bool MachineHasGraphs();

struct GraphCounts {
  std::int64_t graphs = 0;    // In use.
  std::int64_t launches = 0;  // Ever.
};
GraphCounts Graphs();

}  // namespace penstock::cuda_standin
