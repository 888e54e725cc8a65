// SPDX-License-Identifier: Apache-2.0
#include "transfer/servings.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/status.h"

namespace penstock::transfer {

absl::Status Servings::Serve(std::uint64_t id, ReadRequest request, std::size_t request_bytes) {
  const bool twice = std::any_of(serving_.begin(), serving_.end(),
                                 [&](const Serving& other) { return other.id == id; });
  if (twice || serving_.size() >= kReadsMax ||
      request_bytes > kRequestsBytesMax - requests_bytes_) {
    return absl::InvalidArgumentError(absl::StrCat("the peer asks for read ", id, " beside ",
                                                   serving_.size(),
                                                   " others: it is one of them, or one too many"));
  }
  const SegmentTable::Segment* const segment = own_.Find(request.segment());
  absl::Status status;
  if (segment == nullptr) {
    status = absl::NotFoundError(
        absl::StrCat("no segment ", static_cast<std::uint32_t>(request.segment())));
  } else {
    status = request.CheckInside(segment->bytes.size());
  }
  const std::uint64_t left = request.bytes();
  serving_.push_back({.id = id,
                      .request = std::move(request),
                      .cursor = UnitCursor({}),
                      .request_bytes = request_bytes,
                      .left = left,
                      .source = status.ok() ? segment->bytes.data() : nullptr,
                      .status = std::move(status)});
  serving_.back().cursor = UnitCursor(serving_.back().request.units());
  requests_bytes_ += request_bytes;
  return absl::OkStatus();
}

void Servings::Cancel(std::uint64_t id) {
  for (Serving& read : serving_) {
    if (read.id == id && read.status.ok()) read.status = absl::CancelledError("read cancelled");
  }
}

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
    Pop();
    return packed;
  }
  for (std::size_t at = 0; at < to.size();) {
    const UnitCursor::Piece piece = read.cursor.Next(to.size() - at);
    std::memcpy(to.data() + at, read.source + piece.from, piece.bytes);
    read.cursor.Advance(piece.bytes);
    at += piece.bytes;
  }
  read.left -= to.size();
  if (read.left == 0) Pop();
  return packed;
}

void Servings::Pop() {
  requests_bytes_ -= serving_.front().request_bytes;
  serving_.pop_front();
}

}  // namespace penstock::transfer
