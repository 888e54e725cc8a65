// SPDX-License-Identifier: Apache-2.0
#include "kvstore/disk/disk_log.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "kernels/crc32c.h"

namespace penstock::kvstore {
namespace {

std::uint64_t IndexBytes(std::size_t records) {
  return kSectorBytes + SectorsUp(records * kRecordHeaderBytes);
}

}  // namespace

DiskBytes MakeSectors(std::uint64_t bytes) {
  constexpr std::align_val_t kAlign{kSectorBytes};
  auto* const memory = static_cast<std::byte*>(::operator new(bytes, kAlign));
  std::memset(memory, 0, bytes);
  return {.bytes = {memory, bytes}, .owner = std::shared_ptr<const void>(memory, [](void* p) {
                                      ::operator delete(p, kAlign);
                                    })};
}

std::uint64_t DiskLog::BytesOf(std::uint32_t payload_bytes) {
  return kSectorBytes + SectorsUp(payload_bytes) + kRecordHeaderBytes;
}

std::uint64_t DiskLog::payload_bytes_max() const {
  // Beside it: the segment's header and trailer, the record's header, and an index of one.
  const std::uint64_t rest = 3 * kSectorBytes + IndexBytes(1);
  const std::uint64_t left = options_.segment_bytes > rest ? options_.segment_bytes - rest : 0;
  return std::min<std::uint64_t>(left, UINT32_MAX / kSectorBytes * kSectorBytes);
}

bool DiskLog::Fits(std::uint32_t payload_bytes) const {
  if (open_ == nullptr || open_->full) return false;
  const std::uint64_t end = open_->end + kSectorBytes + SectorsUp(payload_bytes);
  return end + IndexBytes(open_->entries.size() + 1) + kSectorBytes <= options_.segment_bytes;
}

DiskIo::Done DiskLog::OnSegment(std::uint64_t number,
                                std::function<void(Segment&, absl::Status)> done) {
  return [this, number, done = std::move(done), life = std::weak_ptr(life_)](absl::Status status) {
    if (life.expired()) return;
    done(segments_.at(number), std::move(status));
    Advance(number);
  };
}

absl::Status DiskLog::Begin() {
  const std::uint64_t number = options_.next_segment;
  RETURN_IF_ERROR(io_.Create(number, options_.segment_bytes));
  ++options_.next_segment;
  open_ = &segments_[number];
  open_->header = {.store = options_.store, .segment = number, .bytes = options_.segment_bytes};
  const DiskBytes sector = MakeSectors(kSectorBytes);
  EncodeSegmentHeader(open_->header, sector.bytes.first<kSegmentHeaderBytes>());
  ++open_->writing;
  io_.Write(number, 0, {sector},
            OnSegment(number, [](Segment& segment, const absl::Status& status) {
              --segment.writing;
              segment.begun = status.ok();
              segment.failed |= !status.ok();
            }));
  return absl::OkStatus();
}

absl::Status DiskLog::Append(Record record) {
  CHECK_LE(record.payload_bytes, payload_bytes_max());
  CHECK_EQ(record.payload.bytes.size(), SectorsUp(record.payload_bytes));
  if (!Fits(record.payload_bytes)) {
    Segment* const before = std::exchange(open_, nullptr);
    if (before != nullptr) before->full = true;
    const absl::Status begun = Begin();
    if (before != nullptr) Advance(before->header.segment);
    RETURN_IF_ERROR(begun);
  }
  Segment& segment = *open_;
  const RecordHeader header = {.kind = record.kind,
                               .segment = segment.header.segment,
                               .sequence = record.sequence,
                               .key = record.key,
                               .offset = segment.end,
                               .payload_bytes = record.payload_bytes,
                               .payload_crc = record.payload_crc,
                               .tenant = record.tenant};
  segment.end += header.bytes();
  segment.entries.push_back({.header = header, .durable = std::move(record.durable)});
  Write(segment, segment.entries.size() - 1, std::move(record.payload), std::move(record.written));
  return absl::OkStatus();
}

void DiskLog::Write(Segment& segment, std::size_t entry, DiskBytes payload,
                    std::function<void(const absl::StatusOr<RecordHeader>&)> written) {
  const RecordHeader& header = segment.entries[entry].header;
  std::vector<DiskBytes> parts = {MakeSectors(kSectorBytes)};
  EncodeRecordHeader(header, parts[0].bytes.first<kRecordHeaderBytes>());
  if (!payload.bytes.empty()) parts.push_back(std::move(payload));
  ++segment.writing;
  io_.Write(segment.header.segment, header.offset, std::move(parts),
            OnSegment(segment.header.segment, [entry, written = std::move(written)](
                                                  Segment& of, const absl::Status& status) {
              --of.writing;
              Entry& done = of.entries[entry];
              done.state = status.ok() ? Entry::State::kWritten : Entry::State::kFailed;
              of.failed |= !status.ok();
              // Last: it may come back with more.
              const absl::StatusOr<RecordHeader> result =
                  status.ok() ? absl::StatusOr<RecordHeader>(done.header)
                              : absl::StatusOr<RecordHeader>(status);
              if (written) written(result);
            }));
}

// Does what can be done next for a segment of which something has ended.
void DiskLog::Advance(std::uint64_t number) {
  const auto at = segments_.find(number);
  if (at == segments_.end()) return;
  Segment& segment = at->second;
  if (segment.failed && open_ == &segment) {
    segment.full = true;
    open_ = nullptr;
  }
  while (segment.prefix < segment.entries.size() &&
         segment.entries[segment.prefix].state == Entry::State::kWritten) {
    ++segment.prefix;
  }
  if (segment.syncing || segment.indexing) return;
  if (segment.full && segment.writing == 0) return Close(segment);
  if (segment.begun && !segment.failed && segment.prefix > segment.synced) SyncPrefix(segment);
}

void DiskLog::SyncPrefix(Segment& segment) {
  segment.syncing = true;
  const std::uint64_t number = segment.header.segment;
  io_.Sync(number, OnSegment(number, [this, until = segment.prefix](Segment& of,
                                                                    const absl::Status& status) {
             of.syncing = false;
             // What one failed sync covered may be gone though the next one succeeds.
             of.begun = status.ok();
             of.failed |= !status.ok();
             Tell(of, until, status);
           }));
}

// What an index lists is on disk, so it comes after a sync.
void DiskLog::Close(Segment& segment) {
  segment.indexing = true;
  const std::uint64_t number = segment.header.segment;
  io_.Sync(number, OnSegment(number, [this](Segment& of, const absl::Status& status) {
             if (!status.ok()) of.begun = false;
             WriteIndex(of);
           }));
}

void DiskLog::WriteIndex(Segment& segment) {
  const std::uint64_t number = segment.header.segment;
  const auto finish = [this](Segment& of, const absl::Status& status) {
    Tell(of, of.entries.size(), status);
    segments_.erase(of.header.segment);
    if (options_.closed) options_.closed();
  };
  std::vector<std::byte> headers;
  for (const Entry& entry : segment.entries) {
    if (entry.state != Entry::State::kWritten) continue;
    headers.resize(headers.size() + kRecordHeaderBytes);
    EncodeRecordHeader(entry.header, std::span(headers).last<kRecordHeaderBytes>());
  }
  // One write for each of the two: where only one of them gets there, the segment is read as one
  // that was never closed.
  const RecordHeader header = {.kind = RecordKind::kIndex,
                               .segment = number,
                               .offset = segment.end,
                               .payload_bytes = static_cast<std::uint32_t>(headers.size()),
                               .payload_crc = kernels::Crc32c(0, headers.data(), headers.size())};
  const DiskBytes index = MakeSectors(header.bytes());
  EncodeRecordHeader(header, index.bytes.first<kRecordHeaderBytes>());
  std::ranges::copy(headers, index.bytes.begin() + kSectorBytes);
  const DiskBytes trailer = MakeSectors(kSectorBytes);
  EncodeTrailer({.segment = number, .index_offset = segment.end},
                trailer.bytes.first<kTrailerBytes>());
  segment.writing = 2;
  const auto done =
      OnSegment(number, [this, number, finish](Segment& of, const absl::Status& status) {
        --of.writing;
        of.begun = of.begun && status.ok();  // From here on: all of it is written.
        if (of.writing > 0) return;
        if (!of.begun) {
          return finish(
              of, absl::DataLossError(absl::StrCat("segment ", number, " could not be closed")));
        }
        io_.Sync(number, OnSegment(number, finish));
      });
  io_.Write(number, segment.end, {index}, done);
  io_.Write(number, segment.header.bytes - kSectorBytes, {trailer}, done);
}

void DiskLog::Tell(Segment& segment, std::size_t until, const absl::Status& status) {
  std::vector<std::function<void(const absl::Status&)>> tell;
  for (; segment.synced < until; ++segment.synced) {
    Entry& entry = segment.entries[segment.synced];
    if (entry.state == Entry::State::kWritten && entry.durable) {
      tell.push_back(std::move(entry.durable));
    }
  }
  for (const auto& one : tell) one(status);
}

}  // namespace penstock::kvstore
