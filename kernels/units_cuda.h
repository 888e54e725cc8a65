// SPDX-License-Identifier: Apache-2.0
// Gathers, scatters or changes the layout of what travels, on a GPU: pages to a packed buffer and
// back, with the CRC32C of each unit (a cache layer of a block) in the same pass over its bytes.
//
// The program uses these types too (kernels/cuda_kernels.h), so this has no CUDA header.
#pragma once

#include <cstddef>
#include <cstdint>

#include "device/cuda_api.h"

namespace penstock::kernels {

struct CopyRun {
  const std::byte* from = nullptr;  // [bytes]
  std::byte* to = nullptr;          // [bytes]; null: for the checksum only.
  std::uint32_t bytes = 0;          // At least 1.
};

// What one checksum covers: the bytes of its runs behind each other, at most 1 GiB. No run: 0.
struct CopyUnit {
  std::uint32_t first_run = 0;
  std::uint32_t runs = 0;
};

// Copies every run of `units`, [count], and sets crcs[i] to Crc32c(0, the bytes of unit i), of
// kernels/crc32c.h, of the very bytes that it wrote: each is loaded once. crcs: [count], null where
// none are wanted. `units`, `runs` and `crcs` are memory that the device reads and writes, its own
// or pinned; they and all that runs name stay until the stream has gone past. No `to` overlaps
// another or a `from`.
//
// Up to 16 blocks share a unit, and each reads all its runs: where a unit has many, they are better
// in the device's memory than in pinned.
//
// Any alignment and any length is right. 16 bytes go at once where they lie in one run, at a
// multiple of 16 from the unit's begin, and both addresses are multiples of 16; others go singly.
//
// Gives a cudaError_t: cudaErrorInvalidValue for a negative count, or what the launch said.
int CopyUnitsCuda(const CopyUnit* units, std::int32_t count, const CopyRun* runs,
                  std::uint32_t* crcs, CudaStreamHandle stream);

}  // namespace penstock::kernels
