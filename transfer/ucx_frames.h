// SPDX-License-Identifier: Apache-2.0
// The header of each of our frames over UCX, an active message. Comes from a peer, and is checked
// here before anybody believes it. Requests and ends are those of tcp_frames.h.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/statusor.h"

namespace penstock::transfer {

enum class UcxFrameType : std::uint8_t {
  kMessage = 1,
  kRead = 2,    // A ReadRequest.
  kData = 3,    // The next bytes of a read.
  kEnd = 4,     // A read will not get the rest of its bytes: EncodeEnd.
  kCancel = 5,  // A read's bytes are not wanted any more.
  kPing = 6,
  kDelivered = 7,  // `id` is how much of what the messages cost was delivered since the last one.
};

struct UcxHeader {
  std::uint64_t link = 0;      // The receiver's number of the link, never used twice.
  std::uint64_t sequence = 0;  // Of this frame on its link, from 0: UCX may swap large and small.
  UcxFrameType type{};
  std::uint32_t payload_bytes = 0;
  std::uint64_t id = 0;  // Of a read, or of kDelivered; of other frames 0.
};

inline constexpr std::size_t kUcxHeaderBytes = 32;
// Of one kData: packed and checked while it is in a cache.
inline constexpr std::size_t kUcxDataBytesMax = std::size_t{256} << 10;
// What a message costs of the memory that both sides bound, beside its bytes.
inline constexpr std::size_t kUcxMessageCost = 64;

std::array<std::byte, kUcxHeaderBytes> EncodeUcxHeader(const UcxHeader& header);
// Of a header that may be none.
std::uint64_t UcxLinkNumber(std::span<const std::byte, kUcxHeaderBytes> bytes);
// INVALID_ARGUMENT: unknown type, or a payload, padding or id that such a frame cannot have.
absl::StatusOr<UcxHeader> DecodeUcxHeader(std::span<const std::byte, kUcxHeaderBytes> bytes);

}  // namespace penstock::transfer
