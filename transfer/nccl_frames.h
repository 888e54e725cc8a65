// SPDX-License-Identifier: Apache-2.0
// What the two ends of a link of kind nccl tell each other about communicators and slots, as the
// payload of a FrameType::kNccl. All of it comes from a peer, and is checked here before anybody
// believes it.
//
// All of them are of one lane of the link, a pair of GPUs, which has a communicator of its own.
//
// A communicator's life: rank 0 says kOpen, each side kOpened once it is there, and each kClosed
// when it is over here, for whatever reason. Rank 0 opens the next when both have said kClosed, so
// frames need no number of the communicator. Where one cannot even be begun, rank 0 says kClosed at
// once.
//
// A slot's way: the server packs it and says kPacked; the reader answers kSkip, where its bytes are
// not wanted any more, or reserves a slot of its own and answers kReady. Only then both post, and
// both in the order that rank 0 gives: its kReady or kGo has the place in that order. So no side
// ever posts before the other can, and two that post in opposite directions do not wait for each
// other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "device/nccl_api.h"

namespace penstock::transfer {

struct NcclFrame {
  enum class Type : std::uint8_t {
    kOpen = 1,    // id
    kOpened = 2,  //
    kClosed = 3,  // text: why, at most kTextBytesMax
    kPacked = 4,  // number, read, bytes, pack_ns: the next of that read lie in a slot
    kSkip = 5,    // number
    kReady = 6,   // number, order (of rank 1: 0)
    kGo = 7,      // number, order; of rank 0 only
  };
  static constexpr std::size_t kTextBytesMax = 400;

  Type type{};
  std::uint16_t lane = 0;    // Which of the link's, as nccl_link.h numbers them.
  std::uint64_t number = 0;  // Of kPacked: counted per direction and communicator, from 0.
  std::uint64_t order = 0;   // Counted per communicator, from 0.
  std::uint64_t read = 0;
  std::uint32_t bytes = 0;
  std::uint32_t pack_ns = 0;  // What packing took; for traces.
  NcclId id = {};
  std::string text = {};

  std::vector<std::byte> Encode() const;
  // INVALID_ARGUMENT: unknown, too short or too long.
  static absl::StatusOr<NcclFrame> Decode(std::span<const std::byte> payload);
};

}  // namespace penstock::transfer
