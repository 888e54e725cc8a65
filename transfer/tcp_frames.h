// SPDX-License-Identifier: Apache-2.0
// What goes over a TCP link: frames of a header and a payload. All of it comes from a peer, and is
// checked here before anybody believes it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "transfer/link.h"

namespace penstock::transfer {

enum class FrameType : std::uint8_t {
  kMessage = 1,
  kRead = 2,    // A ReadRequest.
  kData = 3,    // The next bytes of a read.
  kEnd = 4,     // A read will not get the rest of its bytes: status code and text.
  kCancel = 5,  // A read's bytes are not wanted any more: answered by its last kData or by kEnd.
  kPing = 6,
  kNccl = 7,  // Of links of kind nccl only: nccl_frames.h.
};

struct FrameHeader {
  FrameType type{};
  std::uint32_t payload_bytes = 0;
  std::uint64_t id = 0;  // Of a read; of other frames 0.
};

inline constexpr std::size_t kHeaderBytes = 16;
inline constexpr std::size_t kDataBytesMax = std::size_t{1} << 20;
inline constexpr std::size_t kRequestBytesMax = std::size_t{1} << 20;
inline constexpr std::size_t kEndBytesMax = 512;
inline constexpr std::size_t kReadBytesMax = std::size_t{1} << 40;  // Of one read.
// Of one side, asked and not yet ended. Both sides count alike, so that a peer which has more under
// way breaks the protocol.
inline constexpr std::size_t kReadsMax = 256;
inline constexpr std::size_t kRequestsBytesMax = std::size_t{8} << 20;

std::array<std::byte, kHeaderBytes> EncodeHeader(const FrameHeader& header);
// INVALID_ARGUMENT: unknown type, or a payload that such a frame cannot have.
absl::StatusOr<FrameHeader> DecodeHeader(std::span<const std::byte, kHeaderBytes> bytes);

// What a peer asks for. Units of a plan have the same runs, so each set of runs travels once.
class ReadRequest {
 public:
  // Of units whose runs may be empty or have none: those are not asked for.
  static std::vector<std::byte> Encode(SegmentId segment, std::span<const Unit> units);
  // The same, of what a peer may be asked for at once; INVALID_ARGUMENT with all numbers for more.
  static absl::StatusOr<std::vector<std::byte>> EncodeOne(SegmentId segment,
                                                          std::span<const Unit> units);
  // INVALID_ARGUMENT: cut off, or with runs of no bytes, or above kReadBytesMax. Takes time and
  // memory in proportion to `payload`, whatever it says.
  static absl::StatusOr<ReadRequest> Decode(std::span<const std::byte> payload);

  SegmentId segment() const { return segment_; }
  // `to` is null in all of them. Valid as long as this lives; moving it keeps them.
  std::span<const Unit> units() const { return units_; }
  std::uint64_t bytes() const { return bytes_; }
  // As transfer::CheckInside, in time proportional to the request.
  absl::Status CheckInside(std::uint64_t segment_bytes) const;

 private:
  SegmentId segment_{};
  std::vector<std::vector<ByteRun>> tables_;
  std::vector<std::uint64_t> table_ends_;  // How far the runs of each reach.
  std::vector<Unit> units_;
  std::vector<std::uint32_t> unit_tables_;
  std::uint64_t bytes_ = 0;
};

// The payload of kEnd.
std::vector<std::byte> EncodeEnd(const absl::Status& status);
// NOT_FOUND, INVALID_ARGUMENT, CANCELLED as sent; INTERNAL for what no peer should send.
absl::Status DecodeEnd(std::span<const std::byte> payload);

}  // namespace penstock::transfer
