// SPDX-License-Identifier: Apache-2.0
// Exchanges of ranks of one process, on GPUs of their own, by NCCL's all-gather: work of their
// streams, for which no thread waits but in Finish.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "base/time.h"
#include "device/device.h"
#include "transfer/collectives.h"

namespace penstock::transfer {

// One end for each of `devices`, all of which are CudaDevices of one plug-in and outlive the result.
// Makes a communicator, which takes some of each GPU's memory. UNAVAILABLE with NCCL's reason where
// it is not there or cannot join the GPUs, DEADLINE_EXCEEDED where it has not within `patience`:
// MakeLocalCollectives does without. An end that goes ends what is under way. Errors name the GPU that
// got them; a GPU that is lost has said so by then where it can (device/cuda_device.h).
absl::StatusOr<std::vector<std::unique_ptr<Collectives>>> MakeNcclCollectives(
    std::span<Device* const> devices, Duration patience);

}  // namespace penstock::transfer
