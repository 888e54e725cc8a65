// SPDX-License-Identifier: Apache-2.0
// The remote tier of a TierSet: what is put there, on its way down, and what is believed of it.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status.h"
#include "kvstore/node/copy_frame.h"
#include "kvstore/node/tier_guards.h"
#include "kvstore/node/tier_moving.h"
#include "kvstore/node/tier_set.h"

namespace penstock::kvstore {

using transfer::MoveClass;

namespace {

constexpr std::size_t kDemotionsMax = 8;
constexpr Duration kDemoteWithin = std::chrono::seconds(10);

}  // namespace

absl::StatusOr<std::shared_ptr<TierSet::Moving>> TierSet::Move(std::uint32_t bytes) {
  // One alone may be larger.
  const std::size_t whole = std::max(RoundUp(bytes), RoundUp(1));
  if (moving_bytes_ > 0 && moving_bytes_ + whole > options_.moving_bytes_max) {
    return absl::ResourceExhaustedError(
        absl::StrCat(moving_bytes_, " bytes are on their way between tiers, ", whole,
                     " more are too many: moving_bytes_max is ", options_.moving_bytes_max));
  }
  void* const memory = std::aligned_alloc(HostTier::kPageBytes, whole);
  if (memory == nullptr) {
    return absl::ResourceExhaustedError(absl::StrCat("no memory for a frame of ", whole));
  }
  return std::make_shared<Moving>(*this, static_cast<std::byte*>(memory), whole);
}

// ---- Putting there.

RemoteBytes TierSet::HostFrame(const Copy& copy) {
  if (parts_.remote == nullptr) return {};
  return {
      .bytes = parts_.host->Bytes(*parts_.host->PlaceOf(copy.key), copy.bytes),
      .owner = std::make_shared<HoldGuard>(life_.watch(), *parts_.host, copy.key, *parts_.loop)};
}

bool TierSet::WriteToRemote(const Copy& copy, RemoteBytes frame) {
  if (parts_.remote == nullptr) return false;
  if (in_remote_.contains(copy.key)) return true;
  const std::uint64_t write = ++writes_;
  Below& below = in_remote_[copy.key];
  below = {.copy = copy, .written = false, .write = write};
  below.turn = parts_.turns->Ask("remote", MoveClass::kWriteBack, copy.bytes,
                                 parts_.loop->Now() + kTurnWithin,
                                 [this, key = copy.key, write, frame](const absl::Status& status) {
                                   if (!status.ok()) return OnWrittenRemotely(key, write, status);
                                   PutInRemote(key, frame);
                                 });
  if (below.turn.begun()) PutInRemote(copy.key, std::move(frame));
  return true;
}

void TierSet::PutInRemote(const BlockKey& key, RemoteBytes frame) {
  parts_.remote->Put(key, std::move(frame),
                     [this, watch = life_.watch(), key,
                      write = in_remote_.at(key).write](const absl::Status& status) {
                       if (!watch.over()) OnWrittenRemotely(key, write, status);
                     });
}

void TierSet::OnWrittenRemotely(const BlockKey& key, std::uint64_t write,
                                const absl::Status& status) {
  const auto it = in_remote_.find(key);
  if (it == in_remote_.end() || it->second.write != write) return;  // Deleted meanwhile.
  const Copy copy = it->second.copy;
  in_remote_.erase(it);
  if (status.ok()) {
    RememberRemote(copy);
  } else {
    ++Stats(Tier::kRemote).refused;
  }
  // Unless it is on its way to the disk, too.
  if (leaving_.contains(key) && (!on_disk_.contains(key) || OnDisk(key) != nullptr)) {
    RemoveFromHost(key);
  }
}

void TierSet::RememberRemote(const Copy& copy) {
  const Tier before = Where(copy.key).value_or(Tier::kRemote);
  const bool is_new = InRemote(copy.key) == nullptr;
  in_remote_[copy.key] = {.copy = copy, .written = true, .write = ++writes_};
  if (!is_new) return;
  remote_order_.push_back(copy.key);
  if (before == Tier::kRemote) Tell(copy.key);
  while (remote_order_.size() > options_.remote_known_max) {
    const BlockKey oldest = remote_order_.front();
    remote_order_.pop_front();
    ForgetRemote(oldest);
  }
}

// It is not there, or nobody need know.
void TierSet::ForgetRemote(const BlockKey& key) {
  if (InRemote(key) == nullptr) return;
  in_remote_.erase(key);
  if (!Where(key).has_value()) Tell(key);
}

// ---- Getting from there.

void TierSet::ReadRemote(const BlockKey& key, MonoTime deadline) {
  const auto moving = std::make_shared<std::shared_ptr<Moving>>();
  const transfer::Life::Watch watch = life_.watch();
  parts_.remote->Get(
      key,
      [this, watch, moving](std::uint32_t bytes) -> absl::StatusOr<std::span<std::byte>> {
        if (watch.over()) return absl::CancelledError("the node ends");
        ASSIGN_OR_RETURN(*moving, Move(bytes));
        return (*moving)->bytes();
      },
      deadline,
      [this, watch, moving, key](absl::StatusOr<std::uint32_t> read) {
        if (watch.over()) return;
        if (read.ok()) {
          read = TakeRemote(key, (*moving)->bytes().first(*read));
        } else if (absl::IsUnavailable(read.status()) && InRemote(key) == nullptr) {
          read = absl::NotFoundError("no such copy here, and no remote tier");
        }
        OnPromoted(key, read);
      });
}

// What anybody may have written: nothing of it is seen before all of it was checked.
absl::StatusOr<std::uint32_t> TierSet::TakeRemote(const BlockKey& key,
                                                  std::span<const std::byte> frame) {
  const absl::StatusOr<Frame> parsed = ParseFrameOfCopy(key, frame, secret());
  if (!parsed.ok()) {
    LOG_WARNING("remote tier: no frame of this cluster",
                {{"copy", ToHex(NameOf(key).bytes)}, {"reason", parsed.status().ToString()}});
    return absl::DataLossError(parsed.status().message());
  }
  const auto bytes = static_cast<std::uint32_t>(frame.size());
  if (promotions_.at(key).deleted) return bytes;
  Copy copy = {.key = key,
               .bytes = bytes,
               .tokens_before = static_cast<std::uint32_t>(parsed->header.first_position),
               .codec = static_cast<std::uint8_t>(parsed->header.codec)};
  if (const Below* const known = InRemote(key); known != nullptr) {
    copy.parent = known->copy.parent;
    copy.tenant = known->copy.tenant;
  }
  RememberRemote(copy);
  if (parts_.host->Peek(key) != nullptr) return bytes;  // Somebody put it meanwhile.
  ASSIGN_OR_RETURN(const HostTier::Place place, ReserveHost(copy));
  std::memcpy(parts_.host->Bytes(place, bytes).data(), frame.data(), bytes);
  parts_.host->Publish(key, parts_.loop->Now());
  return bytes;
}

// ---- From disk, ahead of need.

void TierSet::KeepDiskFree() {
  if (parts_.remote == nullptr || parts_.disk == nullptr) return;
  if (!parts_.remote->stats().connected) return;
  while (demoting_.size() < kDemotionsMax && moving_bytes_ < options_.moving_bytes_max / 2) {
    const DiskTier::Stats stats = parts_.disk->stats();
    std::uint64_t live = stats.bytes_live;
    for (const BlockKey& key : demoting_) {
      live -= std::min<std::uint64_t>(live, RoundUp(on_disk_.at(key).copy.bytes));
    }
    const double most = static_cast<double>(stats.bytes_live_max) * (1 - options_.free_share);
    if (static_cast<double>(live) <= most) return;
    std::vector<BlockKey> victims;
    disk_policy_->Evict(1, parts_.loop->Now(), victims);
    if (victims.empty()) return;
    for (const BlockKey& key : victims) {
      if (!Demote(key)) DropFromDisk(key);
    }
  }
}

// False: there is nothing to move, or no way to.
bool TierSet::Demote(const BlockKey& key) {
  if (InRemote(key) != nullptr || parts_.host->Peek(key) != nullptr) return false;
  Below& below = on_disk_.at(key);
  const absl::StatusOr<std::shared_ptr<Moving>> moving = Move(RoundUp(below.copy.bytes));
  if (!moving.ok()) return false;
  demoting_.push_back(key);
  below.turn = parts_.turns->Ask("disk", MoveClass::kWriteBack, RoundUp(below.copy.bytes),
                                 parts_.loop->Now() + kTurnWithin,
                                 [this, key, moving = *moving](const absl::Status& status) {
                                   if (status.ok()) return ReadToDemote(key, moving);
                                   DropFromDisk(key);  // The policy has let go of it.
                                 });
  if (below.turn.begun()) ReadToDemote(key, *moving);
  return true;
}

void TierSet::ReadToDemote(const BlockKey& key, const std::shared_ptr<Moving>& moving) {
  const Below& below = on_disk_.at(key);
  parts_.disk->Get(
      key, {.bytes = moving->bytes(), .owner = moving}, parts_.loop->Now() + kDemoteWithin,
      [this, watch = life_.watch(), moving, key, write = below.write, codec = below.copy.codec,
       begun = parts_.loop->Now()](const absl::StatusOr<std::uint32_t>& read) {
        if (watch.over()) return;
        TraceRead(SpanName::kDiskRead, Tier::kDisk, codec, begun, read);
        const auto it = on_disk_.find(key);
        const bool still = it != on_disk_.end() && it->second.write == write &&
                           std::ranges::find(demoting_, key) != demoting_.end();
        if (!still) return;  // Deleted, or dropped, meanwhile.
        if (absl::IsDataLoss(read.status())) ++Stats(Tier::kDisk).damaged;
        if (read.ok() && !in_remote_.contains(key)) {
          WriteToRemote(it->second.copy, {.bytes = moving->bytes().first(*read), .owner = moving});
        }
        // On its way: the disk need not keep it for that.
        DropFromDisk(key);
        KeepDiskFree();
      });
}

}  // namespace penstock::kvstore
