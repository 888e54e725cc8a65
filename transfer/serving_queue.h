// SPDX-License-Identifier: Apache-2.0
// The reads that a peer asked for, in their order, for a link that answers them one by one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>

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

// What a peer has under way on one link, whose queues share it.
struct ServingBudget {
  std::size_t reads = 0;
  std::size_t requests_bytes = 0;
};

class ServingQueue {
 public:
  // The only one of its link.
  explicit ServingQueue(const SegmentTable& own) : own_(own), budget_(alone_) {}
  // Serves memory of that one of the endpoint's GPUs, too. `link` outlives it.
  ServingQueue(const SegmentTable& own, std::size_t gpu, ServingBudget& link)
      : own_(own), gpu_(gpu), budget_(link) {}
  ServingQueue(const ServingQueue&) = delete;
  ServingQueue& operator=(const ServingQueue&) = delete;

  // A peer's read. INVALID_ARGUMENT when the peer has more under way on the link than it may, or
  // the number twice.
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
  const std::optional<std::size_t> gpu_ = {};
  std::deque<Serving> reads_;
  ServingBudget alone_;
  ServingBudget& budget_;
};

}  // namespace penstock::transfer
