// SPDX-License-Identifier: Apache-2.0
#include "device/cuda_standin_graph.h"

#include <cuda_runtime_api.h>

#include <map>
#include <mutex>
#include <utility>
#include <vector>

// What cudaGraph_t and cudaGraphExec_t point to.
struct CUgraph_st {
  std::vector<std::function<void()>> work;
};
struct CUgraphExec_st {
  std::vector<std::function<void()>> work;
};

namespace penstock::cuda_standin {
namespace {

struct Capture {
  std::vector<std::function<void()>> work;
  bool good = true;
};

// Nothing is called while it is held.
struct Captures {
  std::mutex mutex;
  std::map<CUstream_st*, Capture> captures;
  GraphCounts counts;
};
Captures& All() {
  static Captures all;
  return all;
}

thread_local CUstream_st* t_captured = nullptr;  // By this thread.

}  // namespace

bool Note(CUstream_st* stream, std::function<void()> work) {
  const std::lock_guard lock(All().mutex);
  const auto found = All().captures.find(stream);
  if (found == All().captures.end()) return false;
  found->second.work.push_back(std::move(work));
  return true;
}

int RefuseCaptured() {
  if (t_captured == nullptr) return cudaSuccess;
  const std::lock_guard lock(All().mutex);
  All().captures.at(t_captured).good = false;
  return cudaErrorStreamCaptureUnsupported;
}

GraphCounts Graphs() {
  const std::lock_guard lock(All().mutex);
  return All().counts;
}

}  // namespace penstock::cuda_standin

using penstock::cuda_standin::All;
using penstock::cuda_standin::MachineHasGraphs;
using penstock::cuda_standin::t_captured;

extern "C" {

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  if (!MachineHasGraphs()) return cudaErrorStreamCaptureUnsupported;
  if (mode != cudaStreamCaptureModeThreadLocal || stream == nullptr || t_captured != nullptr) {
    return cudaErrorStreamCaptureUnsupported;
  }
  const std::lock_guard lock(All().mutex);
  if (!All().captures.try_emplace(stream).second) return cudaErrorIllegalState;
  t_captured = stream;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = nullptr;
  if (stream == nullptr || t_captured != stream) return cudaErrorStreamCaptureWrongThread;
  const std::lock_guard lock(All().mutex);
  auto captured = All().captures.extract(stream);
  t_captured = nullptr;
  if (!captured.mapped().good) return cudaErrorStreamCaptureInvalidated;
  *graph = new CUgraph_st{std::move(captured.mapped().work)};
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  const std::lock_guard lock(All().mutex);
  *exec = new CUgraphExec_st{graph->work};
  ++All().counts.graphs;
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t) {
  {
    const std::lock_guard lock(All().mutex);
    ++All().counts.launches;
  }
  for (const auto& work : exec->work) work();
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  const std::lock_guard lock(All().mutex);
  --All().counts.graphs;
  return cudaSuccess;
}
}
