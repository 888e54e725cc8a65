// SPDX-License-Identifier: Apache-2.0
// All that parses what a peer sends. A request that is accepted stays inside the segment that it
// was checked against, and asks for as many bytes as it says.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/check.h"
#include "transfer/hello.h"
#include "transfer/nccl_frames.h"
#include "transfer/tcp_frames.h"
#include "transfer/unit_cursor.h"

namespace penstock::transfer {
namespace {

constexpr std::uint64_t kSegmentBytes = 1 << 20;
constexpr int kPiecesMax = 10000;

void CheckRequest(const ReadRequest& request) {
  CHECK_EQ(TotalBytes(request.units()), request.bytes());
  const bool inside = request.CheckInside(kSegmentBytes).ok();
  CHECK_EQ(inside, CheckInside(request.units(), kSegmentBytes).ok());
  if (!inside) return;
  UnitCursor cursor(request.units());
  for (int i = 0; i < kPiecesMax && !cursor.done(); ++i) {
    const UnitCursor::Piece piece = cursor.Next(SIZE_MAX);
    CHECK_GT(piece.bytes, 0u);
    CHECK_LE(piece.from + piece.bytes, kSegmentBytes);
    cursor.Advance(piece.bytes);
  }
}

}  // namespace
}  // namespace penstock::transfer

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace penstock::transfer;
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data), size);
  if (size < kHeaderBytes) return 0;
  const auto header = DecodeHeader(bytes.first<kHeaderBytes>());
  if (header.ok()) {
    const auto again = EncodeHeader(*header);
    CHECK(std::equal(again.begin(), again.end(), bytes.begin()));
  }
  const std::span<const std::byte> payload = bytes.subspan(kHeaderBytes);
  if (const auto request = ReadRequest::Decode(payload); request.ok()) CheckRequest(*request);
  (void)DecodeEnd(payload);
  if (const auto frame = NcclFrame::Decode(payload); frame.ok()) {
    const auto again = frame->Encode();
    CHECK(std::equal(payload.begin(), payload.end(), again.begin(), again.end()));
  }
  (void)DecodePreamble(bytes.first<kPreambleBytes>());
  if (const auto hello = DecodeHello(payload); hello.ok()) {
    const auto again = EncodeHello(*hello);
    CHECK(std::equal(payload.begin(), payload.end(), again.begin() + kPreambleBytes, again.end()));
  }
  return 0;
}
