// SPDX-License-Identifier: Apache-2.0
#include "transfer/serving_queue.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace penstock::transfer {

absl::Status ServingQueue::Serve(std::uint64_t id, ReadRequest request, std::size_t request_bytes) {
  const bool twice = std::any_of(reads_.begin(), reads_.end(),
                                 [&](const Serving& other) { return other.id == id; });
  if (twice || budget_.reads >= kReadsMax ||
      request_bytes > kRequestsBytesMax - budget_.requests_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("the peer asks for read ", id, " beside ",
                                                   budget_.reads,
                                                   " others: it is one of them, or one too many"));
  }
  const SegmentTable::Segment* const segment =
      gpu_.has_value() ? own_.FindOn(*gpu_, request.segment()) : own_.Find(request.segment());
  absl::Status status;
  if (segment == nullptr) {
    status = absl::NotFoundError(
        absl::StrCat("no segment ", static_cast<std::uint32_t>(request.segment())));
  } else {
    status = request.CheckInside(segment->bytes.size());
  }
  const std::uint64_t left = request.bytes();
  reads_.push_back({.id = id,
                    .request = std::move(request),
                    .cursor = UnitCursor({}),
                    .request_bytes = request_bytes,
                    .left = left,
                    .source = status.ok() ? segment->bytes.data() : nullptr,
                    .status = std::move(status)});
  reads_.back().cursor = UnitCursor(reads_.back().request.units());
  ++budget_.reads;
  budget_.requests_bytes += request_bytes;
  return absl::OkStatus();
}

void ServingQueue::Cancel(std::uint64_t id) {
  for (Serving& read : reads_) {
    if (read.id == id && read.status.ok()) read.status = absl::CancelledError("read cancelled");
  }
}

void ServingQueue::Pop() {
  --budget_.reads;
  budget_.requests_bytes -= reads_.front().request_bytes;
  reads_.pop_front();
}

}  // namespace penstock::transfer
