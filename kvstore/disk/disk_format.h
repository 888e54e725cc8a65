// SPDX-License-Identifier: Apache-2.0
// The bytes of the disk tier: files of one size, segments, that are written once from front to
// back. All of it may be damaged, cut short, or not ours: decoders check it before anybody believes
// it.
//
//   sector 0         segment header
//   then, for each record:
//     1 sector       record header: what follows, and whose it is
//     n sectors      payload, filled up with anything
//   last sector      trailer, once the segment is closed: where its index is
//
// The index is a record, the last one; its payload is the header of every other record, behind each
// other. A segment without a trailer (the process ended first) is read record by record, up to the
// first that is none.
//
// Numbers are little-endian. Header, by offset:
//   segment  0 magic[8]   8 version[4]  12 0[4]       16 store[8]  24 segment[8]  32 bytes[8]  40 crc[4]
//   record   0 magic[4]   4 kind[4]      8 segment[8] 16 sequence[8]  24 space[16]  40 chain[16]
//            56 offset[8] 64 payload_bytes[4]  68 payload_crc[4]  72 tenant[4]  76 crc[4]
//   trailer  0 magic[4]   4 0[4]         8 segment[8] 16 index offset[8]  24 crc[4]
// Each crc is CRC32C of all bytes before it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/statusor.h"
#include "base/key.h"

namespace penstock::kvstore {

// What files, offsets and buffers of O_DIRECT are multiples of.
inline constexpr std::size_t kSectorBytes = 4096;
inline constexpr std::uint32_t kDiskVersion = 2;
inline constexpr std::size_t kSegmentHeaderBytes = 44;
inline constexpr std::size_t kRecordHeaderBytes = 80;
inline constexpr std::size_t kTrailerBytes = 28;

constexpr std::uint64_t SectorsUp(std::uint64_t bytes) {
  return (bytes + kSectorBytes - 1) / kSectorBytes * kSectorBytes;
}

struct SegmentHeader {
  std::uint64_t store = 0;    // Drawn once for a directory: files of another one are not taken.
  std::uint64_t segment = 0;  // Never used twice in a store.
  std::uint64_t bytes = 0;    // Of the file.
};

enum class RecordKind : std::uint32_t {
  kBlock = 1,
  kDelete = 2,  // The key's records of a lower sequence are not to be found any more. No payload.
  kIndex = 3,   // No key.
};

struct RecordHeader {
  RecordKind kind = RecordKind::kBlock;
  std::uint64_t segment = 0;
  std::uint64_t sequence = 0;  // Of two records of a key the higher one counts.
  BlockKey key = {};
  std::uint64_t offset = 0;  // Of this header in the file.
  std::uint32_t payload_bytes = 0;
  std::uint32_t payload_crc = 0;  // CRC32C.
  std::uint32_t tenant = 0;       // Of a block.

  std::uint64_t payload_offset() const { return offset + kSectorBytes; }
  // On disk, with its header.
  std::uint64_t bytes() const { return kSectorBytes + SectorsUp(payload_bytes); }
};

struct Trailer {
  std::uint64_t segment = 0;
  std::uint64_t index_offset = 0;
};

void EncodeSegmentHeader(const SegmentHeader& header,
                         std::span<std::byte, kSegmentHeaderBytes> out);
void EncodeRecordHeader(const RecordHeader& header, std::span<std::byte, kRecordHeaderBytes> out);
void EncodeTrailer(const Trailer& trailer, std::span<std::byte, kTrailerBytes> out);

// DATA_LOSS: this was never written, or not whole. FAILED_PRECONDITION: another version, with both.
absl::StatusOr<SegmentHeader> DecodeSegmentHeader(
    std::span<const std::byte, kSegmentHeaderBytes> bytes);
// Of a record in `segment`, which ends inside the file's room for records. DATA_LOSS with what is
// wrong.
absl::StatusOr<RecordHeader> DecodeRecordHeader(
    std::span<const std::byte, kRecordHeaderBytes> bytes, const SegmentHeader& segment);
absl::StatusOr<Trailer> DecodeTrailer(std::span<const std::byte, kTrailerBytes> bytes,
                                      const SegmentHeader& segment);

}  // namespace penstock::kvstore
