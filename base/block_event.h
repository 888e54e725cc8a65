// SPDX-License-Identifier: Apache-2.0
// What became of a block in a worker's pool, as the worker tells the coordinator: one name for it,
// from the pool to the prefix index. What ends_prefix means is in coordinator/prefix_index.h. A
// plain value; any thread.
#pragma once

#include <cstdint>

#include "base/key.h"
#include "base/loss_class.h"

namespace penstock {

// What a block is called in these events for those who accept copies of it up to `loss`: of exact ones,
// its chain. Nobody computes with it.
inline Chain NameUpTo(Chain chain, LossClass loss) {
  chain.bytes.back() ^= static_cast<std::uint8_t>(loss);
  return chain;
}

struct BlockEvent {
  enum class Kind : std::uint8_t { kStored, kRemoved, kCleared, kSnapshotBegin, kSnapshotEnd };
  Kind kind = Kind::kStored;
  bool ends_prefix = true;  // Of kStored.
  Chain chain = {};         // Of kStored and kRemoved; as NameUpTo says.

  bool operator==(const BlockEvent&) const = default;
};

}  // namespace penstock
