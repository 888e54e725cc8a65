// SPDX-License-Identifier: Apache-2.0
// Whether a device gives a row of a matrix product the same bits in every batch, tried before it
// computes anything that others may reuse: other GPUs, drivers and compilers than ours are out there,
// and a block that differs in one bit is another block.
#pragma once

#include <array>
#include <cstdint>

#include "absl/status/status.h"
#include "device/device.h"
#include "engine/weights.h"
#include "kernels/ops.h"

namespace penstock::engine {

// Batches that meet every kernel and every edge of their tiles.
inline constexpr std::array<std::int32_t, 7> kSelfCheckRows = {1, 2, 17, 33, 128, 257, 1024};

// Takes the first 128 rows of one weight matrix of each format and number of columns, and compares
// the first and the last row of each batch with the same row alone. FAILED_PRECONDITION naming the
// matrix, the batch and both values: the device must not be used. RESOURCE_EXHAUSTED: it has no room
// for a batch; INTERNAL: it failed. Some 10 ms on a GPU.
absl::Status CheckRowsAlike(Device& device, kernels::Ops& ops, const Weights& weights);

}  // namespace penstock::engine
