// SPDX-License-Identifier: Apache-2.0
#include "kvstore/eviction.h"

#include <algorithm>
#include <array>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/check.h"
#include "base/status.h"
#include "kvstore/eviction_density.h"
#include "kvstore/eviction_hybrid.h"
#include "kvstore/eviction_lru.h"
#include "kvstore/eviction_s3_fifo.h"

namespace penstock::kvstore {

void EvictionPolicy::Ask(const AskedChain& asked, MonoTime now) {
  ++asks_;
  OnAsk(asked, Forward(now));
}

bool EvictionPolicy::Use(const BlockKey& key, MonoTime now) {
  const Slot slot = FindSlot(key);
  if (slot == kNoSlot) return false;
  Unlink(slot);
  Link(slot);
  OnUse(slot, Forward(now));
  return true;
}

void EvictionPolicy::Put(const EvictionBlock& block, MonoTime now) {
  if (Use(block.key, now)) return;
  Slot slot = static_cast<Slot>(held_.size());
  if (free_.empty()) {
    CHECK(held_.size() < kNoSlot);
    held_.emplace_back();
  } else {
    slot = free_.back();
    free_.pop_back();
  }
  Held& held = held_[slot] = Held{.block = block};
  slots_.emplace(block.key, slot);
  if (const auto orphans = orphans_.find(block.key); orphans != orphans_.end()) {
    held.children = orphans->second;
    orphans_.erase(orphans);
  }
  if (block.parent) {
    const Slot parent = FindSlot(*block.parent);
    ++(parent == kNoSlot ? orphans_[*block.parent] : held_[parent].children);
  }
  held_bytes_ += block.bytes;
  tenants_[block.tenant].bytes += block.bytes;
  Link(slot);
  OnPut(slot, Forward(now));
}

void EvictionPolicy::Remove(const BlockKey& key, MonoTime now) {
  const Slot slot = FindSlot(key);
  if (slot != kNoSlot) RemoveSlot(slot, /*evicted=*/false, Forward(now));
}

void EvictionPolicy::RemoveSlot(Slot slot, bool evicted, MonoTime now) {
  OnRemove(slot, evicted, now);
  const Held& held = held_[slot];
  Unlink(slot);
  held_bytes_ -= held.block.bytes;
  Tenant& tenant = tenants_[held.block.tenant];
  tenant.bytes -= held.block.bytes;
  if (tenant.bytes == 0 && !tenant.quota) tenants_.erase(held.block.tenant);
  slots_.erase(held.block.key);
  if (held.children > 0) orphans_[held.block.key] = held.children;
  const std::optional<BlockKey> parent = held.block.parent;
  free_.push_back(slot);
  if (!parent) return;
  if (const Slot above = FindSlot(*parent); above != kNoSlot) {
    if (--held_[above].children == 0) OnLeaf(above);
  } else if (const auto orphans = orphans_.find(*parent);
             orphans != orphans_.end() && --orphans->second == 0) {
    orphans_.erase(orphans);
  }
}

bool EvictionPolicy::Pin(const BlockKey& key) {
  const Slot slot = FindSlot(key);
  if (slot == kNoSlot) return false;
  if (!held_[slot].pinned) {
    OnPin(slot);
    held_[slot].pinned = true;
  }
  return true;
}

bool EvictionPolicy::Unpin(const BlockKey& key, MonoTime now) {
  const Slot slot = FindSlot(key);
  if (slot == kNoSlot) return false;
  if (held_[slot].pinned) {
    held_[slot].pinned = false;
    OnUnpin(slot, Forward(now));
  }
  return true;
}

void EvictionPolicy::SetQuota(std::uint32_t tenant, std::optional<std::uint64_t> bytes) {
  Tenant& entry = tenants_[tenant];
  entry.quota = bytes;
  std::erase(limited_, tenant);
  if (bytes) {
    limited_.insert(std::ranges::lower_bound(limited_, tenant), tenant);
  } else if (entry.bytes == 0) {
    tenants_.erase(tenant);
  }
}

std::uint64_t EvictionPolicy::Evict(std::uint64_t bytes, MonoTime now,
                                    std::vector<BlockKey>& victims) {
  now = Forward(now);
  std::uint64_t freed = 0;
  while (freed < bytes) {
    Slot slot = QuotaVictim();
    if (slot == kNoSlot) slot = Victim(now);
    if (slot == kNoSlot) break;
    CHECK(!held_[slot].pinned);
    freed += held_[slot].block.bytes;
    victims.push_back(held_[slot].block.key);
    RemoveSlot(slot, /*evicted=*/true, now);
  }
  return freed;
}

std::uint64_t EvictionPolicy::tenant_bytes(std::uint32_t tenant) const {
  const auto found = tenants_.find(tenant);
  return found == tenants_.end() ? 0 : found->second.bytes;
}

EvictionPolicy::Slot EvictionPolicy::FindSlot(const BlockKey& key) const {
  const auto found = slots_.find(key);
  return found == slots_.end() ? kNoSlot : found->second;
}

// A chain is used head first, so the oldest blocks of a tenant are heads; their tails follow closely.
EvictionPolicy::Slot EvictionPolicy::QuotaVictim() const {
  for (const std::uint32_t name : limited_) {
    const Tenant& tenant = tenants_.at(name);
    if (tenant.bytes <= *tenant.quota) continue;
    Slot any = kNoSlot;
    for (Slot slot = tenant.oldest; slot != kNoSlot; slot = held_[slot].newer) {
      if (IsFreeLeaf(slot)) return slot;
      if (any == kNoSlot && !held_[slot].pinned) any = slot;
    }
    if (any != kNoSlot) return any;
  }
  return kNoSlot;
}

void EvictionPolicy::Link(Slot slot) {
  Held& held = held_[slot];
  Tenant& tenant = tenants_[held.block.tenant];
  held.older = tenant.newest;
  held.newer = kNoSlot;
  (tenant.newest == kNoSlot ? tenant.oldest : held_[tenant.newest].newer) = slot;
  tenant.newest = slot;
}

void EvictionPolicy::Unlink(Slot slot) {
  const Held& held = held_[slot];
  Tenant& tenant = tenants_[held.block.tenant];
  (held.older == kNoSlot ? tenant.oldest : held_[held.older].newer) = held.newer;
  (held.newer == kNoSlot ? tenant.newest : held_[held.newer].older) = held.older;
}

namespace {

using Make = std::unique_ptr<EvictionPolicy> (*)(const EvictionPolicy::Options&);

template <typename Policy>
std::unique_ptr<EvictionPolicy> New(const EvictionPolicy::Options& options) {
  return std::make_unique<Policy>(options);
}

constexpr std::array<std::string_view, 4> kNames = {"lru", "s3-fifo", "hybrid", "reuse-density"};
constexpr std::array<Make, 4> kMakers = {New<LruPolicy>, New<S3FifoPolicy>, New<HybridPolicy>,
                                         New<ReuseDensityPolicy>};

}  // namespace

std::span<const std::string_view> EvictionPolicyNames() { return kNames; }

absl::StatusOr<std::unique_ptr<EvictionPolicy>> MakeEvictionPolicy(
    std::string_view name, const EvictionPolicy::Options& options) {
  if (options.capacity_bytes == 0) {
    return absl::InvalidArgumentError("capacity_bytes must be above 0");
  }
  const auto found = std::ranges::find(kNames, name);
  if (found == kNames.end()) {
    const std::string names =
        absl::StrJoin(kNames, ", ", [](std::string* out, std::string_view n) { out->append(n); });
    return absl::InvalidArgumentError(
        absl::StrCat("policy must be one of ", names, ", got '", ToAbsl(name.substr(0, 64)), "'"));
  }
  return kMakers[static_cast<std::size_t>(found - kNames.begin())](options);
}

}  // namespace penstock::kvstore
