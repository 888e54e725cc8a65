// SPDX-License-Identifier: Apache-2.0
// The state of a DiskTier, shared by disk_tier.cc (what is asked of it) and disk_reclaim.cc (what
// it does for itself).
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "kvstore/disk/disk_log.h"
#include "kvstore/disk/disk_recovery.h"
#include "kvstore/disk/disk_tier.h"

namespace penstock::kvstore {

class DiskTier::Impl {
 public:
  Impl(Loop& loop, DiskIo& io, const Options& options, Recovered recovered);
  ~Impl();

  void Put(const Block& block, DiskBytes payload, std::uint32_t payload_crc, DiskIo::Done done);
  std::optional<std::uint32_t> Find(const BlockKey& key) const;
  void Get(const BlockKey& key, DiskBytes to, MonoTime deadline,
           std::function<void(absl::StatusOr<std::uint32_t>)> done);
  void Drop(const BlockKey& key) { Forget(key); }
  void Delete(const BlockKey& key, DiskIo::Done done);
  std::vector<Block> List() const;
  Stats stats() const;

 private:
  // Where a block is.
  struct Place {
    std::uint64_t segment = 0;
    std::uint64_t offset = 0;  // Of its record's header.
    std::uint64_t sequence = 0;
    std::uint32_t bytes = 0;
    std::uint32_t crc = 0;
    std::uint32_t tenant = 0;
  };
  struct Segment {
    std::vector<RecordHeader> records;
    std::uint64_t live_bytes = 0;
    std::size_t reads = 0;  // Of blocks, under way.
    bool empty = false;     // Goes when the last read has ended.
  };
  // A put or deletion that is not on disk yet.
  struct Pending {
    BlockKey key;
    std::uint64_t bytes = 0;
    DiskLog::Record record;  // Until it is with the log.
    std::vector<DiskIo::Done> done;
    Loop::TimerId timer{};
    bool queued = true;  // Not with the log.
    bool written = false;
    bool dropped = false;  // Must not be found.
  };
  struct Reading;

  void Enqueue(DiskLog::Record record, DiskIo::Done done);
  // Gives what waits to the log while there is room.
  void Pump();
  absl::Status Append(std::uint64_t sequence, Pending& pending);
  void OnWritten(std::uint64_t sequence, const absl::StatusOr<RecordHeader>& header);
  void Finish(std::uint64_t sequence, const absl::Status& status);
  void OnLate(std::uint64_t sequence);
  void OnRead(const std::shared_ptr<Reading>& reading, const absl::Status& status);

  void Enter(const RecordHeader& record);
  // No longer to be found; also where it is not written yet.
  void Forget(const BlockKey& key);
  // Whether the index leads to that place.
  bool Lives(const BlockKey& key, std::uint64_t segment, std::uint64_t offset) const;
  bool Lives(const RecordHeader& record) const {
    return Lives(record.key, record.segment, record.offset);
  }
  Segment& Opened();  // The open segment's, after an Append.

  // Reclaim: one segment at a time.
  std::size_t segments_max() const { return options_.bytes_max / options_.segment_bytes; }
  // Of those, one is for what follows a crash in the middle of a move: another move, while the
  // copies that the first one made, all of them of no use, are still there.
  std::size_t segments_wanted() const { return segments_max() - 1; }
  std::uint64_t bytes_live_max() const;
  // Begins with the segment that has the fewest living bytes, where room is short.
  void Reclaim();
  std::optional<std::uint64_t> Emptiest() const;
  void MoveNext();
  // In its turn.
  void MoveBlock(const RecordHeader& record);
  void OnTurn();
  void ReadMoved(const RecordHeader& record, bool again);
  void MoveDeletion(const RecordHeader& record);
  void AppendMoved(const RecordHeader& record, DiskBytes payload);
  void OnMoved(const RecordHeader& from, const absl::StatusOr<RecordHeader>& to);
  void EndReclaim(const absl::Status& status);
  void RemoveIfDone(std::uint64_t number);
  void RetryLater();

  // `task` while this lives.
  template <typename F>
  auto Alive(F task) {
    return [task = std::move(task), life = std::weak_ptr(life_)](auto&&... arguments) {
      if (!life.expired()) task(std::forward<decltype(arguments)>(arguments)...);
    };
  }

  Loop& loop_;
  DiskIo& io_;
  const Options options_;
  DiskLog log_;
  absl::flat_hash_map<BlockKey, Place> index_;
  std::map<std::uint64_t, Segment> segments_;
  std::map<std::uint64_t, Pending> pending_;                     // By sequence.
  absl::flat_hash_map<BlockKey, std::uint64_t> pending_of_key_;  // Puts that are not dropped.
  std::deque<std::uint64_t> queue_;
  std::uint64_t next_sequence_;
  std::uint64_t bytes_live_ = 0;
  std::uint64_t bytes_pending_ = 0;  // Of puts that are not written.
  struct Reclaiming {
    std::uint64_t segment = 0;
    std::size_t next = 0;
    std::size_t moving = 0;  // Being read, written or synced.
    std::vector<std::pair<RecordHeader, RecordHeader>> moved = {};  // From where, to where.
    std::optional<RecordHeader> waiting = {};                       // For its turn.
    transfer::LinkTurns::Turn turn = {};  // Of one block, until it is written.
    absl::Status status = {};
  };
  std::optional<Reclaiming> reclaiming_;
  bool retry_set_ = false;
  Loop::TimerId retry_{};
  Stats stats_;
  std::shared_ptr<int> life_ = std::make_shared<int>(0);
};

}  // namespace penstock::kvstore
