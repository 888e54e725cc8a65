// SPDX-License-Identifier: Apache-2.0
// Two events of a GPU's stream, around what is to be timed there. One thread at a time.
#pragma once

#include "absl/status/statusor.h"
#include "base/time.h"
#include "device/cuda_plugin.h"

namespace penstock::transfer {

class CudaStopwatch {
 public:
  explicit CudaStopwatch(const CudaPlugin& plugin) : plugin_(&plugin) {}
  ~CudaStopwatch();
  CudaStopwatch(CudaStopwatch&& from) noexcept;
  CudaStopwatch& operator=(CudaStopwatch&&) = delete;

  // Before and after the work; the thread's GPU is the stream's. Each gives a cudaError_t.
  int Begin(CudaStreamHandle stream);
  int End(CudaStreamHandle stream) { return plugin_->runtime.event_record(end_, stream); }
  // Both are on the stream: the time between them, or kCudaNotReady, or what the GPU says.
  int Take(Duration& time) const;

 private:
  const CudaPlugin* plugin_;
  CudaEventHandle begin_ = nullptr;
  CudaEventHandle end_ = nullptr;
};

}  // namespace penstock::transfer
