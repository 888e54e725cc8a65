// SPDX-License-Identifier: Apache-2.0
// The tiers of one store node as one: where each copy lies, and its way between them.
//
//   put   a frame comes into host memory; it is written to disk at once (write-through), or when host
//         memory lets go of it (write-back: demoted before its room is used again). What the disk, or
//         host memory where there is no disk, lets go of is put into the remote tier; or, through,
//         every frame at once.
//   get   out of host memory; what lies on disk, or is to be had from the remote tier, is read into
//         host memory first (promoted).
//   full  host memory and disk have eviction policies of their own. With something below it, each keeps
//         a share free ahead of need, so that a put finds room and a copy has time to move down.
//
// A cache: a put may be refused, a copy may be gone. What a get gives was put under that key, and was
// verified on its way out of the disk; what comes from the remote tier, where others may write, is
// checked with the cluster's secret, to its last byte, before anybody can find it. Who reads out of
// host memory verifies it there.
//
// Which copies the remote tier has is its server's matter: known are those that this node has put or
// got there; a get asks for others too.
//
// A slow or broken disk or server makes misses, never hangs: each get ends by its deadline. What is read
// from disk or server, or written there, takes its turn on the link "disk" or "remote"
// (transfer/link_turns.h): so what somebody waits for goes before all that is on its way down.
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
#include <utility>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/copy_event.h"
#include "base/event_loop.h"
#include "base/metrics.h"
#include "base/spans.h"
#include "base/time.h"
#include "kvstore/codecs/frame.h"
#include "kvstore/disk/disk_tier.h"
#include "kvstore/eviction.h"
#include "kvstore/host/host_tier.h"
#include "kvstore/remote/remote_tier.h"
#include "transfer/life.h"
#include "transfer/link_turns.h"

namespace penstock::kvstore {

class TierSet {
 public:
  using Copy = HostTier::Copy;
  struct Options {
    bool disk_through = true;  // False: write-back.
    // Only what was asked for before is taken: a prompt that comes once leaves no trace.
    bool second_use = false;
    std::size_t asked_max = std::size_t{1} << 18;  // Keys remembered for that.
    double free_share = 1.0 / 32;  // Kept free: of host memory; of the disk above a remote tier.
    std::string disk_policy = "reuse-density";
    std::uint32_t block_tokens = 32;
    std::size_t promotions_max = 256;                     // At once; more gets are refused.
    bool remote_through = false;                          // Else write-back.
    std::size_t remote_known_max = std::size_t{1} << 20;  // Copies remembered to be there.
    // Of frames on their way between the disk and the remote tier, or from there.
    std::size_t moving_bytes_max = std::size_t{64} << 20;
    std::vector<std::byte> secret = {};  // The cluster's: without it, no remote tier.
    SpanRing* spans = nullptr;           // Null: not traced. Outlives the tiers.
    std::vector<std::pair<std::uint32_t, std::uint64_t>> quotas = {};  // As SetQuota, at the start.
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
    DiskTier* disk = nullptr;      // Null: none.
    RemoteTier* remote = nullptr;  // Null: none.
    transfer::LinkTurns* turns = nullptr;
  };
  // Of what others may know: where a copy lies now, or that it is gone.
  using OnEvent = std::function<void(const CopyEvent& event)>;

  // INVALID_ARGUMENT: no such policy, or a remote tier without a secret. What the disk has from an
  // earlier life is there at once.
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
  // DEADLINE_EXCEEDED, UNAVAILABLE, RESOURCE_EXHAUSTED: not now. `of`: for whom, where it must be read
  // from below; what several ask for goes by the most urgent.
  void Get(const BlockKey& key, MonoTime deadline, GotDone done,
           transfer::MoveClass of = transfer::MoveClass::kFetch);
  // The fastest tier that has it.
  std::optional<Tier> Where(const BlockKey& key) const;

  // ---- For operators.
  // Out of all tiers; `done` hears OK once no restart brings it back. NOT_FOUND.
  void Delete(const BlockKey& key, std::function<void(absl::Status)> done);
  // Never evicted from host memory and disk, for as long as the node runs. False: not there.
  bool Pin(const BlockKey& key);
  bool Unpin(const BlockKey& key);
  std::size_t pinned() const { return pinned_.size(); }
  // Of this tenant's bytes in host memory, and as much on disk: where a tier is full, who is over it
  // pays first. None: no limit of its own.
  void SetQuota(std::uint32_t tenant, std::optional<std::uint64_t> bytes);
  // Of those with a quota, by number: room that is taken.
  struct TenantBytes {
    std::uint32_t tenant = 0;
    std::uint64_t quota = 0;
    std::uint64_t host = 0;
    std::uint64_t disk = 0;
  };
  std::vector<TenantBytes> tenants() const;
  // Lets go of every copy of host memory that nobody holds, to the tier below where there is one; with
  // `bytes_max`, of about so many bytes. How many bytes: those that are on their way down count.
  std::uint64_t FlushHost(std::uint64_t bytes_max = UINT64_MAX);
  // Copies that host memory has still to let go of.
  std::size_t leaving() const { return leaving_.size(); }
  struct Listed {
    Copy copy = {};
    bool host = false;
    bool disk = false;
    bool remote = false;  // As far as is known.
    bool pinned = false;
  };
  std::size_t copies() const { return names_.size(); }
  std::vector<Listed> List() const;  // By key.
  // By name, from `begin` on, those behind `after`, `most` at most: to go through all in pieces, while
  // copies come and go.
  std::vector<Listed> ListFrom(const CopyName& begin, const std::optional<BlockKey>& after,
                               std::size_t most) const;
  // Nothing: not there.
  std::optional<Listed> Describe(const BlockKey& key) const;
  // Checks what lies in host memory and on disk, to the last byte, and drops what is damaged. `done`
  // may be called from inside: OK; DATA_LOSS: dropped; NOT_FOUND: it is in neither; or why it could not
  // be read. The bytes that were read, of both.
  using VerifiedDone = std::function<void(const absl::Status& status, std::uint64_t bytes)>;
  void Verify(const BlockKey& key, VerifiedDone done);
  // All that is there, as events between begin and end.
  std::vector<CopyEvent> Snapshot() const;

  const TierStats& stats(Tier tier) const { return stats_[static_cast<std::size_t>(tier)]; }
  HostTier& host() { return *parts_.host; }
  DiskTier* disk() { return parts_.disk; }
  RemoteTier* remote() { return parts_.remote; }
  std::size_t remote_known() const { return in_remote_.size(); }
  std::size_t promotions() const { return promotions_.size(); }
  std::uint64_t moving_bytes() const { return moving_bytes_; }
  const Histogram& disk_wait() const { return disk_wait_; }  // Seconds, of each promotion.
  const Histogram& remote_wait() const { return remote_wait_; }

 private:
  // A copy in a tier below host memory.
  struct Below {
    Copy copy;
    bool written = false;                 // Else on its way.
    std::uint64_t write = 0;              // Of its key, this one.
    transfer::LinkTurns::Turn turn = {};  // Of what is being done with it.
  };
  struct Promotion {
    Tier from = Tier::kDisk;
    std::vector<std::pair<Loop::TimerId, GotDone>> waiting;  // By who asked.
    MonoTime asked;
    MonoTime begun = {};   // Its turn came.
    bool deleted = false;  // Meanwhile.
    transfer::MoveClass of{};
    transfer::LinkTurns::Turn turn = {};
  };
  // Of what waits for its turn on the way down.
  static constexpr Duration kTurnWithin = std::chrono::seconds(10);
  // Memory outside the host tier, counted in moving_bytes_.
  struct Moving;
  using Name = std::pair<CopyName, BlockKey>;

  TierSet(const Parts& parts, const Options& options, std::unique_ptr<EvictionPolicy> disk_policy,
          OnEvent on_event);

  TierStats& Stats(Tier tier) { return stats_[static_cast<std::size_t>(tier)]; }
  Tier slowest() const;
  std::optional<Secret> secret() const {  // None: frames need no MAC.
    return options_.secret.empty() ? std::nullopt : std::optional<Secret>(options_.secret);
  }
  const Below* OnDisk(const BlockKey& key) const;    // Null unless it is written.
  const Below* InRemote(const BlockKey& key) const;  // Likewise.
  absl::StatusOr<HostTier::Place> ReserveHost(const Copy& copy);
  void KeepFree();
  void LetGo(const Copy& copy);
  void RemoveFromHost(const BlockKey& key);
  void Tell(const BlockKey& key);
  static CopyEvent EventOf(const Listed& listed);
  void Remember(const BlockKey& key);

  // ---- The disk (tier_set_disk.cc).
  void TraceRead(SpanName name, Tier tier, std::uint8_t codec, MonoTime begin,
                 const absl::StatusOr<std::uint32_t>& read) const;
  // Whether it is on its way there, or there.
  bool WriteToDisk(const Copy& copy);
  bool PutOnDisk(const BlockKey& key, std::shared_ptr<const void> hold);
  void OnWritten(const BlockKey& key, std::uint64_t write, const absl::Status& status);
  bool MakeDiskRoom(std::uint64_t bytes);
  void ForgetOnDisk(const BlockKey& key);
  void DropFromDisk(const BlockKey& key);

  // ---- Getting (tier_set_get.cc).
  void Promote(const BlockKey& key, Tier from, MonoTime deadline, GotDone done,
               transfer::MoveClass of);
  void AskTurn(const BlockKey& key, Promotion& promotion);
  void BeginPromotion(const BlockKey& key);
  absl::Status ReadDisk(const BlockKey& key, MonoTime deadline);
  absl::Status Recognize(const BlockKey& key, std::span<const std::byte> frame);
  void OnPromoted(const BlockKey& key, const absl::StatusOr<std::uint32_t>& read);

  // ---- The remote tier (tier_set_remote.cc).
  absl::StatusOr<std::shared_ptr<Moving>> Move(std::uint32_t bytes);
  // Whether it is on its way there, or there.
  bool WriteToRemote(const Copy& copy, RemoteBytes frame);
  void PutInRemote(const BlockKey& key, RemoteBytes frame);
  RemoteBytes HostFrame(const Copy& copy);
  void OnWrittenRemotely(const BlockKey& key, std::uint64_t write, const absl::Status& status);
  void ReadRemote(const BlockKey& key, MonoTime deadline);
  absl::StatusOr<std::uint32_t> TakeRemote(const BlockKey& key, std::span<const std::byte> frame);
  void RememberRemote(const Copy& copy);
  void ForgetRemote(const BlockKey& key);
  void KeepDiskFree();
  bool Demote(const BlockKey& key);
  void ReadToDemote(const BlockKey& key, const std::shared_ptr<Moving>& moving);

  const Parts parts_;
  const Options options_;
  const OnEvent on_event_;
  const std::unique_ptr<EvictionPolicy> disk_policy_;  // Null without a disk.
  absl::flat_hash_map<BlockKey, Below> on_disk_;
  absl::flat_hash_map<BlockKey, Below> in_remote_;
  std::deque<BlockKey> remote_order_;  // Of those, as they came to be known.
  std::deque<BlockKey> demoting_;      // From disk.
  absl::flat_hash_map<BlockKey, Promotion> promotions_;
  absl::btree_set<Name> names_;            // Of all that is in any tier.
  absl::flat_hash_set<BlockKey> leaving_;  // Host memory lets go of them once they are below.
  absl::flat_hash_set<BlockKey> pinned_;
  absl::btree_map<std::uint32_t, std::uint64_t> quotas_;  // By tenant.
  absl::flat_hash_set<BlockKey> asked_;
  std::deque<BlockKey> asked_order_;
  std::uint64_t writes_ = 0;
  std::uint64_t moving_bytes_ = 0;
  std::array<TierStats, kTiers> stats_ = {};
  Histogram disk_wait_{LatencyBounds()};
  Histogram remote_wait_{LatencyBounds()};
  transfer::Life life_;
};

}  // namespace penstock::kvstore
