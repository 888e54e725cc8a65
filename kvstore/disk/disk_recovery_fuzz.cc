// SPDX-License-Identifier: Apache-2.0
// A file of the disk tier that holds anything: what is believed of it lies inside it. Checksums are
// made right where the input asks for it, or the decoders would stop at them.
#include <algorithm>
#include <array>
#include <cstring>
#include <span>

#include "base/check.h"
#include "base/log.h"
#include "kernels/crc32c.h"
#include "kvstore/disk/disk_recovery.h"

namespace penstock::kvstore {
namespace {

constexpr std::uint64_t kSectors = 16;
constexpr std::uint64_t kSegment = 5;

class OneFile final : public DiskIo {
 public:
  std::span<std::byte> bytes() { return bytes_; }

  absl::StatusOr<std::vector<File>> List() override {
    return std::vector<File>{{.segment = kSegment, .bytes = bytes_.size()}};
  }
  absl::Status ReadNow(std::uint64_t, std::uint64_t offset, std::span<std::byte> to) override {
    CHECK_LE(offset, bytes_.size());
    CHECK_LE(to.size(), bytes_.size() - offset);
    std::memcpy(to.data(), bytes_.data() + offset, to.size());
    return absl::OkStatus();
  }
  absl::Status SyncNow(std::uint64_t) override { return absl::OkStatus(); }
  absl::Status Create(std::uint64_t, std::uint64_t) override { return absl::OkStatus(); }
  void Remove(std::uint64_t) override {}
  void Write(std::uint64_t, std::uint64_t, std::vector<DiskBytes>, Done) override {}
  void Read(std::uint64_t, std::uint64_t, DiskBytes, Done) override {}
  void Sync(std::uint64_t, Done) override {}

 private:
  std::array<std::byte, kSectors * kSectorBytes> bytes_{};
};

void SealHeader(std::span<std::byte> sector, std::size_t bytes) {
  const std::uint32_t crc = kernels::Crc32c(0, sector.data(), bytes - 4);
  std::memcpy(sector.data() + bytes - 4, &crc, 4);
}

}  // namespace
}  // namespace penstock::kvstore

// Pieces of 1 + 80 bytes: which sector they begin, with which checksum, and what is there.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace penstock::kvstore;
  constexpr std::size_t kPiece = 80;
  penstock::SetLogLevel(penstock::LogLevel::kError);
  OneFile file;
  // A good header to begin with: pieces may write over it.
  EncodeSegmentHeader({.store = 1, .segment = kSegment, .bytes = file.bytes().size()},
                      file.bytes().first<kSegmentHeaderBytes>());
  const auto bytes = std::as_bytes(std::span(data, size));
  for (std::size_t at = 0; at + 1 + kPiece <= size; at += 1 + kPiece) {
    const std::span<std::byte> sector =
        file.bytes().subspan(data[at] % kSectors * kSectorBytes, kSectorBytes);
    std::ranges::copy(bytes.subspan(at + 1, kPiece), sector.begin());
    switch (data[at] / kSectors % 4) {
      case 1:
        SealHeader(sector, kSegmentHeaderBytes);
        break;
      case 2:
        SealHeader(sector, kRecordHeaderBytes);
        break;
      case 3:
        SealHeader(sector, kTrailerBytes);
        break;
      default:
        break;
    }
  }
  const auto recovered = Recover(file);
  if (!recovered.ok()) return 0;
  for (const RecoveredSegment& segment : recovered->segments) {
    CHECK_EQ(segment.header.bytes, file.bytes().size());
    for (const RecordHeader& record : segment.records) {
      CHECK_LE(record.offset + record.bytes(), file.bytes().size() - kSectorBytes);
      CHECK(record.kind != RecordKind::kIndex);
    }
  }
  return 0;
}
