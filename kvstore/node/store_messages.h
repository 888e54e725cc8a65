// SPDX-License-Identifier: Apache-2.0
// What a store node and those who keep copies there, or want some, say to each other on a channel.
// Bytes of frames never travel here: they are read (transfer/channel.h). Little-endian, packed, at
// most Link::kMessageBytesMax each; the first byte is the type.
//
//   peer -> node   Ask      would these copies be taken?       node -> peer   Want
//   peer -> node   Offer    a frame in the peer's segment      node -> peer   Taken, once it was read
//   peer -> node   Find     the copies of a chain              node -> peer   Found for each, in order,
//                                                              as they are in host memory; or Missing
//   peer -> node   Release  the first so many were read        (ends their leases)
//   peer -> node   Keep     the first so many stay mapped      (their leases go on)
//   peer -> node   Drop     those are read no more             (ends their leases)
//   peer -> node   Renew    all that was found is still read   (renews their leases)
//                                                              node -> peer   Lost, where one has ended
//
// What a Find holds at the node ends with Release of all, with the channel, or with its leases; what
// of it is kept, with Drop, with the channel, or with its lease. A node sends Found for find_ahead
// copies beyond what was released or kept at most.
//
// What all peers keep together is a share of the node's memory at most: Found says what may be kept, and
// who keeps another breaks the protocol.
//
// Numbers of Ask, Offer and Find are the peer's, new in each channel. Parsing trusts nothing:
// INVALID_ARGUMENT names the field and both numbers. Plain values; any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/copy_event.h"
#include "base/key.h"
#include "transfer/link.h"

namespace penstock::kvstore {

constexpr std::size_t kChainsMax = 3072;            // Of one message.
constexpr std::size_t kHeaderBytesMax = 48u << 10;  // Of a frame whose header travels in a message.
constexpr std::size_t kReasonBytesMax = 512;

struct AskMessage {
  std::uint64_t id = 0;
  Namespace space = {};  // A copy space, as all spaces here.
  std::vector<Chain> chains = {};
};
struct WantMessage {
  std::uint64_t id = 0;
  std::vector<bool> wanted = {};  // One for each chain asked for.
};
struct OfferMessage {
  std::uint64_t id = 0;
  BlockKey key = {};
  std::optional<Chain> parent = {};  // Of the block before.
  std::uint32_t tenant = 0;
  std::uint32_t tokens_before = 0;
  transfer::SegmentId segment{};
  std::uint64_t offset = 0;            // Of the frame's payload.
  std::vector<std::byte> header = {};  // The frame's.
};
struct TakenMessage {
  std::uint64_t id = 0;
  absl::Status status = {};  // Not OK: why it was not taken; its message is cut to kReasonBytesMax.
};
struct FindMessage {
  std::uint64_t id = 0;
  std::uint32_t within_ms = 0;  // Beyond, nothing more is wanted.
  Namespace space = {};
  std::vector<Chain> chains = {};  // Head first.
  bool backwards = false;          // The last one is told first.
};
struct FoundMessage {
  std::uint64_t id = 0;
  std::uint32_t index = 0;      // In the order in which they are told.
  Tier tier = Tier::kHost;      // Where it lay.
  std::uint32_t waited_us = 0;  // For it to be in host memory.
  transfer::SegmentId segment{};
  std::uint64_t offset = 0;  // Of the frame's payload.
  std::uint64_t generation_offset = 0;
  std::uint64_t generation = 0;
  std::uint32_t lease_ms = 0;  // From now on it stays, and from each Renew: ask well before.
  bool may_keep = false;       // It may be read where it is for longer than the find lasts.
  std::vector<std::byte> header = {};
};
struct MissingMessage {
  std::uint64_t id = 0;
  std::uint32_t index = 0;   // This one and those behind it are not to be had.
  absl::Status status = {};  // NOT_FOUND, or why not.
};
struct ReleaseMessage {
  std::uint64_t id = 0;
  std::uint32_t count = 0;  // UINT32_MAX: all, and the Find is over.
};
struct RenewMessage {
  std::uint64_t id = 0;  // 0: of all finds of the channel, kept copies with them.
};
struct KeepMessage {
  std::uint64_t id = 0;
  std::uint32_t count = 0;  // As Release; those before the last Release or Keep are settled.
};
struct DropMessage {
  std::uint64_t id = 0;
  std::vector<std::uint32_t> indices = {};  // Of kept ones; at most kChainsMax.
};
struct LostMessage {
  std::uint64_t id = 0;
  std::uint32_t index = 0;  // A kept copy whose lease had ended; it is kept no more.
};

using StoreMessage = std::variant<AskMessage, WantMessage, OfferMessage, TakenMessage, FindMessage,
                                  FoundMessage, MissingMessage, ReleaseMessage, RenewMessage,
                                  KeepMessage, DropMessage, LostMessage>;

std::vector<std::byte> Encode(const StoreMessage& message);
absl::StatusOr<StoreMessage> Decode(std::span<const std::byte> bytes);

}  // namespace penstock::kvstore
