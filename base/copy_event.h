// SPDX-License-Identifier: Apache-2.0
// What became of a copy in a store node, as the node tells the coordinator: one name for it, from
// the tiers to the cluster index. Plain values; any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "base/key.h"

namespace penstock {

// Where a copy lies. Numbers are on wires: never reused.
enum class Tier : std::uint8_t { kDevice = 1, kHost = 2, kDisk = 3, kRemote = 4 };
inline constexpr std::size_t kTiers = 5;  // For tables by number.
constexpr std::string_view ToString(Tier tier) {
  switch (tier) {
    case Tier::kDevice:
      return "device";
    case Tier::kHost:
      return "host";
    case Tier::kDisk:
      return "disk";
    case Tier::kRemote:
      return "remote";
  }
  return "unknown";
}

struct CopyEvent {
  enum class Kind : std::uint8_t { kStored, kRemoved, kCleared, kSnapshotBegin, kSnapshotEnd };
  Kind kind = Kind::kStored;
  CopyName name = {};  // Of kStored and kRemoved.
  // Of kStored. A node has a copy in one tier as far as others are concerned: the fastest of those
  // that it lies in. One that is stored again has moved.
  Tier tier = Tier::kHost;
  std::uint8_t codec = 0;               // CodecId of kvstore/codecs/codec_id.h.
  std::uint32_t bytes = 0;              // As it travels.
  std::optional<CopyName> parent = {};  // Of the block before; none: a first block, or not known.

  bool operator==(const CopyEvent&) const = default;
};

}  // namespace penstock
