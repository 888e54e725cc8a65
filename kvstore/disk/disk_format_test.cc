// SPDX-License-Identifier: Apache-2.0
#include "kvstore/disk/disk_format.h"

#include <gtest/gtest.h>

#include <array>

namespace penstock::kvstore {
namespace {

constexpr SegmentHeader kSegment = {.store = 7, .segment = 3, .bytes = 64 * kSectorBytes};

RecordHeader Record() {
  RecordHeader record = {.kind = RecordKind::kBlock,
                         .segment = 3,
                         .sequence = 99,
                         .offset = 5 * kSectorBytes,
                         .payload_bytes = 5000,
                         .payload_crc = 0x1234,
                         .tenant = 0x89abcdef};
  record.key.space.bytes[0] = 1;
  record.key.chain.bytes[15] = 2;
  return record;
}

// Decodes `bytes` with each of its bits turned: none of that is believed.
template <std::size_t kBytes, typename Decode>
void ExpectNoFlipIsBelieved(std::array<std::byte, kBytes> bytes, Decode decode) {
  ASSERT_TRUE(decode(std::span<const std::byte, kBytes>(bytes)).ok());
  for (std::size_t bit = 0; bit < 8 * kBytes; ++bit) {
    const auto flip = static_cast<std::byte>(1u << (bit % 8));
    bytes[bit / 8] ^= flip;
    EXPECT_FALSE(decode(std::span<const std::byte, kBytes>(bytes)).ok()) << bit;
    bytes[bit / 8] ^= flip;
  }
}

TEST(DiskFormatTest, SegmentHeaders) {
  std::array<std::byte, kSegmentHeaderBytes> bytes;
  EncodeSegmentHeader(kSegment, bytes);
  const auto decoded = DecodeSegmentHeader(bytes);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_EQ(decoded->store, 7u);
  EXPECT_EQ(decoded->segment, 3u);
  EXPECT_EQ(decoded->bytes, 64 * kSectorBytes);
  ExpectNoFlipIsBelieved(bytes, [](auto b) { return DecodeSegmentHeader(b); });
  bytes[8] = std::byte{1};
  EXPECT_EQ(DecodeSegmentHeader(bytes).status(),
            absl::FailedPreconditionError("the segment has format version 1, this is 2"));
}

TEST(DiskFormatTest, Records) {
  std::array<std::byte, kRecordHeaderBytes> bytes;
  const RecordHeader record = Record();
  EncodeRecordHeader(record, bytes);
  const auto decoded = DecodeRecordHeader(bytes, kSegment);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_EQ(decoded->key, record.key);
  EXPECT_EQ(decoded->sequence, 99u);
  EXPECT_EQ(decoded->offset, record.offset);
  EXPECT_EQ(decoded->payload_offset(), 6 * kSectorBytes);
  EXPECT_EQ(decoded->bytes(), 3 * kSectorBytes);
  EXPECT_EQ(decoded->payload_bytes, 5000u);
  EXPECT_EQ(decoded->payload_crc, 0x1234u);
  EXPECT_EQ(decoded->tenant, 0x89abcdefu);
  ExpectNoFlipIsBelieved(bytes, [](auto b) { return DecodeRecordHeader(b, kSegment); });
}

// With a checksum that is right.
TEST(DiskFormatTest, RecordsThatCannotBe) {
  const auto message = [](auto change) {
    RecordHeader record = Record();
    change(record);
    std::array<std::byte, kRecordHeaderBytes> bytes;
    EncodeRecordHeader(record, bytes);
    return std::string(DecodeRecordHeader(bytes, kSegment).status().message());
  };
  EXPECT_EQ(message([](RecordHeader&) {}), "");
  EXPECT_EQ(message([](RecordHeader& r) { r.segment = 4; }),
            "the header of the record is of segment 4, the file is 3");
  EXPECT_EQ(message([](RecordHeader& r) { r.kind = static_cast<RecordKind>(4); }),
            "the header of the record has the kind 4");
  const std::string last =
      "the header of the record says 5000 bytes at 249856, records end at 258048";
  EXPECT_EQ(message([](RecordHeader& r) { r.offset = 60 * kSectorBytes; }), "");
  EXPECT_EQ(message([](RecordHeader& r) { r.offset = 61 * kSectorBytes; }), last);
  for (const std::uint64_t offset : {std::uint64_t{0}, std::uint64_t{kSectorBytes + 1},
                                     63 * kSectorBytes, UINT64_MAX / kSectorBytes * kSectorBytes}) {
    EXPECT_NE(message([&](RecordHeader& r) { r.offset = offset; }), "") << offset;
  }
  EXPECT_NE(message([](RecordHeader& r) { r.payload_bytes = UINT32_MAX; }), "");
}

TEST(DiskFormatTest, Trailers) {
  std::array<std::byte, kTrailerBytes> bytes;
  EncodeTrailer({.segment = 3, .index_offset = 2 * kSectorBytes}, bytes);
  EXPECT_EQ(DecodeTrailer(bytes, kSegment)->index_offset, 2 * kSectorBytes);
  ExpectNoFlipIsBelieved(bytes, [](auto b) { return DecodeTrailer(b, kSegment); });
  EncodeTrailer({.segment = 4, .index_offset = 2 * kSectorBytes}, bytes);
  EXPECT_FALSE(DecodeTrailer(bytes, kSegment).ok());
  EncodeTrailer({.segment = 3, .index_offset = 63 * kSectorBytes}, bytes);
  EXPECT_FALSE(DecodeTrailer(bytes, kSegment).ok());
}

}  // namespace
}  // namespace penstock::kvstore
