// SPDX-License-Identifier: Apache-2.0
// A GpuCase with its memory, ready to be started again and again. One thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "bench/gpu_cases.h"
#include "device/cuda_device.h"
#include "kernels/ops.h"

namespace penstock::bench {

// The caller waits for what it started before the object goes.
struct GpuWork {
  virtual ~GpuWork() = default;
  std::function<void(std::int64_t call)>
      start;                           // Queues one call; the next `call` takes other memory.
  std::function<absl::Status()> wait;  // For all that was queued.
  std::size_t weights_bytes = 0;       // Of the matrices that one call reads.
};

// Memory holds numbers between 0.5 and 1 of either sign, as F16: zeros would take less power.
// RESOURCE_EXHAUSTED where the GPU has less than it takes: `round_bytes`, or one call's weights or
// KV where those are more, and a call's rows. INVALID_ARGUMENT where pages cannot have its
// head_dim.
absl::StatusOr<std::unique_ptr<GpuWork>> MakeGpuWork(const GpuCase& c, CudaDevice& device,
                                                     kernels::Ops& ops, std::size_t round_bytes);

}  // namespace penstock::bench
