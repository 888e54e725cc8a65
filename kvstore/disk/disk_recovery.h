// SPDX-License-Identifier: Apache-2.0
// What the files of a store say: read once, at the start of the disk tier.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "kvstore/disk/disk_format.h"
#include "kvstore/disk/disk_io.h"

namespace penstock::kvstore {

struct RecoveredSegment {
  SegmentHeader header;
  std::vector<RecordHeader> records;  // Blocks and deletions, as they were written.
};

struct Recovered {
  std::vector<RecoveredSegment> segments;  // By number.
  std::vector<std::uint64_t> unusable;     // Files to be removed.
  std::optional<std::uint64_t> store;      // Nothing: there is no file.
  std::uint64_t next_segment = 1;
  std::uint64_t next_sequence = 1;
};

// A closed segment is read from its index; one whose index is not whole, or that was never closed,
// record by record up to the first that is none, without those whose payload is not whole. Those of
// a closed segment were on disk before its index, and are looked at when they are read.
// FAILED_PRECONDITION: files of two stores, with both. Errors of DiskIo::List; a file that cannot
// be read is unusable.
absl::StatusOr<Recovered> Recover(DiskIo& io);

}  // namespace penstock::kvstore
