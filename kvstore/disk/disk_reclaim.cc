// SPDX-License-Identifier: Apache-2.0
// How the disk tier wins back room: a segment that has few living blocks is emptied, and its file
// goes once all that lived in it is on disk elsewhere. A crash in between leaves two equal copies.
#include <algorithm>
#include <utility>

#include "base/status.h"
#include "kernels/crc32c.h"
#include "kvstore/disk/disk_tier_impl.h"

namespace penstock::kvstore {
namespace {

constexpr std::size_t kSpareSegments = 2;  // One is always being filled, one is moved to.
constexpr Duration kRetryAfter = std::chrono::seconds(1);
constexpr Duration kMoveAfter = std::chrono::seconds(1);  // Whoever's turn it is by then.

}  // namespace

std::uint64_t DiskTier::Impl::bytes_live_max() const {
  // The fuller all segments are, the more must be moved for each byte that is won: at 85 %, six.
  const std::uint64_t room = options_.segment_bytes - 3 * kSectorBytes;
  return (segments_wanted() - kSpareSegments) * room / 20 * 17;
}

// Nothing where none can be emptied with a gain: the blocks of two such segments fit in one, or all
// blocks are small beside what is dead.
std::optional<std::uint64_t> DiskTier::Impl::Emptiest() const {
  std::optional<std::uint64_t> best;
  for (const auto& [number, segment] : segments_) {
    if (log_.busy(number) || segment.empty) continue;
    if (!best || segment.live_bytes < segments_.at(*best).live_bytes) best = number;
  }
  if (!best) return best;
  const Segment& segment = segments_.at(*best);
  std::uint64_t largest = 0;
  for (const RecordHeader& record : segment.records) {
    if (record.kind == RecordKind::kBlock && Lives(record)) {
      largest = std::max(largest, record.bytes());
    }
  }
  const std::uint64_t room = options_.segment_bytes - 3 * kSectorBytes;
  const std::uint64_t most = std::max(room / 2, room - std::min(room, 4 * largest));
  return segment.live_bytes <= most ? best : std::nullopt;
}

void DiskTier::Impl::Reclaim() {
  if (reclaiming_.has_value() || retry_set_) return;
  if (segments_.size() + kSpareSegments <= segments_wanted()) return;
  const std::optional<std::uint64_t> emptiest = Emptiest();
  if (emptiest.has_value()) {
    reclaiming_ = Reclaiming{.segment = *emptiest};
    return MoveNext();
  }
  // Whoever waits for room waits in vain, unless a file is about to be closed or to go.
  for (const auto& [number, segment] : segments_) {
    if (segment.empty || (log_.busy(number) && number != log_.open_segment())) return;
  }
  while (!queue_.empty()) {
    const std::uint64_t sequence = queue_.front();
    queue_.pop_front();
    if (pending_.contains(sequence)) {
      Finish(sequence, absl::ResourceExhaustedError(
                           "the files of the disk tier are full of living blocks; drop some"));
    }
  }
}

void DiskTier::Impl::MoveNext() {
  Reclaiming& state = *reclaiming_;
  state.turn.End();
  Segment& segment = segments_.at(state.segment);
  while (state.status.ok() && state.next < segment.records.size()) {
    const RecordHeader record = segment.records[state.next++];
    // A deletion hides older records of its key: where there is no older file, it has none to hide.
    if (record.kind == RecordKind::kDelete && segments_.begin()->first < state.segment) {
      return MoveDeletion(record);
    }
    if (record.kind == RecordKind::kBlock && Lives(record)) return MoveBlock(record);
  }
  if (state.moving == 0) EndReclaim(state.status);
}

void DiskTier::Impl::MoveBlock(const RecordHeader& record) {
  if (options_.turns == nullptr || !queue_.empty()) return ReadMoved(record, /*again=*/false);
  ++reclaiming_->moving;
  reclaiming_->waiting = record;
  // Read and written.
  reclaiming_->turn =
      options_.turns->Ask("disk", transfer::MoveClass::kWriteBack, 2 * record.bytes(),
                          loop_.Now() + kMoveAfter, [this](const absl::Status&) { OnTurn(); });
  if (reclaiming_->turn.begun()) OnTurn();
}

// Or nobody waits for it any more.
void DiskTier::Impl::OnTurn() {
  if (!reclaiming_.has_value() || !reclaiming_->waiting.has_value()) return;
  --reclaiming_->moving;
  const RecordHeader record = *std::exchange(reclaiming_->waiting, std::nullopt);
  if (Lives(record)) return ReadMoved(record, /*again=*/false);
  MoveNext();
}

void DiskTier::Impl::ReadMoved(const RecordHeader& record, bool again) {
  const DiskBytes payload = MakeSectors(SectorsUp(record.payload_bytes));
  ++reclaiming_->moving;
  io_.Read(record.segment, record.payload_offset(), payload,
           Alive([this, record, payload, again](const absl::Status& status) {
             --reclaiming_->moving;
             // Once more, since what cannot be moved is lost.
             if (!status.ok() && !again) {
               ++stats_.errors;
               return ReadMoved(record, /*again=*/true);
             }
             const bool good =
                 status.ok() && kernels::Crc32c(0, payload.bytes.data(), record.payload_bytes) ==
                                    record.payload_crc;
             if (good && Lives(record)) return AppendMoved(record, payload);
             if (!good && Lives(record)) {
               ++stats_.damaged;
               Forget(record.key);
             }
             MoveNext();
           }));
}

void DiskTier::Impl::MoveDeletion(const RecordHeader& record) { AppendMoved(record, {}); }

void DiskTier::Impl::AppendMoved(const RecordHeader& record, DiskBytes payload) {
  ++reclaiming_->moving;
  const bool room = log_.Fits(record.payload_bytes) || segments_.size() < segments_max();
  const absl::Status status =
      !room ? absl::ResourceExhaustedError("no segment to move to")
            : log_.Append(
                  {.kind = record.kind,
                   .key = record.key,
                   .sequence = record.sequence,  // It is the same copy still.
                   .payload = std::move(payload),
                   .payload_bytes = record.payload_bytes,
                   .payload_crc = record.payload_crc,
                   .tenant = record.tenant,
                   .written = [this, record](
                                  const absl::StatusOr<RecordHeader>& to) { OnMoved(record, to); },
                   .durable =
                       [this](const absl::Status& durable) {
                         --reclaiming_->moving;
                         if (!durable.ok()) reclaiming_->status = durable;
                         const Reclaiming& state = *reclaiming_;
                         const bool all = !state.status.ok() ||
                                          state.next == segments_.at(state.segment).records.size();
                         if (all && state.moving == 0) EndReclaim(state.status);
                       }});
  if (status.ok()) return (void)Opened();
  --reclaiming_->moving;
  reclaiming_->status = status;
  if (reclaiming_->moving == 0) EndReclaim(status);
}

void DiskTier::Impl::OnMoved(const RecordHeader& from, const absl::StatusOr<RecordHeader>& to) {
  if (!to.ok()) {
    ++stats_.errors;
    --reclaiming_->moving;
    reclaiming_->status = to.status();
    return MoveNext();
  }
  stats_.moved_bytes += to->bytes();
  segments_[to->segment].records.push_back(*to);
  if (from.kind == RecordKind::kBlock && Lives(from)) {
    Enter(*to);  // A put of this key cannot be pending: it lives.
    reclaiming_->moved.emplace_back(from, *to);
  }
  MoveNext();
}

void DiskTier::Impl::EndReclaim(const absl::Status& status) {
  const std::uint64_t number = reclaiming_->segment;
  const std::vector<std::pair<RecordHeader, RecordHeader>> moved = std::move(reclaiming_->moved);
  reclaiming_.reset();
  if (!status.ok()) {
    // The copies may not be on disk; what they were made of is.
    for (const auto& [from, to] : moved) {
      if (Lives(to)) Enter(from);
    }
    ++stats_.errors;
    return RetryLater();
  }
  segments_.at(number).empty = true;
  RemoveIfDone(number);
}

void DiskTier::Impl::RemoveIfDone(std::uint64_t number) {
  const auto at = segments_.find(number);
  if (at == segments_.end() || !at->second.empty || at->second.reads > 0) return;
  io_.Remove(number);
  segments_.erase(at);
  loop_.Post(Alive([this] { Pump(); }));
}

void DiskTier::Impl::RetryLater() {
  if (std::exchange(retry_set_, true)) return;
  retry_ = loop_.At(loop_.Now() + kRetryAfter, [this] {
    retry_set_ = false;
    Pump();
  });
}

}  // namespace penstock::kvstore
