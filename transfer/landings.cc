// SPDX-License-Identifier: Apache-2.0
#include "transfer/landings.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/status.h"
#include "kernels/crc32c.h"
#include "transfer/tcp_frames.h"

namespace penstock::transfer {

void Landings::Add(ReadId id, SegmentId segment, std::span<const Unit> units, bool checksums) {
  const std::uint64_t bytes = TotalBytes(units);
  std::vector<std::uint32_t> crcs(units.size(), 0);
  if (bytes == 0) {
    ended_.push_back({.id = id, .status = {}, .crcs = std::move(crcs)});
    return;
  }
  absl::StatusOr<std::vector<std::byte>> request = ReadRequest::EncodeOne(segment, units);
  if (!request.ok()) return AddFailed(id, request.status());
  waiting_.push_back(id);
  reads_.emplace(id, Landing{.cursor = UnitCursor(units),
                             .crcs = std::move(crcs),
                             .checksums = checksums,
                             .left = bytes,
                             .request = *std::move(request),
                             .request_bytes = 0,
                             .drain = false});
}

void Landings::AddFailed(ReadId id, absl::Status status) {
  ended_.push_back({.id = id, .status = std::move(status), .crcs = {}});
}

std::optional<Landings::Question> Landings::NextQuestion() {
  if (waiting_.empty()) return std::nullopt;
  Landing& read = reads_.at(waiting_.front());
  if (asked_ >= kReadsMax || read.request.size() > kRequestsBytesMax - asked_bytes_) {
    return std::nullopt;
  }
  ++asked_;
  read.request_bytes = read.request.size();
  asked_bytes_ += read.request_bytes;
  Question question{.id = waiting_.front(), .request = std::exchange(read.request, {})};
  waiting_.pop_front();
  return question;
}

bool Landings::Cancel(ReadId id) {
  for (Ended& ended : ended_) {  // One of no bytes, perhaps.
    if (ended.id == id && ended.status.ok()) ended.status = absl::CancelledError("read cancelled");
  }
  const auto found = reads_.find(id);
  if (found == reads_.end() || found->second.drain) return false;
  AddFailed(id, absl::CancelledError("read cancelled"));
  if (!found->second.request.empty()) {
    std::erase(waiting_, id);
    reads_.erase(found);
    return false;
  }
  found->second.drain = true;
  return true;
}

Landings::Landing* Landings::Asked(ReadId id) {
  const auto found = reads_.find(id);
  return found == reads_.end() || !found->second.request.empty() ? nullptr : &found->second;
}

absl::Status Landings::Land(ReadId id, std::span<const std::byte> bytes) {
  Landing* const read = Asked(id);
  if (read == nullptr || bytes.size() > read->left) {
    return absl::InvalidArgumentError(absl::StrCat(bytes.size(), " bytes for read ",
                                                   static_cast<std::uint64_t>(id),
                                                   ", which did not ask for them"));
  }
  read->left -= bytes.size();
  for (std::span<const std::byte> rest = bytes; !read->drain && !rest.empty();) {
    const UnitCursor::Piece piece = read->cursor.Next(rest.size());
    if (read->checksums) {
      std::uint32_t& crc = read->crcs[piece.unit];
      crc = kernels::CopyCrc32c(crc, rest.data(), piece.bytes, piece.to);
    } else {
      std::memcpy(piece.to, rest.data(), piece.bytes);
    }
    read->cursor.Advance(piece.bytes);
    rest = rest.subspan(piece.bytes);
  }
  if (read->left == 0) Finish(id, absl::OkStatus());
  return absl::OkStatus();
}

absl::Status Landings::End(ReadId id, std::span<const std::byte> payload) {
  if (Asked(id) == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("read ", static_cast<std::uint64_t>(id), " ended, but was not under way"));
  }
  const absl::Status status = DecodeEnd(payload);
  if (absl::IsInternal(status)) return absl::InvalidArgumentError(status.message());
  Finish(id, status);
  return absl::OkStatus();
}

void Landings::Finish(ReadId id, const absl::Status& status) {
  auto node = reads_.extract(id);
  Landing& read = node.mapped();
  --asked_;
  asked_bytes_ -= read.request_bytes;
  if (read.drain) return;
  ended_.push_back({.id = id, .status = status, .crcs = std::move(read.crcs)});
}

bool Landings::TellEnds() {
  const Life::Watch life = life_.watch();
  // Those that a callback adds wait for the next turn.
  for (std::size_t left = ended_.size(); left > 0 && !ended_.empty(); --left) {
    const Ended ended = std::move(ended_.front());
    ended_.pop_front();
    done_(ended.id, ended.status,
          ended.status.ok() ? std::span<const std::uint32_t>(ended.crcs)
                            : std::span<const std::uint32_t>());
    if (life.over()) return false;
  }
  return true;
}

bool Landings::FailAll(const absl::Status& status) {
  waiting_.clear();
  asked_ = asked_bytes_ = 0;
  for (const auto& [id, read] : std::exchange(reads_, {})) {
    if (!read.drain) AddFailed(id, status);
  }
  while (!ended_.empty()) {
    if (!TellEnds()) return false;
  }
  return true;
}

}  // namespace penstock::transfer
