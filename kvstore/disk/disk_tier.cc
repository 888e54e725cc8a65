// SPDX-License-Identifier: Apache-2.0
#include "kvstore/disk/disk_tier.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "kernels/crc32c.h"
#include "kvstore/disk/disk_tier_impl.h"

namespace penstock::kvstore {
namespace {

constexpr std::uint64_t kSegmentBytesMin = 16 * kSectorBytes;
constexpr std::size_t kSegmentsMin = 5;

absl::Status Check(const DiskTier::Options& options) {
  if (options.segment_bytes % kSectorBytes != 0 || options.segment_bytes < kSegmentBytesMin) {
    return absl::InvalidArgumentError(
        absl::StrCat("a segment must have a multiple of ", kSectorBytes, " bytes, at least ",
                     kSegmentBytesMin, ", got ", options.segment_bytes));
  }
  if (options.bytes_max / options.segment_bytes < kSegmentsMin) {
    return absl::InvalidArgumentError(
        absl::StrCat("the disk tier needs ", kSegmentsMin, " segments of ", options.segment_bytes,
                     " bytes at least, got ", options.bytes_max, " bytes"));
  }
  return absl::OkStatus();
}

}  // namespace

struct DiskTier::Impl::Reading {
  BlockKey key;
  Place place;
  DiskBytes to;
  std::function<void(absl::StatusOr<std::uint32_t>)> done;  // Empty once it was called.
  Loop::TimerId timer{};
};

DiskTier::Impl::Impl(Loop& loop, DiskIo& io, const Options& options, Recovered recovered)
    : loop_(loop),
      io_(io),
      options_(options),
      log_(io, {.store = recovered.store.value_or(options.store),
                .segment_bytes = options.segment_bytes,
                .next_segment = recovered.next_segment,
                .closed = [this] { loop_.Post(Alive([this] { Pump(); })); }}),
      next_sequence_(recovered.next_sequence) {
  for (const std::uint64_t segment : recovered.unusable) {
    ++stats_.damaged;
    io_.Remove(segment);
  }
  // Of a key the highest sequence counts. Of equal ones, which a move leaves when it is cut short,
  // the first: the file that is moved from goes only when all of it is on disk elsewhere.
  absl::flat_hash_map<BlockKey, std::uint64_t> deleted;
  for (const RecoveredSegment& segment : recovered.segments) {
    for (const RecordHeader& record : segment.records) {
      if (record.kind != RecordKind::kDelete) continue;
      std::uint64_t& sequence = deleted[record.key];
      sequence = std::max(sequence, record.sequence);
    }
  }
  for (RecoveredSegment& segment : recovered.segments) {
    for (const RecordHeader& record : segment.records) {
      if (record.kind != RecordKind::kBlock) continue;
      const auto gone = deleted.find(record.key);
      if (gone != deleted.end() && gone->second > record.sequence) continue;
      const auto at = index_.find(record.key);
      if (at != index_.end() && at->second.sequence >= record.sequence) continue;
      Enter(record);
    }
    segments_[segment.header.segment].records = std::move(segment.records);
  }
}

DiskTier::Impl::~Impl() {
  for (const auto& [sequence, pending] : pending_) loop_.CancelTimer(pending.timer);
  if (retry_set_) loop_.CancelTimer(retry_);
}

void DiskTier::Impl::Enter(const RecordHeader& record) {
  Forget(record.key);
  index_[record.key] = {.segment = record.segment,
                        .offset = record.offset,
                        .sequence = record.sequence,
                        .bytes = record.payload_bytes,
                        .crc = record.payload_crc,
                        .tenant = record.tenant};
  const std::uint64_t bytes = DiskLog::BytesOf(record.payload_bytes);
  bytes_live_ += bytes;
  segments_[record.segment].live_bytes += bytes;
}

void DiskTier::Impl::Forget(const BlockKey& key) {
  if (const auto at = pending_of_key_.find(key); at != pending_of_key_.end()) {
    pending_.at(at->second).dropped = true;
    pending_of_key_.erase(at);
  }
  const auto at = index_.find(key);
  if (at == index_.end()) return;
  const std::uint64_t bytes = DiskLog::BytesOf(at->second.bytes);
  bytes_live_ -= bytes;
  segments_.at(at->second.segment).live_bytes -= bytes;
  index_.erase(at);
}

bool DiskTier::Impl::Lives(const BlockKey& key, std::uint64_t segment, std::uint64_t offset) const {
  const auto at = index_.find(key);
  return at != index_.end() && at->second.segment == segment && at->second.offset == offset;
}

void DiskTier::Impl::Put(const Block& block, DiskBytes payload, std::uint32_t payload_crc,
                         DiskIo::Done done) {
  const auto& [key, payload_bytes, tenant] = block;
  ++stats_.puts;
  const auto answer = [&](absl::Status status) {
    loop_.Post(Alive([done, status = std::move(status)] { done(status); }));
  };
  CHECK_EQ(payload.bytes.size(), SectorsUp(payload_bytes));
  if (payload_bytes > log_.payload_bytes_max()) {
    return answer(absl::InvalidArgumentError(absl::StrCat("a block on disk has at most ",
                                                          log_.payload_bytes_max(),
                                                          " bytes, this one ", payload_bytes)));
  }
  if (const auto at = pending_of_key_.find(key); at != pending_of_key_.end()) {
    pending_.at(at->second).done.push_back(std::move(done));
    return;
  }
  if (index_.contains(key)) return answer(absl::OkStatus());
  const std::uint64_t bytes = DiskLog::BytesOf(payload_bytes);
  if (bytes_live_ + bytes_pending_ + bytes > bytes_live_max()) {
    return answer(absl::ResourceExhaustedError(
        absl::StrCat("the disk tier holds ", bytes_live_ + bytes_pending_, " of ", bytes_live_max(),
                     " bytes; a block needs ", bytes)));
  }
  if (pending_.size() >= options_.puts_max || bytes_pending_ + bytes > options_.puts_bytes_max) {
    return answer(absl::ResourceExhaustedError(
        absl::StrCat(pending_.size(), " blocks of ", bytes_pending_, " bytes are being written, ",
                     options_.puts_max, " of ", options_.puts_bytes_max, " at most")));
  }
  pending_of_key_[key] = next_sequence_;
  Enqueue({.kind = RecordKind::kBlock,
           .key = key,
           .payload = std::move(payload),
           .payload_bytes = payload_bytes,
           .payload_crc = payload_crc,
           .tenant = tenant},
          std::move(done));
}

void DiskTier::Impl::Delete(const BlockKey& key, DiskIo::Done done) {
  Forget(key);
  Enqueue({.kind = RecordKind::kDelete, .key = key}, std::move(done));
}

void DiskTier::Impl::Enqueue(DiskLog::Record record, DiskIo::Done done) {
  const std::uint64_t sequence = next_sequence_++;
  record.sequence = sequence;
  const bool deletes = record.kind == RecordKind::kDelete;
  Pending& pending = pending_[sequence];
  pending.key = record.key;
  pending.bytes = DiskLog::BytesOf(record.payload_bytes);
  bytes_pending_ += pending.bytes;
  pending.record = std::move(record);
  pending.done.push_back(std::move(done));
  pending.timer =
      loop_.At(loop_.Now() + options_.end_within, [this, sequence] { OnLate(sequence); });
  // Deletions need not wait for room; of two records of a key the sequence decides.
  queue_.insert(deletes ? queue_.begin() : queue_.end(), sequence);
  // Not from inside the caller: what fails at once is told later, too.
  loop_.Post(Alive([this] { Pump(); }));
}

void DiskTier::Impl::Pump() {
  while (!queue_.empty()) {
    const std::uint64_t sequence = queue_.front();
    const auto at = pending_.find(sequence);
    if (at == pending_.end() || at->second.dropped) {
      queue_.pop_front();
      if (at != pending_.end()) Finish(sequence, absl::OkStatus());
      continue;
    }
    // The last segment is for moving blocks there, and for deletions, which make room.
    const bool must = at->second.record.kind == RecordKind::kDelete;
    const std::size_t most = segments_wanted() - (must ? 0 : 1);
    if (!log_.Fits(at->second.record.payload_bytes) && segments_.size() >= most) break;
    // What is moved must fit into the last one.
    if (!must && reclaiming_.has_value() && segments_.size() >= segments_wanted()) break;
    queue_.pop_front();
    const absl::Status status = Append(sequence, at->second);
    if (!status.ok()) {
      ++stats_.errors;
      Finish(sequence, status);
    }
  }
  Reclaim();
  // Who waits for room has the turn that what makes the room would wait for.
  if (!queue_.empty()) OnTurn();
}

DiskTier::Impl::Segment& DiskTier::Impl::Opened() { return segments_[log_.open_segment()]; }

absl::Status DiskTier::Impl::Append(std::uint64_t sequence, Pending& pending) {
  pending.queued = false;
  pending.record.written = [this, sequence](const absl::StatusOr<RecordHeader>& header) {
    OnWritten(sequence, header);
  };
  pending.record.durable = [this, sequence](const absl::Status& status) {
    Finish(sequence, status);
  };
  RETURN_IF_ERROR(log_.Append(std::move(pending.record)));
  (void)Opened();
  return absl::OkStatus();
}

void DiskTier::Impl::OnWritten(std::uint64_t sequence, const absl::StatusOr<RecordHeader>& header) {
  Pending& pending = pending_.at(sequence);
  if (!header.ok()) {
    ++stats_.errors;
    return Finish(sequence, header.status());
  }
  pending.written = true;
  bytes_pending_ -= pending.bytes;
  stats_.bytes_written += header->bytes();
  segments_[header->segment].records.push_back(*header);
  if (header->kind != RecordKind::kBlock || pending.dropped) return;
  pending_of_key_.erase(header->key);  // Not dropped by Enter.
  Enter(*header);
  pending_of_key_[header->key] = sequence;  // Whoever puts it again waits for the disk, too.
}

void DiskTier::Impl::Finish(std::uint64_t sequence, const absl::Status& status) {
  const auto at = pending_.find(sequence);
  Pending pending = std::move(at->second);
  pending_.erase(at);
  loop_.CancelTimer(pending.timer);
  if (!pending.written) bytes_pending_ -= pending.bytes;
  const auto of_key = pending_of_key_.find(pending.key);
  if (of_key != pending_of_key_.end() && of_key->second == sequence) pending_of_key_.erase(of_key);
  // What may not be on disk is not there: the next put of the key must write it.
  if (!status.ok() && pending.written && !pending.dropped) Forget(pending.key);
  const absl::Status told =
      pending.dropped ? absl::CancelledError("the block was dropped while it was written") : status;
  for (const DiskIo::Done& done : pending.done) done(told);
}

void DiskTier::Impl::OnLate(std::uint64_t sequence) {
  Pending& pending = pending_.at(sequence);
  ++stats_.late;
  if (pending.queued) {
    // Nobody holds its payload for a disk that takes nothing.
    return Finish(sequence, absl::DeadlineExceededError("the disk had no room in time"));
  }
  // What the kernel has, it has: the block may still come to be found.
  for (const DiskIo::Done& done : std::exchange(pending.done, {})) {
    done(absl::DeadlineExceededError("the disk did not write the block in time"));
  }
}

std::optional<std::uint32_t> DiskTier::Impl::Find(const BlockKey& key) const {
  const auto at = index_.find(key);
  if (at == index_.end()) return std::nullopt;
  return at->second.bytes;
}

void DiskTier::Impl::Get(const BlockKey& key, DiskBytes to, MonoTime deadline,
                         std::function<void(absl::StatusOr<std::uint32_t>)> done) {
  ++stats_.gets;
  const auto at = index_.find(key);
  absl::Status wrong;
  if (at == index_.end()) {
    wrong = absl::NotFoundError("the block is not on disk");
  } else if (to.bytes.size() < SectorsUp(at->second.bytes)) {
    wrong = absl::InvalidArgumentError(absl::StrCat("the block needs ", SectorsUp(at->second.bytes),
                                                    " bytes to be read to, got ", to.bytes.size()));
  }
  if (!wrong.ok()) {
    loop_.Post(Alive([done = std::move(done), wrong] { done(wrong); }));
    return;
  }
  const auto reading = std::make_shared<Reading>();
  reading->key = key;
  reading->place = at->second;
  reading->to = {to.bytes.first(SectorsUp(at->second.bytes)), std::move(to.owner)};
  reading->done = std::move(done);
  reading->timer = loop_.At(deadline, Alive([this, reading] {
                              ++stats_.late;
                              std::exchange(reading->done, {})(
                                  absl::DeadlineExceededError("the disk did not answer in time"));
                            }));
  ++segments_.at(reading->place.segment).reads;
  io_.Read(reading->place.segment, reading->place.offset + kSectorBytes, reading->to,
           Alive([this, reading](const absl::Status& status) { OnRead(reading, status); }));
}

void DiskTier::Impl::OnRead(const std::shared_ptr<Reading>& reading, const absl::Status& status) {
  const Place& place = reading->place;
  --segments_.at(place.segment).reads;
  RemoveIfDone(place.segment);
  absl::Status result = status;
  if (!status.ok()) {
    ++stats_.errors;  // The next time it may come.
  } else if (kernels::Crc32c(0, reading->to.bytes.data(), place.bytes) != place.crc) {
    ++stats_.damaged;
    result = absl::DataLossError("the block on disk was damaged; it is gone");
    if (Lives(reading->key, place.segment, place.offset)) Forget(reading->key);
  } else {
    stats_.bytes_read += place.bytes;
  }
  if (!reading->done) return;
  loop_.CancelTimer(reading->timer);
  if (!result.ok()) return std::exchange(reading->done, {})(result);
  std::exchange(reading->done, {})(place.bytes);
}

std::vector<DiskTier::Block> DiskTier::Impl::List() const {
  std::vector<Block> blocks;
  for (const auto& [key, place] : index_) {
    blocks.push_back({.key = key, .bytes = place.bytes, .tenant = place.tenant});
  }
  return blocks;
}

DiskTier::Stats DiskTier::Impl::stats() const {
  Stats stats = stats_;
  stats.blocks = index_.size();
  stats.bytes_live = bytes_live_;
  stats.bytes_live_max = bytes_live_max();
  stats.bytes_files = segments_.size() * options_.segment_bytes;
  return stats;
}

absl::StatusOr<std::unique_ptr<DiskTier>> DiskTier::Open(Loop& loop, DiskIo& io,
                                                         const Options& options) {
  RETURN_IF_ERROR(Check(options));
  ASSIGN_OR_RETURN(Recovered recovered, Recover(io));
  auto impl = std::make_unique<Impl>(loop, io, options, std::move(recovered));
  return std::unique_ptr<DiskTier>(new DiskTier(std::move(impl)));
}

DiskTier::DiskTier(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
DiskTier::~DiskTier() = default;

void DiskTier::Put(const Block& block, DiskBytes payload, std::uint32_t payload_crc,
                   std::function<void(absl::Status)> done) {
  impl_->Put(block, std::move(payload), payload_crc, std::move(done));
}
std::optional<std::uint32_t> DiskTier::Find(const BlockKey& key) const { return impl_->Find(key); }
void DiskTier::Get(const BlockKey& key, DiskBytes to, MonoTime deadline,
                   std::function<void(absl::StatusOr<std::uint32_t>)> done) {
  impl_->Get(key, std::move(to), deadline, std::move(done));
}
void DiskTier::Drop(const BlockKey& key) { impl_->Drop(key); }
void DiskTier::Delete(const BlockKey& key, std::function<void(absl::Status)> done) {
  impl_->Delete(key, std::move(done));
}
std::vector<DiskTier::Block> DiskTier::List() const { return impl_->List(); }
DiskTier::Stats DiskTier::stats() const { return impl_->stats(); }

}  // namespace penstock::kvstore
