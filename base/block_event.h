// SPDX-License-Identifier: Apache-2.0
// What became of a block in a worker's pool, as the worker tells the coordinator: one name for it,
// from the pool to the prefix index. What ends_prefix means is in coordinator/prefix_index.h. A
// plain value; any thread.
#pragma once

#include <cstdint>

#include "base/key.h"

namespace penstock {

struct BlockEvent {
  enum class Kind : std::uint8_t { kStored, kRemoved, kCleared, kSnapshotBegin, kSnapshotEnd };
  Kind kind = Kind::kStored;
  bool ends_prefix = true;  // Of kStored.
  Chain chain = {};         // Of kStored and kRemoved.

  bool operator==(const BlockEvent&) const = default;
};

}  // namespace penstock
