// SPDX-License-Identifier: Apache-2.0
// What kernels/kv_split.h and kernel files, which take no library in, have in common. Plain values.
#pragma once

#include <cstdint>

namespace penstock::kernels {

// Stands for the count of escapes of a unit that has too many.
inline constexpr std::uint32_t kKvSplitNone = UINT32_MAX;

// Of a block that is to be joined: one unit. Places are bytes from the block's begin on.
struct KvJoinUnit {
  std::uint64_t rest = 0;     // [n]; or, of a raw one, the unit as it is.
  std::uint64_t codes = 0;    // [KvCodeBytes(n)]
  std::uint64_t firsts = 0;   // [1 + dim] by column, else [1]
  std::uint64_t escapes = 0;  // [escape_count]
  std::uint64_t halves = 0;   // [n] of 2 bytes, of F32.
  std::uint32_t escape_count = 0;
  enum Kind : std::uint32_t { kRaw, kOneFirst, kByColumn } kind = kRaw;
};
}  // namespace penstock::kernels
