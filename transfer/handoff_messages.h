// SPDX-License-Identifier: Apache-2.0
// What a prefill and a decode worker say to each other on a channel while KV moves. Little-endian,
// packed, at most Link::kMessageBytesMax each; the first byte is the type.
//
//   prefill -> decode   Pool      once, first: how the sender's slabs look, with a checksum
//   decode -> prefill   Pool      the answer: how the receiver's look; both make the same plans
//   prefill -> decode   Ready     blocks of one layer may be read, with their checksums
//   prefill -> decode   Mapped    blocks that the sender reads in a store node's memory, in some
//                                 groups at least: they are not told of as ready unless they are
//                                 wanted
//   decode -> prefill   Wanted    of such blocks those that cannot be had elsewhere: the range from
//                                 the first to the last of them, whatever was told of in between;
//                                 at most one for each Mapped
//   decode -> prefill   Received  all is there and verified: the pages may go
//   either              Failed    the grant is over, and why
//
// Parsing trusts nothing: INVALID_ARGUMENT names the field and both numbers.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/kv_spec.h"
#include "base/loss_class.h"
#include "transfer/link.h"
#include "transfer/plan.h"
#include "transfer/split_plan.h"

namespace penstock::transfer {

// A receiver's promise to take the KV of one prompt: `number` is used once in the life `epoch` of
// the receiver.
struct Grant {
  std::uint64_t epoch = 0;
  std::uint64_t number = 0;
  auto operator<=>(const Grant&) const = default;
};

// In the number of a grant that is none: its sender tries the way, and the bytes go to scratch. Its
// first Ready says how many blocks there are, which every layer has then; without any it is
// answered with Received at once. More than one block are kProbeBytesMax at most, of one sender at
// a time.
inline constexpr std::uint64_t kProbeGrant = std::uint64_t{1} << 63;
inline constexpr std::size_t kProbeBytesMax = std::size_t{8} << 20;

// What one GPU has of the slabs of a group.
struct PoolPart {
  SegmentId segment{};
  std::uint64_t slab_bytes = 0;  // Of its part of a slab.
  SlabPart slab;
};

// The slabs of one group in a worker's pool.
struct PoolGroup {
  SegmentId segment{};
  std::uint64_t slab_bytes = 0;
  SideLayout side;
  // Where they lie in the memory of GPUs: one for each, as lanes count them; then `segment` and
  // `slab_bytes` mean nothing. At most kGpusMax.
  std::vector<PoolPart> parts = {};

  // One at least.
  std::vector<SlabPart> SlabParts() const;
  SegmentId SegmentOf(std::size_t part) const {
    return parts.empty() ? segment : parts[part].segment;
  }
  std::uint64_t SlabBytesOf(std::size_t part) const {
    return parts.empty() ? slab_bytes : parts[part].slab_bytes;
  }
};

struct PoolMessage {
  std::vector<PoolGroup> groups;  // At most kGroupsMax, with kPartsMax parts in all.
};

// INVALID_ARGUMENT: these slabs lie in parts, which only links of kind nccl read.
absl::Status CheckParts(std::span<const PoolGroup> groups, Kind kind);

// How units of a sender's slabs go to a receiver's: one plan per group. FAILED_PRECONDITION when
// the pools have other numbers of groups; as SplitPlan::Make.
absl::StatusOr<std::vector<SplitPlan>> MakePlans(std::span<const PoolGroup> from,
                                                 std::span<const PoolGroup> to);

struct ReadyMessage {
  struct Block {
    std::uint32_t slab = 0;  // At slab * slab_bytes of each part's segment.
    // Of the unit's legs, in the order of the pair's plan: as many in all of a message's blocks.
    absl::InlinedVector<std::uint32_t, 1> crcs = {0};
  };
  Grant grant;
  std::int32_t group = 0;
  std::int32_t cache_layer = 0;
  std::int32_t first_block = 0;  // Of the sequence.
  Lineage lineage = {};          // Of the sequence, as far as it is told of.
  std::vector<Block> blocks;     // At most BlocksMax of their legs.
};

// Blocks of the sequence.
struct MappedMessage {
  Grant grant;
  std::int32_t first_block = 0;
  std::int32_t end_block = 0;  // Above first_block.
};

// The least range with both.
MappedMessage Hull(const std::optional<MappedMessage>& before, const MappedMessage& mapped);

struct WantedMessage {
  Grant grant;
  std::int32_t first_block = 0;
  std::int32_t end_block = 0;  // Above first_block.
};

struct ReceivedMessage {
  Grant grant;
};

struct FailedMessage {
  Grant grant;
  absl::Status status;  // Its message is cut to kReasonBytesMax.
};

using HandoffMessage = std::variant<PoolMessage, ReadyMessage, ReceivedMessage, FailedMessage,
                                    MappedMessage, WantedMessage>;

constexpr std::size_t kGroupsMax = 64;
constexpr std::size_t kPartsMax = 1024;
constexpr std::size_t kBlocksMax = 4096;
// Of so many legs.
constexpr std::size_t BlocksMax(std::size_t legs) {
  return std::min(kBlocksMax, (Link::kMessageBytesMax - 1024) / (4 * (1 + legs)));
}
constexpr std::size_t kReasonBytesMax = 1024;

std::vector<std::byte> Encode(const HandoffMessage& message);
absl::StatusOr<HandoffMessage> Decode(std::span<const std::byte> bytes);

}  // namespace penstock::transfer
