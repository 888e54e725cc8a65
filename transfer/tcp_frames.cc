// SPDX-License-Identifier: Apache-2.0
#include "transfer/tcp_frames.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "base/status.h"
#include "transfer/wire.h"

namespace penstock::transfer {
namespace {

struct Limits {
  std::size_t least, most;
  bool has_id;
};

absl::StatusOr<Limits> LimitsOf(FrameType type) {
  switch (type) {
    case FrameType::kMessage:
      return Limits{1, Link::kMessageBytesMax, false};
    case FrameType::kRead:
      return Limits{1, kRequestBytesMax, true};
    case FrameType::kData:
      return Limits{1, kDataBytesMax, true};
    case FrameType::kEnd:
      return Limits{1, kEndBytesMax, true};
    case FrameType::kCancel:
      return Limits{0, 0, true};
    case FrameType::kPing:
      return Limits{0, 0, false};
    case FrameType::kNccl:
      return Limits{1, kEndBytesMax, false};
  }
  return absl::InvalidArgumentError(absl::StrCat("a frame of type ", static_cast<int>(type)));
}

absl::Status Malformed(std::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("a read request ", ToAbsl(what)));
}

}  // namespace

std::array<std::byte, kHeaderBytes> EncodeHeader(const FrameHeader& header) {
  std::array<std::byte, kHeaderBytes> bytes{};
  std::memcpy(bytes.data(), &header.payload_bytes, 4);
  bytes[4] = static_cast<std::byte>(header.type);
  std::memcpy(bytes.data() + 8, &header.id, 8);
  return bytes;
}

absl::StatusOr<FrameHeader> DecodeHeader(std::span<const std::byte, kHeaderBytes> bytes) {
  FrameHeader header;
  std::memcpy(&header.payload_bytes, bytes.data(), 4);
  header.type = static_cast<FrameType>(bytes[4]);
  std::memcpy(&header.id, bytes.data() + 8, 8);
  ASSIGN_OR_RETURN(const Limits limits, LimitsOf(header.type));
  if (header.payload_bytes < limits.least || header.payload_bytes > limits.most) {
    return absl::InvalidArgumentError(
        absl::StrCat("a frame of type ", static_cast<int>(header.type), " has from ", limits.least,
                     " to ", limits.most, " bytes, got ", header.payload_bytes));
  }
  const bool padded = bytes[5] == std::byte{} && bytes[6] == std::byte{} && bytes[7] == std::byte{};
  if ((header.id != 0) != limits.has_id || !padded) {
    return absl::InvalidArgumentError(absl::StrCat("a frame of type ",
                                                   static_cast<int>(header.type), " with id ",
                                                   header.id, " and wrong padding or id"));
  }
  return header;
}

std::vector<std::byte> ReadRequest::Encode(SegmentId segment, std::span<const Unit> units) {
  std::vector<std::byte> tables, bodies;
  WireWriter table_writer(tables), body_writer(bodies);
  absl::flat_hash_map<std::pair<const ByteRun*, std::size_t>, std::uint32_t> known;
  std::uint32_t count = 0, asked = 0;
  for (const Unit& unit : units) {
    const auto filled = [](const ByteRun& run) { return run.bytes > 0; };
    const auto runs = std::count_if(unit.runs.begin(), unit.runs.end(), filled);
    if (runs == 0) continue;
    const auto [entry, added] = known.try_emplace({unit.runs.data(), unit.runs.size()}, count);
    if (added) {
      ++count;
      table_writer.Number(static_cast<std::uint32_t>(runs));
      for (const ByteRun& run : unit.runs) {
        if (!filled(run)) continue;
        table_writer.Number(run.from);
        table_writer.Number(run.bytes);
      }
    }
    ++asked;
    body_writer.Number(unit.from);
    body_writer.Number(entry->second);
  }
  std::vector<std::byte> payload;
  WireWriter writer(payload);
  writer.Number(static_cast<std::uint32_t>(segment));
  writer.Number(count);
  writer.Number(asked);
  writer.Bytes(tables);
  writer.Bytes(bodies);
  return payload;
}

absl::StatusOr<std::vector<std::byte>> ReadRequest::EncodeOne(SegmentId segment,
                                                              std::span<const Unit> units) {
  std::vector<std::byte> request = Encode(segment, units);
  const std::uint64_t bytes = TotalBytes(units);
  if (request.size() <= kRequestBytesMax && bytes <= kReadBytesMax) return request;
  return absl::InvalidArgumentError(
      absl::StrCat("a read may have ", kReadBytesMax, " bytes and a request of ", kRequestBytesMax,
                   ", got ", bytes, " and ", request.size(), ": split it"));
}

absl::StatusOr<ReadRequest> ReadRequest::Decode(std::span<const std::byte> payload) {
  WireReader reader(payload);
  ReadRequest request;
  request.segment_ = SegmentId{reader.Number<std::uint32_t>()};
  const auto tables = reader.Number<std::uint32_t>();
  const auto units = reader.Number<std::uint32_t>();
  // A table has at least 12 bytes, a unit exactly 12.
  if (!reader.ok() || tables > reader.left() / 12 || units > reader.left() / 12) {
    return Malformed("is cut off");
  }
  std::vector<std::uint64_t> table_bytes;
  for (std::uint32_t t = 0; t < tables; ++t) {
    const auto count = reader.Number<std::uint32_t>();
    if (count == 0 || count > reader.left() / 8) return Malformed("has a table of no or lost runs");
    std::vector<ByteRun>& runs = request.tables_.emplace_back(count);
    std::uint64_t bytes = 0, end = 0;
    for (ByteRun& run : runs) {
      run.from = reader.Number<std::uint32_t>();
      run.bytes = reader.Number<std::uint32_t>();
      if (run.bytes == 0) return Malformed("has a run of no bytes");
      bytes += run.bytes;
      end = std::max(end, std::uint64_t{run.from} + run.bytes);
    }
    table_bytes.push_back(bytes);
    request.table_ends_.push_back(end);
  }
  for (std::uint32_t u = 0; u < units; ++u) {
    const auto from = reader.Number<std::uint64_t>();
    const auto table = reader.Number<std::uint32_t>();
    if (!reader.ok() || table >= tables) return Malformed("names a table that is not there");
    request.units_.push_back({.from = from, .to = nullptr, .runs = request.tables_[table]});
    request.unit_tables_.push_back(table);
    request.bytes_ += table_bytes[table];  // Below 2^50 each: the sum is checked before it wraps.
    if (request.bytes_ > kReadBytesMax) return Malformed("is for more than 2^40 bytes");
  }
  if (reader.left() > 0) return Malformed("has bytes behind its end");
  if (units == 0) return Malformed("is for no bytes");
  return request;
}

absl::Status ReadRequest::CheckInside(std::uint64_t segment_bytes) const {
  for (std::size_t u = 0; u < units_.size(); ++u) {
    const std::uint64_t end = table_ends_[unit_tables_[u]];
    if (units_[u].from <= segment_bytes && end <= segment_bytes - units_[u].from) continue;
    return absl::InvalidArgumentError(absl::StrCat("a read of ", end, " bytes at ", units_[u].from,
                                                   " is outside a segment of ", segment_bytes));
  }
  return absl::OkStatus();
}

std::vector<std::byte> EncodeEnd(const absl::Status& status) {
  std::vector<std::byte> payload;
  WireWriter writer(payload);
  writer.Number(static_cast<std::uint8_t>(status.code()));
  writer.Text(ToStd(status.message()).substr(0, kEndBytesMax - 3));
  return payload;
}

absl::Status DecodeEnd(std::span<const std::byte> payload) {
  WireReader reader(payload);
  const auto code = static_cast<absl::StatusCode>(reader.Number<std::uint8_t>());
  const std::string text = reader.Text();
  const bool known = code == absl::StatusCode::kNotFound || code == absl::StatusCode::kCancelled ||
                     code == absl::StatusCode::kInvalidArgument;
  if (!reader.ok() || reader.left() > 0 || !known) {
    return absl::InternalError("a read ended with a status that cannot be");
  }
  return {code, ToAbsl(text)};
}

}  // namespace penstock::transfer
