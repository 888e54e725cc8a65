// SPDX-License-Identifier: Apache-2.0
// The tiers of one store node as one: where each copy lies, and its way between them.
//
//   put   a frame comes into host memory; it is written to disk at once (write-through), or when host
//         memory lets go of it (write-back: demoted before its room is used again).
//   get   out of host memory; what lies on disk is read into host memory first (promoted).
//   full  each tier has an eviction policy of its own. Host memory keeps a share free ahead of need,
//         so that a put finds room and a dirty copy has time to reach the disk.
//
// A cache: a put may be refused, a copy may be gone. What a get gives was put under that key, and was
// verified on its way out of the disk; who reads it out of host memory verifies it there.
//
// A slow or broken disk makes misses, never hangs: each get ends by its deadline.
//
// On one loop, the tiers' own. `done` of Get may be called from inside. Nothing is called after its
// end; tiers outlive it.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/copy_event.h"
#include "base/event_loop.h"
#include "base/metrics.h"
#include "base/time.h"
#include "kvstore/disk/disk_tier.h"
#include "kvstore/eviction.h"
#include "kvstore/host/host_tier.h"
#include "transfer/life.h"

namespace penstock::kvstore {

class TierSet {
 public:
  using Copy = HostTier::Copy;
  struct Options {
    bool disk_through = true;  // False: write-back.
    // Only what was asked for before is taken: a prompt that comes once leaves no trace.
    bool second_use = false;
    std::size_t asked_max = std::size_t{1} << 18;  // Keys remembered for that.
    double free_share = 1.0 / 32;                  // Of host memory, kept free.
    std::string disk_policy = "reuse-density";
    std::uint32_t block_tokens = 32;
    std::size_t promotions_max = 256;  // At once; more gets are refused.
  };
  struct TierStats {
    std::uint64_t hits = 0;    // Gets that ended well, by where the copy lay.
    std::uint64_t misses = 0;  // Of the slowest tier: gets that no tier could serve.
    std::uint64_t bytes_hit = 0;
    std::uint64_t evicted = 0;  // Let go, to the tier below or for good.
    std::uint64_t refused = 0;  // Puts: no room, or the disk is behind.
    std::uint64_t damaged = 0;  // Found wrong on the way out.
    std::uint64_t late = 0;     // Gets that ended by their deadline.
    double bytes_per_s = 0;     // Of reading it, a moving mean; 0: not measured.
  };
  struct Parts {
    Loop* loop = nullptr;
    HostTier* host = nullptr;
    DiskTier* disk = nullptr;  // Null: none.
  };
  // Of what others may know: where a copy lies now, or that it is gone.
  using OnEvent = std::function<void(const CopyEvent& event)>;

  // INVALID_ARGUMENT: no such policy. What the disk has from an earlier life is there at once.
  static absl::StatusOr<std::unique_ptr<TierSet>> Make(const Parts& parts, const Options& options,
                                                       OnEvent on_event);
  ~TierSet();

  // ---- Putting.
  // Whether a put would be taken; with second_use, remembers who was asked about.
  bool Wants(const BlockKey& key);
  // Room in host memory for copy.bytes, to be ended by EndPut. ALREADY_EXISTS; RESOURCE_EXHAUSTED with
  // both numbers: no room now, drop it; INVALID_ARGUMENT: larger than all room.
  absl::StatusOr<std::span<std::byte>> BeginPut(const Copy& copy);
  // OK: the frame is there, verified. Otherwise nothing writes there any more.
  void EndPut(const BlockKey& key, const absl::Status& status);

  // ---- Getting.
  struct Got {
    HostTier::Found found = {};
    Tier from = Tier::kHost;  // Where it lay.
    Duration waited = {};
  };
  using GotDone = std::function<void(absl::StatusOr<Got>)>;
  // A request asks for this chain, head first: before the gets of its blocks.
  void Asked(std::span<const BlockKey> chain);
  // The copy in host memory; it stays there while it is held or leased, so take a lease before
  // anything else is called here. NOT_FOUND: a miss; DATA_LOSS: it was damaged, and is gone;
  // DEADLINE_EXCEEDED, UNAVAILABLE, RESOURCE_EXHAUSTED: not now.
  void Get(const BlockKey& key, MonoTime deadline, GotDone done);
  // The fastest tier that has it.
  std::optional<Tier> Where(const BlockKey& key) const;

  // ---- For operators.
  // Out of all tiers; `done` hears OK once no restart brings it back. NOT_FOUND.
  void Delete(const BlockKey& key, std::function<void(absl::Status)> done);
  // Never evicted where it lies. False: not there.
  bool Pin(const BlockKey& key);
  bool Unpin(const BlockKey& key);
  void SetQuota(std::uint32_t tenant, std::optional<std::uint64_t> bytes);
  // Lets go of every copy of host memory that nobody holds: to disk, where there is one.
  void FlushHost();
  struct Listed {
    Copy copy = {};
    bool host = false;
    bool disk = false;
    bool pinned = false;
  };
  std::vector<Listed> List() const;  // By key.
  // All that is there, as events between begin and end.
  std::vector<CopyEvent> Snapshot() const;

  const TierStats& stats(Tier tier) const { return stats_[static_cast<std::size_t>(tier)]; }
  HostTier& host() { return *parts_.host; }
  DiskTier* disk() { return parts_.disk; }
  std::size_t promotions() const { return promotions_.size(); }
  const Histogram& disk_wait() const { return disk_wait_; }  // Seconds, of each promotion.

 private:
  struct OnDisk {
    Copy copy;
    bool written = false;  // Else on its way.
  };
  struct Promotion {
    std::vector<std::pair<Loop::TimerId, GotDone>> waiting;  // By who asked.
    MonoTime begun;
  };

  TierSet(const Parts& parts, const Options& options, std::unique_ptr<EvictionPolicy> disk_policy,
          OnEvent on_event);

  TierStats& Stats(Tier tier) { return stats_[static_cast<std::size_t>(tier)]; }
  absl::StatusOr<HostTier::Place> ReserveHost(const Copy& copy);
  void KeepFree();
  void LetGo(const Copy& copy);
  void RemoveFromHost(const BlockKey& key);
  // Whether it is on its way there, or there.
  bool WriteToDisk(const Copy& copy);
  void OnWritten(const BlockKey& key, const absl::Status& status);
  bool MakeDiskRoom(std::uint64_t bytes);
  void ForgetOnDisk(const BlockKey& key);
  void Promote(const BlockKey& key, MonoTime deadline, GotDone done);
  void OnPromoted(const BlockKey& key, const absl::StatusOr<std::uint32_t>& read);
  void Tell(const BlockKey& key);
  static CopyEvent EventOf(const Copy& copy, Tier tier);
  void Remember(const BlockKey& key);

  const Parts parts_;
  const Options options_;
  const OnEvent on_event_;
  const std::unique_ptr<EvictionPolicy> disk_policy_;  // Null without a disk.
  absl::flat_hash_map<BlockKey, OnDisk> on_disk_;
  absl::flat_hash_map<BlockKey, Promotion> promotions_;
  absl::flat_hash_set<BlockKey> leaving_;  // Host memory lets go of them once they are on disk.
  absl::flat_hash_set<BlockKey> pinned_;
  absl::flat_hash_set<BlockKey> asked_;
  std::deque<BlockKey> asked_order_;
  std::array<TierStats, kTiers> stats_ = {};
  Histogram disk_wait_{LatencyBounds()};
  transfer::Life life_;
};

}  // namespace penstock::kvstore
