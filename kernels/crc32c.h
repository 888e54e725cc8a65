// SPDX-License-Identifier: Apache-2.0
// CRC32C (Castagnoli, reflected, of "123456789": 0xe3069283), alone and while copying. Both run on
// the caller's thread, with the best target of this CPU.
#pragma once

#include <cstddef>
#include <cstdint>

namespace penstock::kernels {

// Continues `crc`, 0 to begin: Crc32c(Crc32c(0, a), b) is that of a and b behind each other.
std::uint32_t Crc32c(std::uint32_t crc, const std::byte* bytes, std::size_t n);

// Copies `n` bytes and continues `crc` with the bytes that it wrote: each byte is loaded once, so
// that a source which another process changes meanwhile gives bytes of any of its states, but never
// a checksum of other bytes than those in `to`. The regions do not overlap.
//
// From 2 KiB on the bytes go around the caches (non-temporal stores): that spares reading the lines
// of `to` first, and leaves the caches to whoever computes meanwhile. Who reads them back fetches
// them from memory. The stores are complete on return: a release store of the caller publishes
// them, as it does plain ones.
std::uint32_t CopyCrc32c(std::uint32_t crc, const std::byte* from, std::size_t n, std::byte* to);

}  // namespace penstock::kernels
