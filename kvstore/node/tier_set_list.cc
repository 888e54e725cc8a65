// SPDX-License-Identifier: Apache-2.0
// What operators ask of a TierSet, and what it tells of itself.
#include <algorithm>
#include <memory>
#include <utility>

#include "base/status.h"
#include "kvstore/node/copy_frame.h"
#include "kvstore/node/tier_guards.h"
#include "kvstore/node/tier_moving.h"
#include "kvstore/node/tier_set.h"

namespace penstock::kvstore {
namespace {

constexpr Duration kVerifyWithin = std::chrono::seconds(10);  // Of a read of one copy.

// Calls `done` with the first error of all parts, when the last of them has ended.
struct Together {
  std::function<void(absl::Status)> done;
  int parts = 0;
  absl::Status status = {};
  void End(const absl::Status& part) {
    status.Update(part);
    if (--parts == 0) done(status);
  }
};

}  // namespace

void TierSet::Delete(const BlockKey& key, std::function<void(absl::Status)> done) {
  const auto together = std::make_shared<Together>(Together{.done = std::move(done), .parts = 1});
  const auto end = [together](const absl::Status& status) { together->End(status); };
  const bool on_disk = on_disk_.contains(key);
  const bool known = on_disk || in_remote_.contains(key) || Where(key).has_value();
  // Not from inside.
  parts_.loop->Post(life_.Guard(
      [end, known] { end(known ? absl::OkStatus() : absl::NotFoundError("no such copy here")); }));
  if (!known) return;
  pinned_.erase(key);
  if (const auto it = promotions_.find(key); it != promotions_.end()) it->second.deleted = true;
  if (on_disk) {
    on_disk_.erase(key);
    std::erase(demoting_, key);
    disk_policy_->Remove(key, parts_.loop->Now());
    ++together->parts;
    parts_.disk->Delete(key, end);
  }
  if (parts_.remote != nullptr) {
    in_remote_.erase(key);
    ++together->parts;
    parts_.remote->Delete(key, end);
  }
  leaving_.erase(key);
  if (parts_.host->Peek(key) != nullptr) parts_.host->Remove(key, parts_.loop->Now());
  Tell(key);
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
  if (bytes.has_value()) {
    quotas_[tenant] = *bytes;
  } else {
    quotas_.erase(tenant);
  }
}

std::vector<TierSet::TenantBytes> TierSet::tenants() const {
  std::vector<TenantBytes> all;
  for (const auto& [tenant, quota] : quotas_) {
    all.push_back({.tenant = tenant,
                   .quota = quota,
                   .host = parts_.host->tenant_bytes(tenant),
                   .disk = disk_policy_ == nullptr ? 0 : disk_policy_->tenant_bytes(tenant)});
  }
  return all;
}

std::uint64_t TierSet::FlushHost(std::uint64_t bytes_max) {
  const std::uint64_t wanted = std::min(bytes_max, parts_.host->stats().bytes);
  std::uint64_t bytes = 0;
  for (const Copy& victim : parts_.host->Evict(wanted, parts_.loop->Now())) {
    bytes += RoundUp(victim.bytes);
    LetGo(victim);
  }
  return bytes;
}

std::vector<TierSet::Listed> TierSet::List() const {
  std::vector<Listed> all = ListFrom({}, std::nullopt, SIZE_MAX);
  std::ranges::sort(all, {}, [](const Listed& listed) { return listed.copy.key; });
  return all;
}

std::vector<TierSet::Listed> TierSet::ListFrom(const CopyName& begin,
                                               const std::optional<BlockKey>& after,
                                               std::size_t most) const {
  auto it = after.has_value() ? names_.upper_bound({NameOf(*after), *after})
                              : names_.lower_bound({begin, BlockKey()});
  std::vector<Listed> listed;
  for (; it != names_.end() && listed.size() < most; ++it) listed.push_back(*Describe(it->second));
  return listed;
}

std::vector<CopyEvent> TierSet::Snapshot() const {
  std::vector<CopyEvent> events = {{.kind = CopyEvent::Kind::kSnapshotBegin}};
  for (const Listed& listed : List()) events.push_back(EventOf(listed));
  events.push_back({.kind = CopyEvent::Kind::kSnapshotEnd});
  return events;
}

void TierSet::Verify(const BlockKey& key, VerifiedDone done) {
  absl::Status in_host = absl::NotFoundError("neither in host memory nor on disk");
  std::uint64_t bytes = 0;
  if (const Copy* const copy = parts_.host->Peek(key); copy != nullptr) {
    bytes = copy->bytes;
    in_host =
        ParseFrameOfCopy(key, parts_.host->Bytes(*parts_.host->PlaceOf(key), copy->bytes), secret())
            .status();
    if (!in_host.ok()) {
      in_host = absl::DataLossError(in_host.message());
      ++Stats(Tier::kHost).damaged;
      RemoveFromHost(key);
    }
  }
  const Below* const on_disk = OnDisk(key);
  if (on_disk == nullptr) return done(in_host, bytes);
  const std::uint32_t disk_bytes = on_disk->copy.bytes;
  const absl::StatusOr<std::shared_ptr<Moving>> moving = Move(RoundUp(disk_bytes));
  if (!moving.ok()) return done(moving.status(), bytes);
  // Told once, by one of the two.
  auto on_read = [this, watch = life_.watch(), moving = *moving, key, bytes, in_host,
                  done = std::move(done), codec = on_disk->copy.codec,
                  begun = parts_.loop->Now()](const absl::StatusOr<std::uint32_t>& read) {
    if (watch.over()) return;
    TraceRead(SpanName::kDiskRead, Tier::kDisk, codec, begun, read);
    absl::Status status = read.status();
    if (read.ok()) {
      status = ParseFrameOfCopy(key, moving->bytes().first(*read), secret()).status();
      if (!status.ok()) status = absl::DataLossError(status.message());
    }
    // Deleted, or dropped to make room, meanwhile: nobody's fault.
    if (absl::IsNotFound(status)) status = absl::OkStatus();
    if (absl::IsDataLoss(status) && OnDisk(key) != nullptr) {
      ++Stats(Tier::kDisk).damaged;
      parts_.disk->Drop(key);
      ForgetOnDisk(key);
    }
    if (absl::IsDataLoss(in_host)) status = in_host;
    done(status, bytes + (read.ok() ? *read : 0));
  };
  const auto turn = std::make_shared<transfer::LinkTurns::Turn>();  // Shared with the read's end.
  const auto read = [this, turn, key, moving = *moving, on_read] {
    parts_.disk->Get(key, {.bytes = moving->bytes(), .owner = moving},
                     parts_.loop->Now() + kVerifyWithin,
                     [turn, on_read](const absl::StatusOr<std::uint32_t>& ended) {
                       turn->End();
                       on_read(ended);
                     });
  };
  // It waits with the tiers' own: `turn` is in its own callback until that is called.
  *turn = parts_.turns->Ask("disk", transfer::MoveClass::kPromotion, RoundUp(disk_bytes),
                            parts_.loop->Now() + kVerifyWithin,
                            [watch = life_.watch(), read, on_read](const absl::Status& status) {
                              if (watch.over()) return;
                              if (!status.ok()) return on_read(status);
                              read();
                            });
  if (turn->begun()) read();
}

}  // namespace penstock::kvstore
