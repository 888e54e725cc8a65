// SPDX-License-Identifier: Apache-2.0
// Gets of a TierSet: out of host memory, or first into it.
#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "kvstore/node/copy_frame.h"
#include "kvstore/node/tier_guards.h"
#include "kvstore/node/tier_set.h"

namespace penstock::kvstore {
namespace {

constexpr double kNewest = 0.1;  // Its weight in a moving mean.
// Of a read of one copy: late ones still fill host memory, for the next who asks.
constexpr Duration kReadWithin = std::chrono::seconds(10);

}  // namespace

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
  if (OnDisk(key) != nullptr) return Promote(key, Tier::kDisk, deadline, std::move(done));
  // Another node may have put it there.
  if (parts_.remote != nullptr) return Promote(key, Tier::kRemote, deadline, std::move(done));
  ++Stats(slowest()).misses;
  done(absl::NotFoundError("no such copy here"));
}

void TierSet::Promote(const BlockKey& key, Tier from, MonoTime deadline, GotDone done) {
  if (!promotions_.contains(key)) {
    if (const absl::Status begun = BeginPromotion(key, from); !begun.ok()) return done(begun);
  }
  Promotion& promotion = promotions_.at(key);
  const Loop::TimerId timer = parts_.loop->At(deadline, [this, key, n = promotion.waiting.size()] {
    const auto late = promotions_.find(key);
    if (late == promotions_.end() || n >= late->second.waiting.size()) return;
    const Tier tier = late->second.from;
    ++Stats(tier).late;
    if (GotDone told = std::exchange(late->second.waiting[n].second, nullptr)) {
      told(absl::DeadlineExceededError(
          absl::StrCat("the ", ToAbsl(ToString(tier)), " tier was too slow")));
    }
  });
  promotion.waiting.emplace_back(timer, std::move(done));
}

absl::Status TierSet::BeginPromotion(const BlockKey& key, Tier from) {
  if (promotions_.size() >= options_.promotions_max) {
    return absl::ResourceExhaustedError(
        absl::StrCat(promotions_.size(), " copies are being promoted, promotions_max is ",
                     options_.promotions_max));
  }
  const MonoTime now = parts_.loop->Now();
  if (from == Tier::kRemote) {
    promotions_[key] = {.from = from, .waiting = {}, .begun = now};
    ReadRemote(key, now + kReadWithin);
    return absl::OkStatus();
  }
  const Copy copy = on_disk_.at(key).copy;
  ASSIGN_OR_RETURN(const HostTier::Place place, ReserveHost(copy));
  promotions_[key] = {.from = from, .waiting = {}, .begun = now};
  disk_policy_->Use(key, now);
  auto room = std::make_shared<RoomGuard>(life_.watch(), *parts_.host, key);
  const std::span<std::byte> bytes = parts_.host->Bytes(place, RoundUp(copy.bytes));
  parts_.disk->Get(
      key, {.bytes = bytes, .owner = room}, now + kReadWithin,
      [this, watch = life_.watch(), key, room, bytes, now](absl::StatusOr<std::uint32_t> read) {
        if (watch.over()) return;
        if (read.ok()) {
          const absl::Status known = Recognize(key, bytes.first(*read));
          const auto it = on_disk_.find(key);
          const std::uint8_t codec = it == on_disk_.end() ? 0 : it->second.copy.codec;
          TraceRead(SpanName::kDiskRead, Tier::kDisk, codec, now, read);
          if (!known.ok()) {
            parts_.disk->Drop(key);
            read = known;
          }
        }
        if (read.ok() && !promotions_.at(key).deleted) {
          room->Published();
          parts_.host->Publish(key, parts_.loop->Now());
        }
        OnPromoted(key, read);
      });
  return absl::OkStatus();
}

// What came from disk: a frame of that copy and this cluster, or it is of no use. Of one from an
// earlier life this is where its codec and place become known.
absl::Status TierSet::Recognize(const BlockKey& key, std::span<const std::byte> frame) {
  const absl::StatusOr<FrameHeader> header = ParseFrameHeader(frame, {.secret = secret()});
  if (!header.ok()) return absl::DataLossError(header.status().message());
  if (CopyKeyOf(*header) != key) return absl::DataLossError("the frame of another copy");
  const auto tokens_before = static_cast<std::uint32_t>(header->first_position);
  const auto codec = static_cast<std::uint8_t>(header->codec);
  parts_.host->Amend(key, tokens_before, codec);
  if (const auto it = on_disk_.find(key); it != on_disk_.end()) {
    it->second.copy.tokens_before = tokens_before;
    it->second.copy.codec = codec;
  }
  return absl::OkStatus();
}

// Read OK: it is in host memory, unless it was deleted meanwhile.
void TierSet::OnPromoted(const BlockKey& key, const absl::StatusOr<std::uint32_t>& read) {
  const auto it = promotions_.find(key);
  CHECK(it != promotions_.end());
  Promotion promotion = std::move(it->second);
  promotions_.erase(it);
  const Duration waited = parts_.loop->Now() - promotion.begun;
  const bool from_disk = promotion.from == Tier::kDisk;
  TierStats& stats = Stats(promotion.from);
  if (read.ok()) {
    if (pinned_.contains(key)) parts_.host->Pin(key);
    (from_disk ? disk_wait_ : remote_wait_).Observe(ToSeconds(waited));
    const double rate = static_cast<double>(*read) / std::max(1e-9, ToSeconds(waited));
    stats.bytes_per_s =
        stats.bytes_per_s == 0 ? rate : stats.bytes_per_s + kNewest * (rate - stats.bytes_per_s);
    const HostTier::Copy* const copy = parts_.host->Peek(key);
    TraceRead(SpanName::kPromote, promotion.from, copy == nullptr ? 0 : copy->codec,
              promotion.begun, read);
    if (!promotion.deleted) Tell(key);
  } else if (absl::IsDataLoss(read.status()) || absl::IsNotFound(read.status())) {
    if (absl::IsDataLoss(read.status())) ++stats.damaged;
    if (from_disk && OnDisk(key) != nullptr) {
      parts_.disk->Drop(key);  // Where an error kept it from being read, it is there still.
      ForgetOnDisk(key);
    }
    if (!from_disk) ForgetRemote(key);
  }
  if (absl::IsNotFound(read.status())) ++Stats(slowest()).misses;
  const transfer::Life::Watch watch = life_.watch();
  for (auto& [timer, done] : promotion.waiting) {
    parts_.loop->CancelTimer(timer);
    if (done == nullptr) continue;
    if (!read.ok()) {
      done(read.status());
    } else if (const auto found = parts_.host->Find(key, parts_.loop->Now()); found.has_value()) {
      ++stats.hits;
      stats.bytes_hit += found->copy.bytes;
      done(Got{.found = *found, .from = promotion.from, .waited = waited});
    } else {
      done(absl::NotFoundError("it was let go of meanwhile"));
    }
    if (watch.over()) return;
  }
  KeepFree();
}

}  // namespace penstock::kvstore
