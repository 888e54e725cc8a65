// SPDX-License-Identifier: Apache-2.0
#include "kvstore/node/tier_set.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/status.h"
#include "kvstore/node/tier_guards.h"

namespace penstock::kvstore {

absl::StatusOr<std::unique_ptr<TierSet>> TierSet::Make(const Parts& parts, const Options& options,
                                                       OnEvent on_event) {
  CHECK(parts.loop != nullptr && parts.host != nullptr && parts.turns != nullptr);
  if (parts.remote != nullptr && options.secret.empty()) {
    return absl::InvalidArgumentError(
        "a remote tier needs the cluster's secret: whoever can write there could pass off frames "
        "as "
        "ours");
  }
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
  for (const auto& [tenant, bytes] : options_.quotas) SetQuota(tenant, bytes);
  if (parts_.disk == nullptr) return;
  for (const DiskTier::Block& block : parts_.disk->List()) {
    // What else there is to know of it is in its frame, and is read with it (Recognize).
    const Copy copy = {.key = block.key, .bytes = block.bytes, .tenant = block.tenant};
    on_disk_[block.key] = {.copy = copy, .written = true};
    names_.emplace(NameOf(block.key), block.key);
    disk_policy_->Put({.key = block.key, .bytes = RoundUp(block.bytes), .tenant = block.tenant},
                      parts_.loop->Now());
  }
}

TierSet::~TierSet() {
  for (auto& [key, promotion] : promotions_) {
    for (auto& [timer, done] : promotion.waiting) parts_.loop->CancelTimer(timer);
  }
}

// ---- Putting.

bool TierSet::Wants(const BlockKey& key) {
  // What the remote tier alone has is worth having nearer, and its server may have let go of it.
  if (Where(key).value_or(Tier::kRemote) != Tier::kRemote) return false;
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
  parts_.host->Publish(key, parts_.loop->Now());
  const Copy copy = *parts_.host->Peek(key);
  if (options_.disk_through) WriteToDisk(copy);
  if (options_.remote_through && InRemote(key) == nullptr) WriteToRemote(copy, HostFrame(copy));
  if (pinned_.contains(key)) parts_.host->Pin(key);
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
  const bool below = OnDisk(copy.key) != nullptr;
  if (!below && (WriteToDisk(copy) ||
                 (InRemote(copy.key) == nullptr && WriteToRemote(copy, HostFrame(copy))))) {
    leaving_.insert(copy.key);
  } else {
    RemoveFromHost(copy.key);
  }
}

void TierSet::RemoveFromHost(const BlockKey& key) {
  leaving_.erase(key);
  if (parts_.host->Peek(key) == nullptr) return;
  parts_.host->Remove(key, parts_.loop->Now());
  Tell(key);
}

// ---- Where copies lie.

const TierSet::Below* TierSet::OnDisk(const BlockKey& key) const {
  const auto it = on_disk_.find(key);
  return it != on_disk_.end() && it->second.written ? &it->second : nullptr;
}

const TierSet::Below* TierSet::InRemote(const BlockKey& key) const {
  const auto it = in_remote_.find(key);
  return it != in_remote_.end() && it->second.written ? &it->second : nullptr;
}

Tier TierSet::slowest() const {
  if (parts_.remote != nullptr) return Tier::kRemote;
  return parts_.disk != nullptr ? Tier::kDisk : Tier::kHost;
}

std::optional<Tier> TierSet::Where(const BlockKey& key) const {
  if (parts_.host->Peek(key) != nullptr) return Tier::kHost;
  if (OnDisk(key) != nullptr) return Tier::kDisk;
  if (InRemote(key) != nullptr) return Tier::kRemote;
  return std::nullopt;
}

std::optional<TierSet::Listed> TierSet::Describe(const BlockKey& key) const {
  const Copy* const in_host = parts_.host->Peek(key);
  const Below* const on_disk = OnDisk(key);
  const Below* const in_remote = InRemote(key);
  if (in_host == nullptr && on_disk == nullptr && in_remote == nullptr) return std::nullopt;
  return Listed{.copy = in_host != nullptr   ? *in_host
                        : on_disk != nullptr ? on_disk->copy
                                             : in_remote->copy,
                .host = in_host != nullptr,
                .disk = on_disk != nullptr,
                .remote = in_remote != nullptr,
                .pinned = pinned_.contains(key)};
}

// Where it lies now.
void TierSet::Tell(const BlockKey& key) {
  if (const std::optional<Listed> listed = Describe(key); listed.has_value()) {
    names_.emplace(NameOf(key), key);
    return on_event_(EventOf(*listed));
  }
  pinned_.erase(key);
  if (names_.erase({NameOf(key), key}) == 0) return;
  on_event_({.kind = CopyEvent::Kind::kRemoved, .name = NameOf(key)});
}

CopyEvent TierSet::EventOf(const Listed& listed) {
  const Copy& copy = listed.copy;
  CopyEvent event = {.kind = CopyEvent::Kind::kStored,
                     .name = NameOf(copy.key),
                     .tier = listed.host   ? Tier::kHost
                             : listed.disk ? Tier::kDisk
                                           : Tier::kRemote,
                     .codec = copy.codec,
                     .bytes = copy.bytes};
  if (copy.parent.has_value()) event.parent = NameOf(*copy.parent);
  return event;
}

}  // namespace penstock::kvstore
