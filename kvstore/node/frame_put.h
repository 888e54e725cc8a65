// SPDX-License-Identifier: Apache-2.0
// One frame on its way out of a peer's segment into the tiers of a node, as it is: what a worker
// offers, and what is copied from another node.
//
//   Make   the header is one of this copy and this cluster, or it is refused
//   Begin  room for it in host memory
//   End    OK: its bytes are there, and have the checksums of its header: it can be found
//
// Of its owner, on the loop of the tiers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/time.h"
#include "kvstore/codecs/frame.h"
#include "kvstore/node/store_messages.h"
#include "kvstore/node/tier_set.h"
#include "transfer/channel.h"
#include "transfer/link_turns.h"

namespace penstock::kvstore {

class FramePut {
 public:
  // As ParseHeaderOfCopy; INVALID_ARGUMENT also, with both numbers: a payload that is not at a multiple
  // of kFramePageBytes, or of no bytes, or of more than 1 GiB.
  static absl::StatusOr<std::unique_ptr<FramePut>> Make(OfferMessage offer,
                                                        const std::optional<Secret>& secret);

  const BlockKey& key() const { return offer_.key; }
  std::uint32_t bytes() const { return bytes_; }  // Of the frame.
  bool begun() const { return !to_.empty(); }
  // As TierSet::BeginPut.
  absl::Status Begin(TierSet& tiers);
  // What brings the payload to its room, checked; after Begin. The put outlives the read.
  transfer::Channel::ReadRequest Read(MonoTime deadline) const;
  // Of the read; or, not OK, nothing is read, or will be. Once, where it has begun; else nothing
  // happens.
  void End(TierSet& tiers, const absl::Status& status);

  transfer::LinkTurns::Turn turn;  // Its owner's to ask for.

 private:
  FramePut() = default;

  OfferMessage offer_;
  FrameHeader header_;
  std::uint32_t bytes_ = 0;
  std::span<std::byte> to_;              // Once there is room.
  std::vector<transfer::ByteRun> runs_;  // One for each layer.
};

}  // namespace penstock::kvstore
