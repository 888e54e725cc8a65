// SPDX-License-Identifier: Apache-2.0
// The host tier of a store node: frames (codecs/frame.h) in one piece of memory, which processes of
// this host may map and read without asking.
//
// Life of a copy:   Reserve -> reserved -> Publish -> held (found by Find) -> Remove -> gone
//
//   reserved   has room that its putter writes; nobody finds it. Cancel frees the room.
//   held       immutable. Evict names held copies that are worth least; they stay held until Remove,
//              so that who must write them elsewhere first can.
//   gone       Not found any more. Its room is free at once, or, while somebody holds it, or has a
//              lease that has not ended, when the last one lets go.
//
// Promises, of two kinds. A hold is this process's own (bytes being written to disk, or sent): it must
// be dropped. A lease is another process's, which may die: it ends by itself. Neither is evicted.
//
// Who reads mapped memory may be stopped for longer than its lease lasts. So each copy has a
// generation, a number in the memory itself that changes before its room is used again, and is never
// used twice. A reader loads it after it has read the bytes; one other than it was told (Place) means
// that they may have changed under it, and nothing made from them may leave. GenerationIs is that load.
//
// Memory: 8 bytes of generation for each 4 KiB of room, up to the next whole page, then the room. A
// copy has whole pages of 4 KiB, first fit from the lowest address (extents.h). Bytes of room count
// so in stats, in quotas and to Evict; only Copy::bytes are those of the frame.
//
// Owned by the node's loop; not thread-safe. Reads no clock: callers pass `now`, which does not go
// back (an earlier one counts as the last).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/key.h"
#include "base/time.h"
#include "kvstore/host/leases.h"

namespace penstock::kvstore {

class HostTier {
 public:
  static constexpr std::size_t kPageBytes = 4096;

  struct Options {
    std::string policy = "reuse-density";  // As MakeEvictionPolicy.
    std::uint32_t block_tokens = 32;
    std::uint32_t attention_tokens = 0;  // As EvictionPolicy::Options.
    Duration lease = std::chrono::seconds(5);
    std::size_t leases_max = 65536;
  };
  // What is known of a copy besides its bytes.
  struct Copy {
    BlockKey key = {};                    // (copy space, chain).
    std::optional<BlockKey> parent = {};  // The block before; none: the first of its chain.
    std::uint32_t bytes = 0;              // Of its frame; at least 1.
    std::uint32_t tenant = 0;
    std::uint32_t tokens_before = 0;  // In its chain.
    std::uint8_t codec = 0;
  };
  // Where its bytes are, as readers in other processes need it: offsets in the memory.
  struct Place {
    std::uint64_t offset = 0;  // Of the frame; a multiple of kPageBytes.
    std::uint64_t generation_offset = 0;
    std::uint64_t generation = 0;  // At least 1.
  };
  struct Found {
    Copy copy = {};
    Place place = {};
  };
  struct Stats {
    std::size_t copies = 0;          // Held.
    std::uint64_t bytes = 0;         // Of room that is taken, reserved and leaving copies, too.
    std::uint64_t bytes_max = 0;     // All room.
    std::uint64_t bytes_pinned = 0;  // Of held ones that are pinned, leased or have a hold.
    std::size_t leases = 0;
    std::size_t leaving = 0;    // Removed, with a hold or lease on them.
    std::uint64_t evicted = 0;  // Ever named by Evict.
  };

  // INVALID_ARGUMENT: no such policy, a lease that is not above 0, or memory for less than one page
  // of room (both numbers).
  // `memory`: aligned to kPageBytes (CHECKed), zeroed; it outlives the tier. Writes to it are the putter's,
  // inside what was reserved, and the tier's own to the generations.
  static absl::StatusOr<std::unique_ptr<HostTier>> Make(std::span<std::byte> memory,
                                                        const Options& options);

  // ---- Putting.
  // Room for a frame of copy.bytes. ALREADY_EXISTS: it is held or reserved. RESOURCE_EXHAUSTED with
  // both numbers: no room in one piece; Evict, Remove, and try again. INVALID_ARGUMENT: of no bytes,
  // or larger than all room.
  absl::StatusOr<Place> Reserve(const Copy& copy, MonoTime now);
  // The bytes are there and verified. It must be reserved (CHECKed).
  void Publish(const BlockKey& key, MonoTime now);
  // Before that: what only its frame says, where Reserve could not know it. It must be reserved
  // (CHECKed).
  void Amend(const BlockKey& key, std::uint32_t tokens_before, std::uint8_t codec);
  // Nothing writes there any more. It must be reserved (CHECKed).
  void Cancel(const BlockKey& key);

  // ---- Getting.
  // A request asks for this chain, head first; before Find of its blocks.
  void Ask(std::span<const BlockKey> chain, MonoTime now);
  // Of a held copy, which counts as used.
  std::optional<Found> Find(const BlockKey& key, MonoTime now);
  // The same without counting; null: not held. Until the next call that is not const.
  const Copy* Peek(const BlockKey& key) const;
  std::optional<Place> PlaceOf(const BlockKey& key) const;
  // Of a place that was given by this tier (CHECKed to be in the room).
  std::span<std::byte> Bytes(const Place& place, std::uint32_t bytes);

  // Of a held copy, until it is let go of as often; CHECKed. It may be gone by then.
  struct Hold {
    std::uint64_t offset = 0;
  };
  Hold HoldCopy(const BlockKey& key);
  void DropHold(Hold hold, MonoTime now);

  // Promises that a held copy (CHECKed) stays readable until now + lease. RESOURCE_EXHAUSTED when
  // leases_max are live: shed load.
  absl::StatusOr<LeaseId> Lease(const BlockKey& key, MonoTime now);
  // FAILED_PRECONDITION once it has ended: look the copy up again.
  absl::Status Renew(LeaseId lease, MonoTime now);
  // Unknown ones, which have ended, are ignored.
  void EndLease(LeaseId lease, MonoTime now);
  // Ends those whose time is up. To be called now and then; the others do so too.
  void Expire(MonoTime now);
  MonoTime NextExpiry() const;  // MonoTime::max() without leases.
  Duration lease() const;

  // ---- Making room.
  // Names held copies of `bytes` or a little more, the least worth first, and of tenants over their
  // quota before. They are candidates no more: remove each of them. Fewer where the rest has a hold,
  // a lease or a pin (or, to policies that know chains, comes before what has).
  std::vector<Copy> Evict(std::uint64_t bytes, MonoTime now);
  // A held copy (CHECKed) is found no more. Of one that Evict named or not.
  void Remove(const BlockKey& key, MonoTime now);
  // Never evicted until Unpin. False: not held, or Evict named it. Pins do not count up.
  bool Pin(const BlockKey& key);
  bool Unpin(const BlockKey& key, MonoTime now);
  void SetQuota(std::uint32_t tenant, std::optional<std::uint64_t> bytes);
  // Of its held copies that Evict did not name.
  std::uint64_t tenant_bytes(std::uint32_t tenant) const;

  std::vector<Copy> List() const;  // Held ones, by key.
  Stats stats() const;

 private:
  struct Impl;
  explicit HostTier(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;

 public:
  ~HostTier();
};

// Whether the copy that was told with `place` is still what lies there. `memory` is the reader's
// mapping, of which it may have a part only; a place outside counts as changed. For after all reads
// of its bytes: none of them is ordered behind this load.
bool GenerationIs(std::span<const std::byte> memory, const HostTier::Place& place);

}  // namespace penstock::kvstore
