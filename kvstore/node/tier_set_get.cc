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

using transfer::MoveClass;

namespace {

constexpr double kNewest = 0.1;  // Its weight in a moving mean.
// Of a read of one copy: late ones still fill host memory, for the next who asks.
constexpr Duration kReadWithin = std::chrono::seconds(10);
constexpr std::uint32_t kUnknownBytes = 1 << 20;  // Of what another node has put there.

}  // namespace

void TierSet::Asked(std::span<const BlockKey> chain) {
  const MonoTime now = parts_.loop->Now();
  parts_.host->Ask(chain, now);
  if (disk_policy_ != nullptr) disk_policy_->Ask({.chain = chain}, now);
  for (const BlockKey& key : chain) {
    if (!Where(key).has_value()) Remember(key);
  }
}

void TierSet::Get(const BlockKey& key, MonoTime deadline, GotDone done, MoveClass of) {
  if (const auto found = parts_.host->Find(key, parts_.loop->Now()); found.has_value()) {
    TierStats& stats = Stats(Tier::kHost);
    ++stats.hits;
    stats.bytes_hit += found->copy.bytes;
    return done(Got{.found = *found, .from = Tier::kHost, .waited = {}});
  }
  if (OnDisk(key) != nullptr) return Promote(key, Tier::kDisk, deadline, std::move(done), of);
  // Another node may have put it there.
  if (parts_.remote != nullptr) return Promote(key, Tier::kRemote, deadline, std::move(done), of);
  ++Stats(slowest()).misses;
  done(absl::NotFoundError("no such copy here"));
}

void TierSet::Promote(const BlockKey& key, Tier from, MonoTime deadline, GotDone done,
                      MoveClass of) {
  const bool is_new = !promotions_.contains(key);
  if (is_new && promotions_.size() >= options_.promotions_max) {
    return done(absl::ResourceExhaustedError(
        absl::StrCat(promotions_.size(), " copies are being promoted, promotions_max is ",
                     options_.promotions_max)));
  }
  Promotion& promotion = promotions_[key];
  if (is_new) {
    promotion.from = from;
    promotion.asked = parts_.loop->Now();
    promotion.of = of;
  }
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
  const bool more_urgent = of < promotion.of && !promotion.turn.begun();
  if (!is_new && !more_urgent) return;
  promotion.of = of;
  AskTurn(key, promotion);
}

void TierSet::AskTurn(const BlockKey& key, Promotion& promotion) {
  const bool from_disk = promotion.from == Tier::kDisk;
  const Below* const below = from_disk ? OnDisk(key) : InRemote(key);
  promotion.turn =
      parts_.turns->Ask(from_disk ? "disk" : "remote", promotion.of,
                        below == nullptr ? kUnknownBytes : RoundUp(below->copy.bytes),
                        parts_.loop->Now() + kReadWithin, [this, key](const absl::Status& status) {
                          if (!status.ok()) return OnPromoted(key, status);
                          BeginPromotion(key);
                        });
  if (promotion.turn.begun()) BeginPromotion(key);
}

void TierSet::BeginPromotion(const BlockKey& key) {
  Promotion& promotion = promotions_.at(key);
  promotion.begun = parts_.loop->Now();
  const MonoTime deadline = promotion.begun + kReadWithin;
  // Somebody put it as it waited.
  if (const Copy* const copy = parts_.host->Peek(key); copy != nullptr) {
    return OnPromoted(key, copy->bytes);
  }
  if (promotion.from == Tier::kRemote) return ReadRemote(key, deadline);
  if (const absl::Status begun = ReadDisk(key, deadline); !begun.ok()) OnPromoted(key, begun);
}

absl::Status TierSet::ReadDisk(const BlockKey& key, MonoTime deadline) {
  const MonoTime now = parts_.loop->Now();
  const Below* const below = OnDisk(key);
  // Deleted, or dropped, as it waited.
  if (below == nullptr) return absl::NotFoundError("it was let go of meanwhile");
  const Copy copy = below->copy;
  ASSIGN_OR_RETURN(const HostTier::Place place, ReserveHost(copy));
  disk_policy_->Use(key, now);
  auto room = std::make_shared<RoomGuard>(life_.watch(), *parts_.host, key);
  const std::span<std::byte> bytes = parts_.host->Bytes(place, RoundUp(copy.bytes));
  parts_.disk->Get(
      key, {.bytes = bytes, .owner = room}, deadline,
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
  promotion.turn.End();
  const Duration waited = parts_.loop->Now() - promotion.asked;
  const bool from_disk = promotion.from == Tier::kDisk;
  TierStats& stats = Stats(promotion.from);
  if (read.ok()) {
    if (pinned_.contains(key)) parts_.host->Pin(key);
    (from_disk ? disk_wait_ : remote_wait_).Observe(ToSeconds(waited));
    const Duration took = parts_.loop->Now() - promotion.begun;
    const double rate = static_cast<double>(*read) / std::max(1e-9, ToSeconds(took));
    stats.bytes_per_s =
        stats.bytes_per_s == 0 ? rate : stats.bytes_per_s + kNewest * (rate - stats.bytes_per_s);
    const HostTier::Copy* const copy = parts_.host->Peek(key);
    TraceRead(SpanName::kPromote, promotion.from, copy == nullptr ? 0 : copy->codec,
              promotion.asked, read);
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
