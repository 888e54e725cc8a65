// SPDX-License-Identifier: Apache-2.0
// Blocks for tests of the disk tier: what a block holds is a function of its number.
#pragma once

#include <cstdint>
#include <cstring>

#include "base/key.h"
#include "kvstore/disk/disk_log.h"

namespace penstock::kvstore {

inline BlockKey KeyOf(std::uint32_t number) {
  BlockKey key;
  std::memcpy(key.chain.bytes.data(), &number, sizeof(number));
  return key;
}

// Of any size up to a segment of the tests.
inline std::uint32_t BytesOfKey(std::uint32_t number) { return 1 + number * 977 % 40000; }

// In whole sectors, zeros behind `bytes`.
inline DiskBytes ContentOf(std::uint32_t number, std::uint32_t bytes) {
  DiskBytes content = MakeSectors(SectorsUp(bytes));
  for (std::uint32_t i = 0; i < bytes; ++i) {
    content.bytes[i] = static_cast<std::byte>((number * 131 + i) * 2654435761u >> 24);
  }
  return content;
}

}  // namespace penstock::kvstore
