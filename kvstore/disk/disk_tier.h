// SPDX-License-Identifier: Apache-2.0
// The disk tier of a store node: blocks in segment files (disk_format.h), found by an index in
// memory.
//
// A cache: it may lose a block, never give a wrong one. What Put said is on disk is there after any
// crash, until it is dropped to make room, deleted, or its bytes fail their checksum.
//
// Room: at most bytes_max in files. Put refuses what does not fit beside the living blocks; the
// owner then drops what its policy can spare (Drop is instant). Segments with few living blocks are
// emptied in the background: those blocks move to the open segment, the file goes. Each takes its
// turn on the link "disk" (transfer/link_turns.h), with those that have the least hurry; but not
// while a Put waits for that room, which has a turn of its own. Whose turn Get and Put are is the
// caller's matter.
//
// A slow disk costs time, never a hang: each Get ends by its deadline, each Put within end_within,
// as UNAVAILABLE or DEADLINE_EXCEEDED; what the kernel still reads or writes keeps its memory alive
// by DiskBytes::owner.
//
// On one loop; callbacks come on it, not from inside the call, and not after the tier's end.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/event_loop.h"
#include "base/key.h"
#include "base/time.h"
#include "kvstore/disk/disk_io.h"
#include "transfer/link_turns.h"

namespace penstock::kvstore {

class DiskTier {
 public:
  struct Options {
    std::uint64_t bytes_max = std::uint64_t{8} << 30;
    std::uint64_t segment_bytes = std::uint64_t{64} << 20;
    std::uint64_t store = 0;  // Of a new directory: drawn at random. One that has files keeps its.
    std::size_t puts_max = 256;  // Not on disk yet.
    std::size_t puts_bytes_max = std::size_t{256} << 20;
    Duration end_within = std::chrono::seconds(10);  // Of a Put and a Delete.
    transfer::LinkTurns* turns = nullptr;  // Null: what is moved takes none. Outlives the tier.
  };
  struct Block {
    BlockKey key;
    std::uint32_t bytes = 0;   // Of its payload.
    std::uint32_t tenant = 0;  // Kept for the caller.
  };
  struct Stats {
    std::size_t blocks = 0;
    std::uint64_t bytes_live = 0;      // Of them, with what each takes beside its payload.
    std::uint64_t bytes_live_max = 0;  // What Put allows.
    std::uint64_t bytes_files = 0;
    std::uint64_t puts = 0, gets = 0, bytes_written = 0, bytes_read = 0;
    std::uint64_t moved_bytes = 0;  // To empty segments.
    std::uint64_t damaged = 0;      // Blocks whose bytes or headers failed their checksum.
    std::uint64_t late = 0;         // Gets and puts that ended by their deadline.
    std::uint64_t errors = 0;       // Of the disk.
  };

  // Reads what is there; waits for the disk. INVALID_ARGUMENT: sizes that make no sense, with both
  // numbers. FAILED_PRECONDITION: files of two stores. Files of another version, and such as were
  // never written to, are removed (and counted as damaged).
  static absl::StatusOr<std::unique_ptr<DiskTier>> Open(Loop& loop, DiskIo& io,
                                                        const Options& options);
  ~DiskTier();

  // What two puts of a key say is the same. `payload`: whole sectors, of which
  // block.bytes count, with their CRC32C; unchanged until `done`, and while its owner is held.
  // `done` hears OK once the block is on disk; RESOURCE_EXHAUSTED: drop blocks first, or too much
  // is being written; INVALID_ARGUMENT: larger than a segment holds; CANCELLED: dropped or deleted
  // meanwhile; errors of the disk.
  void Put(const Block& block, DiskBytes payload, std::uint32_t payload_crc,
           std::function<void(absl::Status)> done);

  // Bytes that a payload has in `to` of Get: whole sectors. Nothing: no such block.
  std::optional<std::uint32_t> Find(const BlockKey& key) const;
  // Reads the block, verified, to the front of `to`. `done` hears its bytes; NOT_FOUND;
  // INVALID_ARGUMENT: `to` is too small (both numbers); DATA_LOSS: it was damaged, and is gone;
  // DEADLINE_EXCEEDED: `to` may still be written until nobody holds its owner.
  void Get(const BlockKey& key, DiskBytes to, MonoTime deadline,
           std::function<void(absl::StatusOr<std::uint32_t>)> done);

  // Gone at once; a crash may bring it back.
  void Drop(const BlockKey& key);
  // Gone for good once `done` hears OK.
  void Delete(const BlockKey& key, std::function<void(absl::Status)> done);

  std::vector<Block> List() const;
  Stats stats() const;

 private:
  class Impl;
  explicit DiskTier(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace penstock::kvstore
