// SPDX-License-Identifier: Apache-2.0
// What one side of a TCP link sends: control frames, and between them the bytes of the reads that
// the peer asked for, straight from their segments. Knows the socket only while it flushes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "transfer/segment_table.h"
#include "transfer/serving_queue.h"
#include "transfer/tcp_frames.h"
#include "transfer/unit_cursor.h"

namespace penstock::transfer {

class TcpSender {
 public:
  explicit TcpSender(const SegmentTable& own) : serving_(own) {}

  void Enqueue(FrameType type, std::uint64_t id, std::span<const std::byte> payload);
  std::size_t control_bytes() const { return sending_.size() - sent_ + queued_.size(); }

  // As ServingQueue's: in its turn a read's bytes go out, or a kEnd that says why not. Of one that
  // is cancelled no more is sent than the frame that was begun.
  absl::Status Serve(std::uint64_t id, ReadRequest request, std::size_t request_bytes) {
    return serving_.Serve(id, std::move(request), request_bytes);
  }
  void Cancel(std::uint64_t id) { serving_.Cancel(id); }
  // From here on nothing is loaded from that segment.
  void DropSegment(SegmentId segment);

  enum class Flushed : std::uint8_t { kAll, kMore };
  // Sends what the socket takes, for a turn of the loop. kMore: call again when it takes more.
  // UNAVAILABLE when it failed.
  absl::StatusOr<Flushed> Flush(int socket);
  std::uint64_t bytes_sent() const { return bytes_sent_; }

 private:
  void End(std::uint64_t id, const absl::Status& status);
  bool BeginFrame();
  void Consume(std::size_t bytes);

  // Control frames: those of `sending_` from `sent_` on go first.
  std::vector<std::byte> sending_, queued_;
  std::size_t sent_ = 0;
  ServingQueue serving_;
  // The data frame at hand, of serving_.front(). Nothing may come inside it.
  std::array<std::byte, kHeaderBytes> head_{};
  std::size_t head_left_ = 0;
  std::size_t frame_left_ = 0;
  // The rest of a frame whose segment went away inside it; the read's `source` is null then, and
  // these bytes go in its place.
  std::vector<std::byte> spill_;
  std::uint64_t bytes_sent_ = 0;
};

}  // namespace penstock::transfer
