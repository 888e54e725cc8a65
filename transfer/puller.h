// SPDX-License-Identifier: Apache-2.0
// Reads from memory that this process can load from: a mapping of the peer's segment, or the
// peer's own in the same process. One pass copies and computes the checksum, a slice per turn of
// the loop, so that messages and cancels get through.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "base/event_loop.h"
#include "transfer/life.h"
#include "transfer/link.h"
#include "transfer/unit_cursor.h"

namespace penstock::transfer {

class Puller {
 public:
  // As LinkEvents::OnRead; may destroy the puller.
  using Done = std::function<void(ReadId, const absl::Status&, std::span<const std::uint32_t>)>;

  Puller(Loop& loop, Done done) : loop_(loop), done_(std::move(done)) {}

  // Reads `units` out of `source`, which is valid until the read ends or DropSegment; `segment` is
  // its name. A read that is not inside ends as INVALID_ARGUMENT. Ends are told in order.
  void Add(ReadId id, SegmentId segment, std::span<const std::byte> source,
           std::span<const Unit> units);
  // A read that ends in its turn without having begun.
  void AddFailed(ReadId id, absl::Status status);
  // One of no bytes, which ends well.
  void AddEmpty(ReadId id, std::size_t units);
  void Cancel(ReadId id);
  // From here on nothing is loaded from that segment: its reads end in their turns as NOT_FOUND.
  void DropSegment(SegmentId segment);
  // Ends all reads, in order, from inside this call. False when a callback destroyed the puller.
  bool FailAll(const absl::Status& status);

  static constexpr std::size_t kSliceBytes = std::size_t{1} << 20;

 private:
  struct Pending {
    ReadId id{};
    SegmentId segment{};
    const std::byte* source = nullptr;
    UnitCursor cursor;
    std::vector<std::uint32_t> crcs;
    absl::Status status;  // Not OK: ends without another byte.
  };
  void Push(Pending pending);
  void Schedule();
  void Turn();
  // Copies at most `bytes_max` of the read; returns how many.
  static std::size_t Copy(Pending& read, std::size_t bytes_max);

  Loop& loop_;
  const Done done_;
  std::deque<Pending> pending_;
  bool scheduled_ = false;
  Life life_;
};

}  // namespace penstock::transfer
