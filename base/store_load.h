// SPDX-License-Identifier: Apache-2.0
// What members say of the store, as they register and with each report of their load: one form of it,
// from who measures to who plans. Plain values; any thread.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <string>

#include "base/copy_event.h"
#include "base/key.h"
#include "base/loss_class.h"

namespace penstock {

// How the blocks of one group of a worker's KV are known in store nodes.
struct StoredGroup {
  // Of copies of each class (base/loss_class.h).
  std::array<Namespace, kLossClasses> copy_spaces = {};
  // 0: all blocks of a prefix are needed. w: those that the next token sees.
  std::uint32_t window_tokens = 0;
  std::uint64_t block_bytes = 0;
  bool operator==(const StoredGroup&) const = default;
};

// Of which class the copies are that a codec makes of exact blocks.
struct CodecLoss {
  std::uint8_t codec = 0;
  LossClass loss = LossClass::kExact;
  bool operator==(const CodecLoss&) const = default;
};
// The worst of them; exact where there are none.
inline LossClass MostLoss(std::span<const CodecLoss> codecs) {
  LossClass most = LossClass::kExact;
  for (const CodecLoss& codec : codecs) most = std::max(most, codec.loss);
  return most;
}

// How fast copies by one codec came to a worker from one tier of a store node, decoded and verified:
// of their bytes as they travelled.
struct FetchRate {
  std::string store = {};
  Tier tier = Tier::kHost;
  std::uint8_t codec = 0;
  double bytes_per_s = 0;
};

// Of one tier of a store node.
struct TierLoad {
  Tier tier = Tier::kHost;
  std::uint64_t bytes = 0;
  std::uint64_t bytes_max = 0;
  std::uint64_t copies = 0;
  std::uint64_t hits = 0;  // Since the node began, as misses.
  std::uint64_t misses = 0;
  double bytes_per_s = 0;  // Of reading it; 0: not measured.
};

}  // namespace penstock
