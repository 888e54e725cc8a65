// SPDX-License-Identifier: Apache-2.0
// The reads that a peer asked for, in their order, and their bytes packed piece by piece. What is
// packed is a copy: a segment may be withdrawn while it is on its way.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include "absl/status/status.h"
#include "transfer/segment_table.h"
#include "transfer/serving_queue.h"
#include "transfer/tcp_frames.h"

namespace penstock::transfer {

class Servings {
 public:
  explicit Servings(const SegmentTable& own) : serving_(own) {}

  // As ServingQueue's. Of one that is cancelled no more is packed.
  absl::Status Serve(std::uint64_t id, ReadRequest request, std::size_t request_bytes) {
    return serving_.Serve(id, std::move(request), request_bytes);
  }
  void Cancel(std::uint64_t id) { serving_.Cancel(id); }
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
  ServingQueue serving_;
};

}  // namespace penstock::transfer
