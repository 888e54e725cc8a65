// SPDX-License-Identifier: Apache-2.0
// Checksums of parts that were computed apart.
#pragma once

#include <cstdint>

namespace penstock::transfer {

// The CRC32C of a and b behind each other, from that of each; `b_bytes` is how long b is.
std::uint32_t JoinCrc32c(std::uint32_t a, std::uint32_t b, std::uint64_t b_bytes);

}  // namespace penstock::transfer
