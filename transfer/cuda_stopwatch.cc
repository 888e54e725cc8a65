// SPDX-License-Identifier: Apache-2.0
#include "transfer/cuda_stopwatch.h"

#include <chrono>
#include <utility>

namespace penstock::transfer {

CudaStopwatch::CudaStopwatch(CudaStopwatch&& from) noexcept
    : plugin_(from.plugin_),
      begin_(std::exchange(from.begin_, nullptr)),
      end_(std::exchange(from.end_, nullptr)) {}

CudaStopwatch::~CudaStopwatch() {
  for (CudaEventHandle const event : {begin_, end_}) {
    if (event != nullptr) (void)plugin_->runtime.event_destroy(event);
  }
}

int CudaStopwatch::Begin(CudaStreamHandle stream) {
  const CudaRuntime& cuda = plugin_->runtime;
  for (CudaEventHandle* const event : {&begin_, &end_}) {
    if (const int error = cuda.event_create_timed(event); error != kCudaSuccess) return error;
  }
  return cuda.event_record(begin_, stream);
}

int CudaStopwatch::Take(Duration& time) const {
  const CudaRuntime& cuda = plugin_->runtime;
  if (const int error = cuda.event_query(end_); error != kCudaSuccess) return error;
  float milliseconds = 0;
  const int error = cuda.event_elapsed(&milliseconds, begin_, end_);
  time =
      std::chrono::duration_cast<Duration>(std::chrono::duration<float, std::milli>(milliseconds));
  return error;
}

}  // namespace penstock::transfer
