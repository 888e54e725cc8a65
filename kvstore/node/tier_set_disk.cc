// SPDX-License-Identifier: Apache-2.0
// The disk of a TierSet: what is written there, and what it lets go of.
#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "kernels/crc32c.h"
#include "kvstore/node/tier_guards.h"
#include "kvstore/node/tier_set.h"

namespace penstock::kvstore {

using transfer::MoveClass;

bool TierSet::WriteToDisk(const Copy& copy) {
  if (parts_.disk == nullptr) return false;
  if (on_disk_.contains(copy.key)) return true;
  const std::uint64_t write = ++writes_;
  const auto hold =
      std::make_shared<HoldGuard>(life_.watch(), *parts_.host, copy.key, *parts_.loop);
  Below& below = on_disk_[copy.key];
  below = {.copy = copy, .written = false, .write = write};
  below.turn = parts_.turns->Ask(
      "disk", MoveClass::kWriteBack, RoundUp(copy.bytes), parts_.loop->Now() + kTurnWithin,
      [this, key = copy.key, write, hold](const absl::Status& status) {
        if (!status.ok()) return OnWritten(key, write, status);
        if (PutOnDisk(key, hold)) return;
        OnWritten(key, write, absl::ResourceExhaustedError("the disk has no room"));
      });
  if (!below.turn.begun() || PutOnDisk(copy.key, hold)) return true;
  ++Stats(Tier::kDisk).refused;
  on_disk_.erase(copy.key);
  return false;
}

// False: there is no room.
bool TierSet::PutOnDisk(const BlockKey& key, std::shared_ptr<const void> hold) {
  const Copy copy = on_disk_.at(key).copy;
  if (!MakeDiskRoom(RoundUp(copy.bytes))) return false;
  const std::optional<HostTier::Place> place = parts_.host->PlaceOf(key);
  CHECK(place.has_value());
  const std::span<std::byte> bytes = parts_.host->Bytes(*place, RoundUp(copy.bytes));
  const std::uint32_t crc = kernels::Crc32c(0, bytes.data(), copy.bytes);
  parts_.disk->Put({.key = key, .bytes = copy.bytes, .tenant = copy.tenant},
                   {.bytes = bytes, .owner = std::move(hold)}, crc,
                   [this, watch = life_.watch(), key,
                    write = on_disk_.at(key).write](const absl::Status& status) {
                     if (!watch.over()) OnWritten(key, write, status);
                   });
  return true;
}

void TierSet::OnWritten(const BlockKey& key, std::uint64_t write, const absl::Status& status) {
  const auto it = on_disk_.find(key);
  if (it == on_disk_.end() || it->second.write != write) return;  // Deleted meanwhile.
  const Copy copy = it->second.copy;
  it->second.turn.End();
  if (status.ok()) {
    it->second.written = true;
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
    parts_.disk->Drop(key);  // One that is late may come to be there yet.
  }
  if (leaving_.contains(key)) {
    const bool go_on = !status.ok() && parts_.host->Peek(key) != nullptr &&
                       InRemote(key) == nullptr && WriteToRemote(copy, HostFrame(copy));
    if (!go_on) RemoveFromHost(key);
  }
  if (status.ok()) KeepDiskFree();
}

bool TierSet::MakeDiskRoom(std::uint64_t bytes) {
  // Each takes a sector beside its payload, and what is being written counts soon.
  const std::uint64_t wanted = bytes + HostTier::kPageBytes;
  const auto missing = [&] {
    const DiskTier::Stats stats = parts_.disk->stats();
    const std::uint64_t live = stats.bytes_live + wanted;
    return live - std::min(live, stats.bytes_live_max);
  };
  // Those that were to be moved first are at hand.
  while (missing() > 0 && !demoting_.empty()) DropFromDisk(BlockKey(demoting_.front()));
  if (missing() == 0) return true;
  std::vector<BlockKey> victims;
  disk_policy_->Evict(missing(), parts_.loop->Now(), victims);
  for (const BlockKey& key : victims) DropFromDisk(key);
  return missing() == 0;
}

// To make room.
void TierSet::DropFromDisk(const BlockKey& key) {
  ++Stats(Tier::kDisk).evicted;
  parts_.disk->Drop(key);
  ForgetOnDisk(key);
}

void TierSet::ForgetOnDisk(const BlockKey& key) {
  on_disk_.erase(key);
  std::erase(demoting_, key);
  disk_policy_->Remove(key, parts_.loop->Now());
  Tell(key);
}

// `read`: the bytes that came. What failed is counted, not traced.
void TierSet::TraceRead(SpanName name, Tier tier, std::uint8_t codec, MonoTime begin,
                        const absl::StatusOr<std::uint32_t>& read) const {
  if (options_.spans == nullptr || !read.ok()) return;
  const std::string_view codec_name = codec == 0 ? "-" : ToString(static_cast<CodecId>(codec));
  const std::string what = absl::StrCat(ToAbsl(ToString(tier)), " ", ToAbsl(codec_name));
  options_.spans->Record({.name = name,
                          .begin = begin,
                          .end = parts_.loop->Now(),
                          .bytes = *read,
                          .blocks = 1,
                          .transport = tier == Tier::kRemote ? "redis" : "",
                          .text = what});
}

}  // namespace penstock::kvstore
