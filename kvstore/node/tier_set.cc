// SPDX-License-Identifier: Apache-2.0
#include "kvstore/node/tier_set.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "kernels/crc32c.h"

namespace penstock::kvstore {
namespace {

constexpr double kNewest = 0.1;  // Its weight in a moving mean.
constexpr std::uint32_t kPage = HostTier::kPageBytes;
// Of a disk's read of one copy: late ones still fill host memory, for the next who asks.
constexpr Duration kReadWithin = std::chrono::seconds(10);

std::uint32_t RoundUp(std::uint32_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

// Drops a hold once nobody uses the bytes any more. What the disk has may outlive the tiers.
class HoldGuard {
 public:
  HoldGuard(transfer::Life::Watch life, HostTier& host, const BlockKey& key, Loop& loop)
      : life_(std::move(life)), host_(host), hold_(host.HoldCopy(key)), loop_(loop) {}
  ~HoldGuard() {
    if (!life_.over()) host_.DropHold(hold_, loop_.Now());
  }
  HoldGuard(const HoldGuard&) = delete;
  HoldGuard& operator=(const HoldGuard&) = delete;

 private:
  const transfer::Life::Watch life_;
  HostTier& host_;
  const HostTier::Hold hold_;
  Loop& loop_;
};

// Gives reserved room back once nobody writes there any more, unless it was published.
class RoomGuard {
 public:
  RoomGuard(transfer::Life::Watch life, HostTier& host, const BlockKey& key)
      : life_(std::move(life)), host_(host), key_(key) {}
  ~RoomGuard() {
    if (!life_.over() && !published_) host_.Cancel(key_);
  }
  RoomGuard(const RoomGuard&) = delete;
  RoomGuard& operator=(const RoomGuard&) = delete;
  void Published() { published_ = true; }

 private:
  const transfer::Life::Watch life_;
  HostTier& host_;
  const BlockKey key_;
  bool published_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<TierSet>> TierSet::Make(const Parts& parts, const Options& options,
                                                       OnEvent on_event) {
  CHECK(parts.loop != nullptr && parts.host != nullptr);
  std::unique_ptr<EvictionPolicy> policy;
  if (parts.disk != nullptr) {
    ASSIGN_OR_RETURN(policy,
                     MakeEvictionPolicy(options.disk_policy,
                                        {.capacity_bytes = parts.disk->stats().bytes_live_max,
                                         .block_tokens = options.block_tokens}));
  }
  return std::unique_ptr<TierSet>(
      new TierSet(parts, options, std::move(policy), std::move(on_event)));
}

TierSet::TierSet(const Parts& parts, const Options& options,
                 std::unique_ptr<EvictionPolicy> disk_policy, OnEvent on_event)
    : parts_(parts),
      options_(options),
      on_event_(std::move(on_event)),
      disk_policy_(std::move(disk_policy)) {
  if (parts_.disk == nullptr) return;
  for (const DiskTier::Block& block : parts_.disk->List()) {
    // What else is known of it is in its frame, and is read with it.
    const Copy copy = {.key = block.key, .bytes = block.bytes};
    on_disk_[block.key] = {.copy = copy, .written = true};
    disk_policy_->Put({.key = block.key, .bytes = RoundUp(block.bytes)}, parts_.loop->Now());
  }
}

TierSet::~TierSet() {
  for (auto& [key, promotion] : promotions_) {
    for (auto& [timer, done] : promotion.waiting) parts_.loop->CancelTimer(timer);
  }
}

// ---- Putting.

bool TierSet::Wants(const BlockKey& key) {
  if (Where(key).has_value()) return false;
  if (!options_.second_use || asked_.contains(key)) return true;
  Remember(key);
  return false;
}

void TierSet::Remember(const BlockKey& key) {
  if (!options_.second_use || !asked_.insert(key).second) return;
  asked_order_.push_back(key);
  if (asked_order_.size() <= options_.asked_max) return;
  asked_.erase(asked_order_.front());
  asked_order_.pop_front();
}

absl::StatusOr<HostTier::Place> TierSet::ReserveHost(const Copy& copy) {
  const MonoTime now = parts_.loop->Now();
  absl::StatusOr<HostTier::Place> place = parts_.host->Reserve(copy, now);
  // Twice: what was let go may lie apart.
  for (int tries = 0; tries < 2 && absl::IsResourceExhausted(place.status()); ++tries) {
    for (const Copy& victim : parts_.host->Evict(RoundUp(copy.bytes), now)) LetGo(victim);
    place = parts_.host->Reserve(copy, now);
  }
  if (absl::IsResourceExhausted(place.status())) ++Stats(Tier::kHost).refused;
  return place;
}

absl::StatusOr<std::span<std::byte>> TierSet::BeginPut(const Copy& copy) {
  ASSIGN_OR_RETURN(const HostTier::Place place, ReserveHost(copy));
  return parts_.host->Bytes(place, copy.bytes);
}

void TierSet::EndPut(const BlockKey& key, const absl::Status& status) {
  if (!status.ok()) return parts_.host->Cancel(key);
  parts_.host->Publish(key, 0, parts_.loop->Now());
  if (options_.disk_through) WriteToDisk(*parts_.host->Peek(key));
  Tell(key);
  KeepFree();
}

// Ahead of need: a copy that must go to disk first leaves its room some milliseconds later.
void TierSet::KeepFree() {
  const HostTier::Stats stats = parts_.host->stats();
  const auto most =
      static_cast<std::uint64_t>(static_cast<double>(stats.bytes_max) * (1 - options_.free_share));
  if (stats.bytes <= most) return;
  for (const Copy& victim : parts_.host->Evict(stats.bytes - most, parts_.loop->Now())) {
    LetGo(victim);
  }
}

// A victim of host memory.
void TierSet::LetGo(const Copy& copy) {
  ++Stats(Tier::kHost).evicted;
  const auto it = on_disk_.find(copy.key);
  if (it != on_disk_.end() ? it->second.written : !WriteToDisk(copy)) {
    return RemoveFromHost(copy.key);
  }
  leaving_.insert(copy.key);
}

void TierSet::RemoveFromHost(const BlockKey& key) {
  leaving_.erase(key);
  if (parts_.host->Peek(key) == nullptr) return;
  parts_.host->Remove(key, parts_.loop->Now());
  Tell(key);
}

bool TierSet::WriteToDisk(const Copy& copy) {
  if (parts_.disk == nullptr) return false;
  if (on_disk_.contains(copy.key)) return true;
  if (!MakeDiskRoom(RoundUp(copy.bytes))) {
    ++Stats(Tier::kDisk).refused;
    return false;
  }
  const std::optional<HostTier::Place> place = parts_.host->PlaceOf(copy.key);
  CHECK(place.has_value());
  const std::span<std::byte> bytes = parts_.host->Bytes(*place, RoundUp(copy.bytes));
  const std::uint32_t crc = kernels::Crc32c(0, bytes.data(), copy.bytes);
  on_disk_[copy.key] = {.copy = copy, .written = false};
  parts_.disk->Put(
      copy.key,
      {.bytes = bytes,
       .owner = std::make_shared<HoldGuard>(life_.watch(), *parts_.host, copy.key, *parts_.loop)},
      copy.bytes, crc, [this, watch = life_.watch(), key = copy.key](const absl::Status& status) {
        if (!watch.over()) OnWritten(key, status);
      });
  return true;
}

void TierSet::OnWritten(const BlockKey& key, const absl::Status& status) {
  const auto it = on_disk_.find(key);
  if (it == on_disk_.end()) return;  // Deleted meanwhile.
  if (status.ok()) {
    it->second.written = true;
    const Copy& copy = it->second.copy;
    disk_policy_->Put({.key = key,
                       .parent = copy.parent,
                       .bytes = RoundUp(copy.bytes),
                       .tenant = copy.tenant,
                       .tokens_before = copy.tokens_before},
                      parts_.loop->Now());
    if (pinned_.contains(key)) disk_policy_->Pin(key);
  } else {
    ++Stats(Tier::kDisk).refused;
    on_disk_.erase(it);
  }
  if (leaving_.contains(key)) RemoveFromHost(key);
}

bool TierSet::MakeDiskRoom(std::uint64_t bytes) {
  const DiskTier::Stats stats = parts_.disk->stats();
  // Each takes a sector beside its payload, and what is being written counts soon.
  const std::uint64_t wanted = stats.bytes_live + bytes + kPage;
  if (wanted <= stats.bytes_live_max) return true;
  std::vector<BlockKey> victims;
  const std::uint64_t freed =
      disk_policy_->Evict(wanted - stats.bytes_live_max, parts_.loop->Now(), victims);
  for (const BlockKey& key : victims) {
    ++Stats(Tier::kDisk).evicted;
    parts_.disk->Drop(key);
    on_disk_.erase(key);
    Tell(key);
  }
  return freed >= wanted - stats.bytes_live_max;
}

void TierSet::ForgetOnDisk(const BlockKey& key) {
  on_disk_.erase(key);
  disk_policy_->Remove(key, parts_.loop->Now());
  Tell(key);
}

// ---- Getting.

std::optional<Tier> TierSet::Where(const BlockKey& key) const {
  if (parts_.host->Peek(key) != nullptr) return Tier::kHost;
  const auto it = on_disk_.find(key);
  if (it != on_disk_.end() && it->second.written) return Tier::kDisk;
  return std::nullopt;
}

void TierSet::Asked(std::span<const BlockKey> chain) {
  const MonoTime now = parts_.loop->Now();
  parts_.host->Ask(chain, now);
  if (disk_policy_ != nullptr) disk_policy_->Ask({.chain = chain}, now);
  for (const BlockKey& key : chain) {
    if (!Where(key).has_value()) Remember(key);
  }
}

void TierSet::Get(const BlockKey& key, MonoTime deadline, GotDone done) {
  if (const auto found = parts_.host->Find(key, parts_.loop->Now()); found.has_value()) {
    TierStats& stats = Stats(Tier::kHost);
    ++stats.hits;
    stats.bytes_hit += found->copy.bytes;
    return done(Got{.found = *found, .from = Tier::kHost, .waited = {}});
  }
  const auto it = on_disk_.find(key);
  if (it != on_disk_.end() && it->second.written) return Promote(key, deadline, std::move(done));
  ++Stats(parts_.disk != nullptr ? Tier::kDisk : Tier::kHost).misses;
  done(absl::NotFoundError("no such copy here"));
}

void TierSet::Promote(const BlockKey& key, MonoTime deadline, GotDone done) {
  auto it = promotions_.find(key);
  if (it == promotions_.end()) {
    if (promotions_.size() >= options_.promotions_max) {
      return done(absl::ResourceExhaustedError(
          absl::StrCat(promotions_.size(), " copies are being read from disk, promotions_max is ",
                       options_.promotions_max)));
    }
    const Copy copy = on_disk_.at(key).copy;
    const absl::StatusOr<HostTier::Place> place = ReserveHost(copy);
    if (!place.ok()) return done(place.status());
    it = promotions_.try_emplace(key).first;
    it->second.begun = parts_.loop->Now();
    disk_policy_->Use(key, it->second.begun);
    auto room = std::make_shared<RoomGuard>(life_.watch(), *parts_.host, key);
    const std::span<std::byte> bytes = parts_.host->Bytes(*place, RoundUp(copy.bytes));
    parts_.disk->Get(
        key, {.bytes = bytes, .owner = room}, it->second.begun + kReadWithin,
        [this, watch = life_.watch(), key, room](const absl::StatusOr<std::uint32_t>& read) {
          if (watch.over()) return;
          if (read.ok()) room->Published();
          OnPromoted(key, read);
        });
  }
  const Loop::TimerId timer = parts_.loop->At(deadline, [this, key, n = it->second.waiting.size()] {
    const auto late = promotions_.find(key);
    if (late == promotions_.end() || n >= late->second.waiting.size()) return;
    ++Stats(Tier::kDisk).late;
    if (GotDone told = std::exchange(late->second.waiting[n].second, nullptr)) {
      told(absl::DeadlineExceededError("the disk was too slow"));
    }
  });
  it->second.waiting.emplace_back(timer, std::move(done));
}

void TierSet::OnPromoted(const BlockKey& key, const absl::StatusOr<std::uint32_t>& read) {
  const auto it = promotions_.find(key);
  CHECK(it != promotions_.end());
  Promotion promotion = std::move(it->second);
  promotions_.erase(it);
  const Duration waited = parts_.loop->Now() - promotion.begun;
  TierStats& stats = Stats(Tier::kDisk);
  if (read.ok()) {
    parts_.host->Publish(key, 0, parts_.loop->Now());
    if (pinned_.contains(key)) parts_.host->Pin(key);
    disk_wait_.Observe(ToSeconds(waited));
    const double rate = static_cast<double>(*read) / std::max(1e-9, ToSeconds(waited));
    stats.bytes_per_s =
        stats.bytes_per_s == 0 ? rate : stats.bytes_per_s + kNewest * (rate - stats.bytes_per_s);
    Tell(key);
  } else if (absl::IsDataLoss(read.status()) || absl::IsNotFound(read.status())) {
    if (absl::IsDataLoss(read.status())) ++stats.damaged;
    if (on_disk_.contains(key)) ForgetOnDisk(key);
  }
  const transfer::Life::Watch watch = life_.watch();
  for (auto& [timer, done] : promotion.waiting) {
    parts_.loop->CancelTimer(timer);
    if (done == nullptr) continue;
    if (!read.ok()) {
      done(read.status());
    } else if (const auto found = parts_.host->Find(key, parts_.loop->Now()); found.has_value()) {
      ++stats.hits;
      stats.bytes_hit += found->copy.bytes;
      done(Got{.found = *found, .from = Tier::kDisk, .waited = waited});
    } else {
      done(absl::NotFoundError("it was let go of meanwhile"));
    }
    if (watch.over()) return;
  }
  KeepFree();
}

// ---- For operators.

void TierSet::Delete(const BlockKey& key, std::function<void(absl::Status)> done) {
  if (!Where(key).has_value()) {
    return parts_.loop->Post(
        [done = std::move(done)] { done(absl::NotFoundError("no such copy here")); });
  }
  pinned_.erase(key);
  const bool on_disk = on_disk_.erase(key) != 0;
  RemoveFromHost(key);
  if (!on_disk) {
    return parts_.loop->Post([done = std::move(done)] { done(absl::OkStatus()); });
  }
  disk_policy_->Remove(key, parts_.loop->Now());
  Tell(key);
  parts_.disk->Delete(key, std::move(done));
}

bool TierSet::Pin(const BlockKey& key) {
  if (!Where(key).has_value()) return false;
  pinned_.insert(key);
  parts_.host->Pin(key);
  if (disk_policy_ != nullptr) disk_policy_->Pin(key);
  return true;
}

bool TierSet::Unpin(const BlockKey& key) {
  if (pinned_.erase(key) == 0) return false;
  parts_.host->Unpin(key, parts_.loop->Now());
  if (disk_policy_ != nullptr) disk_policy_->Unpin(key, parts_.loop->Now());
  return true;
}

void TierSet::SetQuota(std::uint32_t tenant, std::optional<std::uint64_t> bytes) {
  parts_.host->SetQuota(tenant, bytes);
  if (disk_policy_ != nullptr) disk_policy_->SetQuota(tenant, bytes);
}

void TierSet::FlushHost() {
  const std::uint64_t all = parts_.host->stats().bytes;
  for (const Copy& victim : parts_.host->Evict(all, parts_.loop->Now())) LetGo(victim);
}

std::vector<TierSet::Listed> TierSet::List() const {
  std::vector<Listed> all;
  for (const Copy& copy : parts_.host->List()) {
    const auto it = on_disk_.find(copy.key);
    all.push_back({.copy = copy,
                   .host = true,
                   .disk = it != on_disk_.end() && it->second.written,
                   .pinned = pinned_.contains(copy.key)});
  }
  for (const auto& [key, on_disk] : on_disk_) {
    if (!on_disk.written || parts_.host->Peek(key) != nullptr) continue;
    all.push_back({.copy = on_disk.copy, .disk = true, .pinned = pinned_.contains(key)});
  }
  std::ranges::sort(all, {}, [](const Listed& listed) { return listed.copy.key; });
  return all;
}

std::vector<CopyEvent> TierSet::Snapshot() const {
  std::vector<CopyEvent> events = {{.kind = CopyEvent::Kind::kSnapshotBegin}};
  for (const Listed& listed : List()) {
    events.push_back(EventOf(listed.copy, listed.host ? Tier::kHost : Tier::kDisk));
  }
  events.push_back({.kind = CopyEvent::Kind::kSnapshotEnd});
  return events;
}

CopyEvent TierSet::EventOf(const Copy& copy, Tier tier) {
  CopyEvent event = {.kind = CopyEvent::Kind::kStored,
                     .name = NameOf(copy.key),
                     .tier = tier,
                     .codec = copy.codec,
                     .bytes = copy.bytes};
  if (copy.parent.has_value()) event.parent = NameOf(*copy.parent);
  return event;
}

// Where it lies now.
void TierSet::Tell(const BlockKey& key) {
  if (const Copy* const copy = parts_.host->Peek(key); copy != nullptr) {
    return on_event_(EventOf(*copy, Tier::kHost));
  }
  const auto it = on_disk_.find(key);
  if (it != on_disk_.end() && it->second.written) {
    return on_event_(EventOf(it->second.copy, Tier::kDisk));
  }
  pinned_.erase(key);
  on_event_({.kind = CopyEvent::Kind::kRemoved, .name = NameOf(key)});
}

}  // namespace penstock::kvstore
