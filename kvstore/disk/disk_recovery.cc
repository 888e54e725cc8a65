// SPDX-License-Identifier: Apache-2.0
#include "kvstore/disk/disk_recovery.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "base/log.h"
#include "base/status.h"
#include "kernels/crc32c.h"
#include "kvstore/disk/disk_log.h"

namespace penstock::kvstore {
namespace {

class SegmentReader {
 public:
  SegmentReader(DiskIo& io, const DiskIo::File& file)
      : io_(io), file_(file), sector_(MakeSectors(kSectorBytes)) {}

  absl::StatusOr<RecoveredSegment> Read() {
    RETURN_IF_ERROR(ReadSector(0));
    ASSIGN_OR_RETURN(result_.header,
                     DecodeSegmentHeader(sector_.bytes.first<kSegmentHeaderBytes>()));
    if (result_.header.segment != file_.segment || result_.header.bytes != file_.bytes) {
      return absl::DataLossError(absl::StrFormat(
          "the file of segment %d with %d bytes says that it is segment %d with %d", file_.segment,
          file_.bytes, result_.header.segment, result_.header.bytes));
    }
    if (!ReadIndex().ok()) {
      // What the last process wrote may be in the disk's own memory still.
      RETURN_IF_ERROR(io_.SyncNow(file_.segment));
      Scan();
    }
    return std::move(result_);
  }

 private:
  absl::Status ReadSector(std::uint64_t offset) {
    return io_.ReadNow(file_.segment, offset, sector_.bytes);
  }

  absl::StatusOr<RecordHeader> ReadRecord(std::uint64_t offset) {
    RETURN_IF_ERROR(ReadSector(offset));
    ASSIGN_OR_RETURN(const RecordHeader header,
                     DecodeRecordHeader(sector_.bytes.first<kRecordHeaderBytes>(), result_.header));
    if (header.offset == offset) return header;
    return absl::DataLossError(
        absl::StrFormat("the record at %d says that it is at %d", offset, header.offset));
  }

  // Verified.
  absl::StatusOr<DiskBytes> ReadPayload(const RecordHeader& header) {
    DiskBytes payload = MakeSectors(SectorsUp(header.payload_bytes));
    if (header.payload_bytes > 0) {
      RETURN_IF_ERROR(io_.ReadNow(file_.segment, header.payload_offset(), payload.bytes));
    }
    const std::uint32_t crc = kernels::Crc32c(0, payload.bytes.data(), header.payload_bytes);
    if (crc == header.payload_crc) return payload;
    return absl::DataLossError(absl::StrFormat("the record at %d has the checksum %d, its bytes %d",
                                               header.offset, header.payload_crc, crc));
  }

  absl::Status ReadIndex() {
    RETURN_IF_ERROR(ReadSector(file_.bytes - kSectorBytes));
    ASSIGN_OR_RETURN(const Trailer trailer,
                     DecodeTrailer(sector_.bytes.first<kTrailerBytes>(), result_.header));
    ASSIGN_OR_RETURN(const RecordHeader header, ReadRecord(trailer.index_offset));
    if (header.kind != RecordKind::kIndex || header.payload_bytes % kRecordHeaderBytes != 0) {
      return absl::DataLossError("the index is none");
    }
    ASSIGN_OR_RETURN(const DiskBytes payload, ReadPayload(header));
    const std::span<const std::byte> bytes = payload.bytes.first(header.payload_bytes);
    std::vector<RecordHeader> records;
    for (std::size_t at = 0; at < bytes.size(); at += kRecordHeaderBytes) {
      ASSIGN_OR_RETURN(
          records.emplace_back(),
          DecodeRecordHeader(bytes.subspan(at).first<kRecordHeaderBytes>(), result_.header));
      if (records.back().kind == RecordKind::kIndex) {
        return absl::DataLossError("the index lists an index");
      }
    }
    result_.records = std::move(records);
    return absl::OkStatus();
  }

  void Scan() {
    const std::uint64_t end = file_.bytes - kSectorBytes;
    for (std::uint64_t offset = kSectorBytes; offset < end;) {
      const absl::StatusOr<RecordHeader> header = ReadRecord(offset);
      if (!header.ok() || header->kind == RecordKind::kIndex) return;
      // Its header may have come to the disk without it.
      if (ReadPayload(*header).ok()) result_.records.push_back(*header);
      offset += header->bytes();
    }
  }

  DiskIo& io_;
  const DiskIo::File file_;
  const DiskBytes sector_;
  RecoveredSegment result_;
};

}  // namespace

absl::StatusOr<Recovered> Recover(DiskIo& io) {
  Recovered all;
  ASSIGN_OR_RETURN(std::vector<DiskIo::File> files, io.List());
  std::ranges::sort(files, {}, &DiskIo::File::segment);
  for (const DiskIo::File& file : files) {
    all.next_segment = std::max(all.next_segment, file.segment + 1);
    const bool whole = file.bytes % kSectorBytes == 0 && file.bytes >= 2 * kSectorBytes;
    absl::StatusOr<RecoveredSegment> segment =
        whole ? SegmentReader(io, file).Read()
              : absl::StatusOr<RecoveredSegment>(absl::DataLossError(
                    absl::StrFormat("the file has %d bytes, no whole sectors", file.bytes)));
    if (!segment.ok()) {
      LOG_WARNING("a file of the disk tier is of no use and will be removed",
                  {{"segment", file.segment}, {"why", ToStd(segment.status().message())}});
      all.unusable.push_back(file.segment);
      continue;
    }
    if (all.store.value_or(segment->header.store) != segment->header.store) {
      return absl::FailedPreconditionError(
          absl::StrFormat("the files are of two stores, %016x and %016x; give each its directory",
                          *all.store, segment->header.store));
    }
    all.store = segment->header.store;
    for (const RecordHeader& record : segment->records) {
      all.next_sequence = std::max(all.next_sequence, record.sequence + 1);
    }
    all.segments.push_back(*std::move(segment));
  }
  return all;
}

}  // namespace penstock::kvstore
