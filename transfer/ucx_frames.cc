// SPDX-License-Identifier: Apache-2.0
#include "transfer/ucx_frames.h"

#include <cstring>

#include "base/status.h"
#include "transfer/link.h"
#include "transfer/tcp_frames.h"

namespace penstock::transfer {
namespace {

struct Limits {
  std::size_t least, most;
  bool has_id;
};

absl::StatusOr<Limits> LimitsOf(UcxFrameType type) {
  switch (type) {
    case UcxFrameType::kMessage:
      return Limits{1, Link::kMessageBytesMax, false};
    case UcxFrameType::kRead:
      return Limits{1, kRequestBytesMax, true};
    case UcxFrameType::kData:
      return Limits{1, kUcxDataBytesMax, true};
    case UcxFrameType::kEnd:
      return Limits{1, kEndBytesMax, true};
    case UcxFrameType::kCancel:
    case UcxFrameType::kDelivered:
      return Limits{0, 0, true};
    case UcxFrameType::kPing:
      return Limits{0, 0, false};
  }
  return absl::InvalidArgumentError(absl::StrCat("a frame of type ", static_cast<int>(type)));
}

}  // namespace

std::array<std::byte, kUcxHeaderBytes> EncodeUcxHeader(const UcxHeader& header) {
  std::array<std::byte, kUcxHeaderBytes> bytes{};
  std::memcpy(bytes.data(), &header.link, 8);
  std::memcpy(bytes.data() + 8, &header.sequence, 8);
  std::memcpy(bytes.data() + 16, &header.payload_bytes, 4);
  bytes[20] = static_cast<std::byte>(header.type);
  std::memcpy(bytes.data() + 24, &header.id, 8);
  return bytes;
}

std::uint64_t UcxLinkNumber(std::span<const std::byte, kUcxHeaderBytes> bytes) {
  std::uint64_t number = 0;
  std::memcpy(&number, bytes.data(), sizeof(number));
  return number;
}

absl::StatusOr<UcxHeader> DecodeUcxHeader(std::span<const std::byte, kUcxHeaderBytes> bytes) {
  UcxHeader header;
  header.link = UcxLinkNumber(bytes);
  std::memcpy(&header.sequence, bytes.data() + 8, 8);
  std::memcpy(&header.payload_bytes, bytes.data() + 16, 4);
  header.type = static_cast<UcxFrameType>(bytes[20]);
  std::memcpy(&header.id, bytes.data() + 24, 8);
  ASSIGN_OR_RETURN(const Limits limits, LimitsOf(header.type));
  if (header.payload_bytes < limits.least || header.payload_bytes > limits.most) {
    return absl::InvalidArgumentError(
        absl::StrCat("a frame of type ", static_cast<int>(header.type), " has from ", limits.least,
                     " to ", limits.most, " bytes, got ", header.payload_bytes));
  }
  const bool padded =
      bytes[21] == std::byte{} && bytes[22] == std::byte{} && bytes[23] == std::byte{};
  if ((header.id != 0) != limits.has_id || !padded) {
    return absl::InvalidArgumentError(absl::StrCat("a frame of type ",
                                                   static_cast<int>(header.type), " with id ",
                                                   header.id, " and wrong padding or id"));
  }
  return header;
}

}  // namespace penstock::transfer
