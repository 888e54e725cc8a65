// SPDX-License-Identifier: Apache-2.0
// A peer's frames over UCX, one after the other: what is accepted says the same when it is written
// again, is within the limits of its type, and its payload parses or is refused.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/check.h"
#include "transfer/link.h"
#include "transfer/tcp_frames.h"
#include "transfer/ucx_frames.h"

namespace penstock::transfer {
namespace {

// The limits once more, as ucx_frames.h and tcp_frames.h state them.
std::size_t MostOf(UcxFrameType type) {
  switch (type) {
    case UcxFrameType::kMessage:
      return Link::kMessageBytesMax;
    case UcxFrameType::kRead:
      return kRequestBytesMax;
    case UcxFrameType::kData:
      return kUcxDataBytesMax;
    case UcxFrameType::kEnd:
      return kEndBytesMax;
    case UcxFrameType::kCancel:
    case UcxFrameType::kPing:
    case UcxFrameType::kDelivered:
      return 0;
  }
  CHECK_EQ(static_cast<int>(type), -1);  // Accepted, and not known.
  return 0;
}

void CheckHeader(const UcxHeader& header, std::span<const std::byte, kUcxHeaderBytes> bytes) {
  const auto again = EncodeUcxHeader(header);
  CHECK(std::equal(again.begin(), again.end(), bytes.begin()));
  CHECK_EQ(header.link, UcxLinkNumber(bytes));
  CHECK_LE(header.payload_bytes, MostOf(header.type));
  const bool has_id = header.type != UcxFrameType::kMessage && header.type != UcxFrameType::kPing;
  CHECK_EQ(header.id != 0, has_id);
}

void CheckPayload(UcxFrameType type, std::span<const std::byte> payload) {
  if (type == UcxFrameType::kEnd) CHECK(!DecodeEnd(payload).ok());
  if (type != UcxFrameType::kRead) return;
  const auto request = ReadRequest::Decode(payload);
  if (!request.ok()) return;
  CHECK_LE(request->bytes(), kReadBytesMax);
  CHECK_EQ(TotalBytes(request->units()), request->bytes());
}

}  // namespace
}  // namespace penstock::transfer

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace penstock::transfer;
  std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data), size);
  while (bytes.size() >= kUcxHeaderBytes) {
    const auto head = bytes.first<kUcxHeaderBytes>();
    bytes = bytes.subspan(kUcxHeaderBytes);
    const auto header = DecodeUcxHeader(head);
    if (!header.ok()) continue;
    CheckHeader(*header, head);
    // UCX tells the length of what it delivers: another than the header's ends the connection.
    if (header->payload_bytes > bytes.size()) break;
    CheckPayload(header->type, bytes.first(header->payload_bytes));
    bytes = bytes.subspan(header->payload_bytes);
  }
  return 0;
}
