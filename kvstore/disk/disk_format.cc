// SPDX-License-Identifier: Apache-2.0
#include "kvstore/disk/disk_format.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "kernels/crc32c.h"

namespace penstock::kvstore {
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr std::array<char, 8> kSegmentMagic = {'p', 'e', 'n', 's', 't', 'k', 'v', '\n'};
constexpr std::uint32_t kRecordMagic = 0x43524b50;   // "PKRC"
constexpr std::uint32_t kTrailerMagic = 0x52544b50;  // "PKTR"

template <typename T>
void Put(std::byte* out, std::size_t offset, T value) {
  std::memcpy(out + offset, &value, sizeof(T));
}
template <typename T>
T Get(const std::byte* bytes, std::size_t offset) {
  T value;
  std::memcpy(&value, bytes + offset, sizeof(T));
  return value;
}

void PutCrc(std::span<std::byte> out) {
  const std::size_t at = out.size() - 4;
  Put(out.data(), at, kernels::Crc32c(0, out.data(), at));
}

absl::Status Damaged(std::string_view what, std::string_view why) {
  return absl::DataLossError(absl::StrCat("the ", ToAbsl(what), " ", ToAbsl(why)));
}

absl::Status CheckCrc(std::string_view what, std::span<const std::byte> bytes) {
  const std::size_t at = bytes.size() - 4;
  const auto said = Get<std::uint32_t>(bytes.data(), at);
  const std::uint32_t is = kernels::Crc32c(0, bytes.data(), at);
  if (said == is) return absl::OkStatus();
  return Damaged(what, absl::StrCat("has the checksum ", said, ", its bytes ", is));
}

absl::Status CheckSegment(std::string_view what, std::uint64_t got, std::uint64_t segment) {
  if (got == segment) return absl::OkStatus();
  return Damaged(what, absl::StrCat("is of segment ", got, ", the file is ", segment));
}

}  // namespace

void EncodeSegmentHeader(const SegmentHeader& header,
                         std::span<std::byte, kSegmentHeaderBytes> out) {
  std::ranges::fill(out, std::byte{});
  std::memcpy(out.data(), kSegmentMagic.data(), kSegmentMagic.size());
  Put(out.data(), 8, kDiskVersion);
  Put(out.data(), 16, header.store);
  Put(out.data(), 24, header.segment);
  Put(out.data(), 32, header.bytes);
  PutCrc(out);
}

void EncodeRecordHeader(const RecordHeader& header, std::span<std::byte, kRecordHeaderBytes> out) {
  Put(out.data(), 0, kRecordMagic);
  Put(out.data(), 4, header.kind);
  Put(out.data(), 8, header.segment);
  Put(out.data(), 16, header.sequence);
  std::memcpy(out.data() + 24, header.key.space.bytes.data(), 16);
  std::memcpy(out.data() + 40, header.key.chain.bytes.data(), 16);
  Put(out.data(), 56, header.offset);
  Put(out.data(), 64, header.payload_bytes);
  Put(out.data(), 68, header.payload_crc);
  Put(out.data(), 72, header.tenant);
  PutCrc(out);
}

void EncodeTrailer(const Trailer& trailer, std::span<std::byte, kTrailerBytes> out) {
  std::ranges::fill(out, std::byte{});
  Put(out.data(), 0, kTrailerMagic);
  Put(out.data(), 8, trailer.segment);
  Put(out.data(), 16, trailer.index_offset);
  PutCrc(out);
}

absl::StatusOr<SegmentHeader> DecodeSegmentHeader(
    std::span<const std::byte, kSegmentHeaderBytes> bytes) {
  constexpr std::string_view kWhat = "header of the segment";
  if (std::memcmp(bytes.data(), kSegmentMagic.data(), kSegmentMagic.size()) != 0) {
    return Damaged(kWhat, "is none");
  }
  const auto version = Get<std::uint32_t>(bytes.data(), 8);
  if (version != kDiskVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat("the segment has format version ", version, ", this is ", kDiskVersion));
  }
  RETURN_IF_ERROR(CheckCrc(kWhat, bytes));
  const SegmentHeader header = {.store = Get<std::uint64_t>(bytes.data(), 16),
                                .segment = Get<std::uint64_t>(bytes.data(), 24),
                                .bytes = Get<std::uint64_t>(bytes.data(), 32)};
  if (header.bytes % kSectorBytes != 0 || header.bytes < 2 * kSectorBytes) {
    return Damaged(kWhat, absl::StrCat("says that the file has ", header.bytes, " bytes"));
  }
  return header;
}

absl::StatusOr<RecordHeader> DecodeRecordHeader(
    std::span<const std::byte, kRecordHeaderBytes> bytes, const SegmentHeader& segment) {
  constexpr std::string_view kWhat = "header of the record";
  if (Get<std::uint32_t>(bytes.data(), 0) != kRecordMagic) return Damaged(kWhat, "is none");
  RETURN_IF_ERROR(CheckCrc(kWhat, bytes));
  RecordHeader header = {.kind = Get<RecordKind>(bytes.data(), 4),
                         .segment = Get<std::uint64_t>(bytes.data(), 8),
                         .sequence = Get<std::uint64_t>(bytes.data(), 16),
                         .offset = Get<std::uint64_t>(bytes.data(), 56),
                         .payload_bytes = Get<std::uint32_t>(bytes.data(), 64),
                         .payload_crc = Get<std::uint32_t>(bytes.data(), 68),
                         .tenant = Get<std::uint32_t>(bytes.data(), 72)};
  std::memcpy(header.key.space.bytes.data(), bytes.data() + 24, 16);
  std::memcpy(header.key.chain.bytes.data(), bytes.data() + 40, 16);
  RETURN_IF_ERROR(CheckSegment(kWhat, header.segment, segment.segment));
  if (header.kind != RecordKind::kBlock && header.kind != RecordKind::kDelete &&
      header.kind != RecordKind::kIndex) {
    return Damaged(kWhat, absl::StrCat("has the kind ", static_cast<std::uint32_t>(header.kind)));
  }
  // Before the trailer.
  const std::uint64_t end = segment.bytes - kSectorBytes;
  if (header.offset % kSectorBytes != 0 || header.offset < kSectorBytes || header.offset >= end ||
      header.bytes() > end - header.offset) {
    return Damaged(kWhat, absl::StrCat("says ", header.payload_bytes, " bytes at ", header.offset,
                                       ", records end at ", end));
  }
  return header;
}

absl::StatusOr<Trailer> DecodeTrailer(std::span<const std::byte, kTrailerBytes> bytes,
                                      const SegmentHeader& segment) {
  constexpr std::string_view kWhat = "trailer";
  if (Get<std::uint32_t>(bytes.data(), 0) != kTrailerMagic) return Damaged(kWhat, "is none");
  RETURN_IF_ERROR(CheckCrc(kWhat, bytes));
  const Trailer trailer = {.segment = Get<std::uint64_t>(bytes.data(), 8),
                           .index_offset = Get<std::uint64_t>(bytes.data(), 16)};
  RETURN_IF_ERROR(CheckSegment(kWhat, trailer.segment, segment.segment));
  if (trailer.index_offset % kSectorBytes != 0 || trailer.index_offset < kSectorBytes ||
      trailer.index_offset >= segment.bytes - kSectorBytes) {
    return Damaged(kWhat, absl::StrCat("says that the index is at ", trailer.index_offset, " of ",
                                       segment.bytes));
  }
  return trailer;
}

}  // namespace penstock::kvstore
