// SPDX-License-Identifier: Apache-2.0
// The reads that a peer asked for, in their order, and their bytes packed piece by piece. What is
// packed is a copy: a segment may be withdrawn while it is on its way.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>

#include "absl/status/status.h"
#include "transfer/segment_table.h"
#include "transfer/tcp_frames.h"
#include "transfer/unit_cursor.h"

namespace penstock::transfer {

class Servings {
 public:
  explicit Servings(const SegmentTable& own) : own_(own) {}

  // A peer's read. INVALID_ARGUMENT when the peer has more under way than it may, or the number
  // twice.
  absl::Status Serve(std::uint64_t id, ReadRequest request, std::size_t request_bytes);
  // No more of it is packed. Unknown ones, which are all packed, are ignored.
  void Cancel(std::uint64_t id);
  // From here on nothing is loaded from that segment.
  void DropSegment(SegmentId segment);

  bool empty() const { return serving_.empty(); }
  // How much Pack would pack into a buffer of so many bytes. 0: an end. Not when empty.
  std::size_t NextBytes(std::size_t bytes_max) const;
  struct Packed {
    std::uint64_t id = 0;
    absl::Status status;  // Not OK: the read ends so, and nothing was packed.
  };
  // Fills `to`, of NextBytes bytes.
  Packed Pack(std::span<std::byte> to);

 private:
  struct Serving {
    std::uint64_t id = 0;
    ReadRequest request;
    UnitCursor cursor;
    std::size_t request_bytes = 0;
    std::uint64_t left = 0;
    const std::byte* source = nullptr;
    absl::Status status;  // Not OK: ends so in its turn.
  };
  void Pop();

  const SegmentTable& own_;
  std::deque<Serving> serving_;
  std::size_t requests_bytes_ = 0;
};

}  // namespace penstock::transfer
