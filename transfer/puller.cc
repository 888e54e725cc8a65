// SPDX-License-Identifier: Apache-2.0
#include "transfer/puller.h"

#include <utility>

#include "base/status.h"
#include "kernels/crc32c.h"

namespace penstock::transfer {

void Puller::Add(ReadId id, SegmentId segment, std::span<const std::byte> source,
                 std::span<const Unit> units) {
  absl::Status status = CheckInside(units, source.size());
  Push({.id = id,
        .segment = segment,
        .source = source.data(),
        .cursor = UnitCursor(units),
        .crcs = std::vector<std::uint32_t>(units.size(), 0),
        .status = std::move(status)});
}

void Puller::AddFailed(ReadId id, absl::Status status) {
  Push({.id = id, .cursor = UnitCursor({}), .crcs = {}, .status = std::move(status)});
}

void Puller::AddEmpty(ReadId id, std::size_t units) {
  Push({.id = id,
        .cursor = UnitCursor({}),
        .crcs = std::vector<std::uint32_t>(units, 0),
        .status = {}});
}

void Puller::Push(Pending pending) {
  pending_.push_back(std::move(pending));
  Schedule();
}

void Puller::Cancel(ReadId id) {
  for (Pending& read : pending_) {
    if (read.id == id && read.status.ok()) read.status = absl::CancelledError("read cancelled");
  }
}

void Puller::DropSegment(SegmentId segment) {
  for (Pending& read : pending_) {
    if (read.segment == segment && read.status.ok()) {
      read.status = absl::NotFoundError(
          absl::StrCat("segment ", static_cast<std::uint32_t>(segment), " was withdrawn"));
    }
  }
}

bool Puller::FailAll(const absl::Status& status) {
  const Life::Watch life = life_.watch();
  while (!pending_.empty()) {
    const ReadId id = pending_.front().id;
    pending_.pop_front();
    done_(id, status, {});
    if (life.over()) return false;
  }
  return true;
}

void Puller::Schedule() {
  if (scheduled_) return;
  scheduled_ = true;
  loop_.Post(life_.Guard([this] { Turn(); }));
}

void Puller::Turn() {
  scheduled_ = false;
  const Life::Watch life = life_.watch();
  // Reads that a callback adds wait for the next turn.
  std::size_t reads = pending_.size();
  for (std::size_t left = kSliceBytes; left > 0 && reads > 0 && !pending_.empty(); --reads) {
    Pending& read = pending_.front();
    if (read.status.ok()) {
      left -= Copy(read, left);
      if (!read.cursor.done()) break;
    }
    const Pending ended = std::move(read);
    pending_.pop_front();
    done_(ended.id, ended.status,
          ended.status.ok() ? std::span<const std::uint32_t>(ended.crcs)
                            : std::span<const std::uint32_t>());
    if (life.over()) return;
  }
  if (!pending_.empty()) Schedule();
}

std::size_t Puller::Copy(Pending& read, std::size_t bytes_max) {
  std::size_t copied = 0;
  while (copied < bytes_max && !read.cursor.done()) {
    const UnitCursor::Piece piece = read.cursor.Next(bytes_max - copied);
    // Faster than memcpy, whose stores would go through the caches: so it is the raw copy, too.
    std::uint32_t& crc = read.crcs[piece.unit];
    crc = piece.to == nullptr
              ? kernels::Crc32c(crc, read.source + piece.from, piece.bytes)
              : kernels::CopyCrc32c(crc, read.source + piece.from, piece.bytes, piece.to);
    read.cursor.Advance(piece.bytes);
    copied += piece.bytes;
  }
  return copied;
}

}  // namespace penstock::transfer
