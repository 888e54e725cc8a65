// SPDX-License-Identifier: Apache-2.0
#include "transfer/servings.h"

#include <algorithm>
#include <cstring>
#include <utility>


namespace penstock::transfer {

void Servings::DropSegment(SegmentId segment) {
  for (Serving& read : serving_) {
    if (read.request.segment() != segment) continue;
    read.source = nullptr;
    if (read.status.ok()) read.status = absl::NotFoundError("the segment was withdrawn");
  }
}

std::size_t Servings::NextBytes(std::size_t bytes_max) const {
  const Serving& read = serving_.front();
  return read.status.ok() ? std::min<std::uint64_t>(read.left, bytes_max) : 0;
}

Servings::Packed Servings::Pack(std::span<std::byte> to) {
  Serving& read = serving_.front();
  Packed packed{.id = read.id, .status = read.status};
  if (!read.status.ok()) {
    serving_.Pop();
    return packed;
  }
  for (std::size_t at = 0; at < to.size();) {
    const UnitCursor::Piece piece = read.cursor.Next(to.size() - at);
    std::memcpy(to.data() + at, read.source + piece.from, piece.bytes);
    read.cursor.Advance(piece.bytes);
    at += piece.bytes;
  }
  read.left -= to.size();
  if (read.left == 0) serving_.Pop();
  return packed;
}

}  // namespace penstock::transfer
