// SPDX-License-Identifier: Apache-2.0
// The reads that a peer asked for, in their order, for a link that answers them one by one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>

#include "absl/status/status.h"
#include "transfer/segment_table.h"
#include "transfer/tcp_frames.h"
#include "transfer/unit_cursor.h"

namespace penstock::transfer {

struct Serving {
  std::uint64_t id = 0;
  ReadRequest request;
  UnitCursor cursor;
  std::size_t request_bytes = 0;
  std::uint64_t left = 0;
  const std::byte* source = nullptr;  // Null: there is no such segment, or no more.
  absl::Status status;                // Not OK: it ends so, in its turn.
};

class ServingQueue {
 public:
  // `on_device`: serves memory that the host cannot load from, too.
  explicit ServingQueue(const SegmentTable& own, bool on_device = false)
      : own_(own), on_device_(on_device) {}

  // A peer's read. INVALID_ARGUMENT when the peer has more under way than it may, or the number
  // twice.
  absl::Status Serve(std::uint64_t id, ReadRequest request, std::size_t request_bytes);
  // Its status becomes CANCELLED. Unknown ones, which are all answered, are ignored.
  void Cancel(std::uint64_t id);
  void Pop();

  bool empty() const { return reads_.empty(); }
  Serving& front() { return reads_.front(); }
  const Serving& front() const { return reads_.front(); }
  auto begin() { return reads_.begin(); }
  auto end() { return reads_.end(); }

 private:
  const SegmentTable& own_;
  const bool on_device_;
  std::deque<Serving> reads_;
  std::size_t requests_bytes_ = 0;
};

}  // namespace penstock::transfer
