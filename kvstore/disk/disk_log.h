// SPDX-License-Identifier: Apache-2.0
// The writing side of the disk tier: records go to the end of an open segment; one that is full is
// closed with an index, and another one begins.
//
// What is said to be durable is found again after any crash: a record counts once it and all before
// it in its segment are written and synced, since an unclosed segment is read from its front up to
// the first hole. A write that fails makes such a hole: its segment is closed at once, and those
// behind it count once the index is synced.
//
//   open -> closing (full, or a write failed; waits for its writes) -> closed
//
// On one loop. Callbacks come from the loop or from inside Append's callers' later calls, never from
// inside Append; not after the log's end.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvstore/disk/disk_format.h"
#include "kvstore/disk/disk_io.h"

namespace penstock::kvstore {

class DiskLog {
 public:
  struct Options {
    std::uint64_t store = 0;
    std::uint64_t segment_bytes = 0;
    std::uint64_t next_segment = 1;
    std::function<void()> closed = {};  // A segment was: it is no longer busy.
  };
  struct Record {
    RecordKind kind = RecordKind::kBlock;
    BlockKey key = {};
    std::uint64_t sequence = 0;
    DiskBytes payload = {};  // Of whole sectors; empty for a deletion.
    std::uint32_t payload_bytes = 0;
    std::uint32_t payload_crc = 0;
    std::uint32_t tenant = 0;
    // It can be read from now on; or why it cannot, and then nothing else is called.
    std::function<void(const absl::StatusOr<RecordHeader>&)> written = {};
    // It is found again whatever happens; or why that cannot be said.
    std::function<void(const absl::Status&)> durable = {};
  };

  DiskLog(DiskIo& io, const Options& options) : io_(io), options_(options) {}

  // What Append of that many bytes takes, in the segment and in the index.
  static std::uint64_t BytesOf(std::uint32_t payload_bytes);
  // The most that one record may have.
  std::uint64_t payload_bytes_max() const;
  // Whether the open segment has room; else the next Append begins another one.
  bool Fits(std::uint32_t payload_bytes) const;
  // At most payload_bytes_max(), CHECKed. RESOURCE_EXHAUSTED and other errors of DiskIo::Create;
  // then nothing is called.
  absl::Status Append(Record record);

  // Of the open one; 0: none is open.
  std::uint64_t open_segment() const { return open_ == nullptr ? 0 : open_->header.segment; }
  // Not closed yet: must not be removed.
  bool busy(std::uint64_t segment) const { return segments_.contains(segment); }

 private:
  struct Entry {
    RecordHeader header;
    enum class State : std::uint8_t { kWriting, kWritten, kFailed } state = State::kWriting;
    std::function<void(const absl::Status&)> durable = {};
  };
  struct Segment {
    SegmentHeader header;
    std::uint64_t end = kSectorBytes;
    std::vector<Entry> entries;
    std::size_t writing = 0;
    std::size_t prefix = 0;  // Of entries, those before it are written.
    std::size_t synced = 0;  // Those before it have been told that they are durable.
    bool syncing = false;
    bool begun = false;  // Its header is written.
    bool full = false;
    bool failed = false;  // A write was; nobody is told anything before the index is there.
    bool indexing = false;
  };

  absl::Status Begin();
  void Write(Segment& segment, std::size_t entry, DiskBytes payload,
             std::function<void(const absl::StatusOr<RecordHeader>&)> written);
  void Advance(std::uint64_t number);
  void SyncPrefix(Segment& segment);
  void Close(Segment& segment);
  void WriteIndex(Segment& segment);
  void Tell(Segment& segment, std::size_t until, const absl::Status& status);
  // `done` on the segment while the log lives.
  DiskIo::Done OnSegment(std::uint64_t number, std::function<void(Segment&, absl::Status)> done);

  DiskIo& io_;
  Options options_;
  std::map<std::uint64_t, Segment> segments_;  // Open and closing ones.
  Segment* open_ = nullptr;
  std::shared_ptr<int> life_ = std::make_shared<int>(0);
};

// Zeroed memory at a multiple of kSectorBytes. `bytes`: a multiple of it.
DiskBytes MakeSectors(std::uint64_t bytes);

}  // namespace penstock::kvstore
