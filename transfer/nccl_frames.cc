// SPDX-License-Identifier: Apache-2.0
#include "transfer/nccl_frames.h"

#include <cstring>

#include "base/status.h"
#include "transfer/wire.h"

namespace penstock::transfer {

std::vector<std::byte> NcclFrame::Encode() const {
  std::vector<std::byte> payload;
  WireWriter writer(payload);
  writer.Number(static_cast<std::uint8_t>(type));
  writer.Number(lane);
  switch (type) {
    case Type::kOpen:
      writer.Bytes(std::as_bytes(std::span(id.bytes)));
      break;
    case Type::kOpened:
      break;
    case Type::kClosed:
      writer.Text(std::string_view(text).substr(0, kTextBytesMax));
      break;
    case Type::kPacked:
      writer.Number(number);
      writer.Number(read);
      writer.Number(bytes);
      writer.Number(pack_ns);
      break;
    case Type::kSkip:
      writer.Number(number);
      break;
    case Type::kReady:
    case Type::kGo:
      writer.Number(number);
      writer.Number(order);
      break;
  }
  return payload;
}

absl::StatusOr<NcclFrame> NcclFrame::Decode(std::span<const std::byte> payload) {
  WireReader reader(payload);
  NcclFrame frame;
  frame.type = static_cast<Type>(reader.Number<std::uint8_t>());
  frame.lane = reader.Number<std::uint16_t>();
  bool known = true;
  switch (frame.type) {
    case Type::kOpen: {
      const auto id = reader.Bytes(sizeof(frame.id.bytes));
      if (reader.ok()) std::memcpy(frame.id.bytes, id.data(), id.size());
      break;
    }
    case Type::kOpened:
      break;
    case Type::kClosed:
      frame.text = reader.Text();
      break;
    case Type::kPacked:
      frame.number = reader.Number<std::uint64_t>();
      frame.read = reader.Number<std::uint64_t>();
      frame.bytes = reader.Number<std::uint32_t>();
      frame.pack_ns = reader.Number<std::uint32_t>();
      break;
    case Type::kSkip:
      frame.number = reader.Number<std::uint64_t>();
      break;
    case Type::kReady:
    case Type::kGo:
      frame.number = reader.Number<std::uint64_t>();
      frame.order = reader.Number<std::uint64_t>();
      break;
    default:
      known = false;
  }
  if (!known || !reader.ok() || reader.left() > 0 || frame.text.size() > kTextBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a malformed frame of kind nccl, type ", payload.empty() ? 0 : static_cast<int>(payload[0]),
        ", of ", payload.size(), " bytes"));
  }
  return frame;
}

}  // namespace penstock::transfer
