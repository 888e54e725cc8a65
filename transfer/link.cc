// SPDX-License-Identifier: Apache-2.0
#include "transfer/link.h"

#include "base/check.h"
#include "base/status.h"

namespace penstock::transfer {

std::string_view ToString(Kind kind) {
  switch (kind) {
    case Kind::kInproc:
      return "inproc";
    case Kind::kShm:
      return "shm";
    case Kind::kTcp:
      return "tcp";
    case Kind::kUcx:
      return "ucx";
    case Kind::kNccl:
      return "nccl";
  }
  return "?";
}

void Link::ReadOn(Lane lane, ReadId id, SegmentId segment, std::span<const Unit> units,
                  bool checksums) {
  CHECK(lane == Lane());
  Read(id, segment, units, checksums);
}

std::string HostOf(std::string_view peer_address) {
  peer_address = peer_address.substr(0, peer_address.find(' '));
  return std::string(peer_address.substr(0, peer_address.rfind(':')));
}

std::uint64_t TotalBytes(std::span<const Unit> units) {
  std::uint64_t bytes = 0;
  for (const Unit& unit : units) {
    for (const ByteRun& run : unit.runs) bytes += run.bytes;
  }
  return bytes;
}

absl::Status CheckInside(std::span<const Unit> units, std::uint64_t segment_bytes) {
  for (const Unit& unit : units) {
    for (const ByteRun& run : unit.runs) {
      // Both are below 2^33: their sum is exact, and what is left of the segment is compared.
      const std::uint64_t end = std::uint64_t{run.from} + run.bytes;
      if (unit.from <= segment_bytes && end <= segment_bytes - unit.from) continue;
      return absl::InvalidArgumentError(absl::StrCat("a read of ", run.bytes, " bytes at ",
                                                     unit.from, " + ", run.from,
                                                     " is outside a segment of ", segment_bytes));
    }
  }
  return absl::OkStatus();
}

}  // namespace penstock::transfer
