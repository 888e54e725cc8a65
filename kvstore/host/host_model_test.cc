// SPDX-License-Identifier: Apache-2.0
// The host tier against a plain model of it: random calls, and after each of them nothing overlaps,
// nothing that is held on to has moved, and every number agrees.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "base/seed_testing.h"
#include "kvstore/host/host_testing.h"

namespace penstock::kvstore {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr std::uint64_t kPage = HostTier::kPageBytes;
constexpr std::uint64_t kKeys = 40;
constexpr std::uint32_t kTenants = 3;
constexpr std::size_t kLeasesMax = 12;

enum class State { kReserved, kHeld, kLeaving };

struct Plain {
  std::uint64_t number = 0;
  std::uint32_t bytes = 0;
  std::uint32_t tenant = 0;
  std::uint8_t codec = 0;
  HostTier::Place place = {};
  State state = State::kReserved;
  bool pinned = false, named = false;
  std::vector<HostTier::Hold> holds = {};
  std::set<LeaseId> leases = {};

  std::uint64_t room() const { return (bytes + kPage - 1) / kPage * kPage; }
  bool promised() const { return !holds.empty() || !leases.empty(); }
  bool candidate() const { return state == State::kHeld && !named && !pinned && !promised(); }
};

class Model {
 public:
  explicit Model(std::uint64_t seed)
      : random_(seed),
        policy_(EvictionPolicyNames()[seed % EvictionPolicyNames().size()]),
        pages_(Draw(1, 60)),
        largest_(Draw(1, 8)),
        chains_(seed % 3 == 0),
        memory_(pages_) {
    HostTier::Options options = {.policy = policy_, .leases_max = kLeasesMax};
    tier_ = HostTier::Make(memory_.get(), options).value();
    room_ = memory_.get().size() - pages_ * kPage;
  }

  void Run() {
    for (int step = 0; step < 1000 && !testing::Test::HasFailure(); ++step) {
      if (Draw(0, 3) == 0) now_ += milliseconds(Draw(0, 3000));
      Step();
      Check();
    }
    for (const HostTier::Place& place : gone_) {
      EXPECT_FALSE(GenerationIs(memory_.get(), place));
    }
    LetGoOfAll();
  }

 private:
  std::uint64_t Draw(std::uint64_t least, std::uint64_t most) {
    return std::uniform_int_distribution<std::uint64_t>(least, most)(random_);
  }
  // What the tier is told. Earlier times count as the last one.
  MonoTime Told() {
    MonoTime told = now_;
    if (Draw(0, 9) == 0) told -= seconds(Draw(0, 20));
    last_ = std::max(last_, told);
    std::erase_if(ends_, [&](const auto& lease) {
      if (lease.second.second > last_) return false;
      DropLease(lease.first, lease.second.first);
      return true;
    });
    return told;
  }

  void Step() {
    const std::uint64_t number = Draw(0, kKeys - 1);
    const BlockKey key = TestKey(number);
    Plain* const plain = Named(number);
    const bool held = plain != nullptr && plain->state == State::kHeld;
    const std::uint64_t what = Draw(0, 99);
    if (what < 30) {
      Reserve(number);
    } else if (what < 36) {
      EXPECT_EQ(tier_->Find(key, Told()).has_value(), held);
    } else if (what < 46 && held) {
      Lease(*plain);
    } else if (what < 54) {
      RenewOrEnd();
    } else if (what < 62 && held) {
      plain->holds.push_back(tier_->HoldCopy(key));
      EXPECT_EQ(plain->holds.back().offset, plain->place.offset);
    } else if (what < 70) {
      DropHold();
    } else if (what < 74) {
      EXPECT_EQ(tier_->Pin(key), held && !plain->named);
      if (held && !plain->named) plain->pinned = true;
    } else if (what < 78) {
      const MonoTime told = Told();
      EXPECT_EQ(tier_->Unpin(key, told), held && !plain->named);
      if (held && !plain->named) plain->pinned = false;
    } else if (what < 82 && held) {
      Remove(number);
    } else if (what < 84) {
      const auto tenant = static_cast<std::uint32_t>(Draw(0, kTenants - 1));
      quotas_[tenant] = Draw(0, 1) == 0 ? UINT64_MAX : Draw(0, pages_) * kPage;
      tier_->SetQuota(
          tenant, quotas_[tenant] == UINT64_MAX ? std::nullopt : std::optional(quotas_[tenant]));
    } else if (what < 86) {
      tier_->Expire(Told());
    } else if (what < 90) {
      Ask();
    } else if (what < 96) {
      Evict(Draw(1, 2 * largest_) * kPage);
    } else {
      PublishOrCancel();
    }
  }

  void Reserve(std::uint64_t number) {
    Plain plain = {.number = number,
                   .bytes = static_cast<std::uint32_t>(Draw(1, largest_ * kPage)),
                   .tenant = static_cast<std::uint32_t>(Draw(0, kTenants - 1))};
    HostTier::Copy copy = TestCopy(number, plain.bytes, plain.tenant);
    if (chains_ && number % 8 > 0) {
      copy.parent = TestKey(number - 1);
      copy.tokens_before = static_cast<std::uint32_t>(number % 8 * 32);
    }
    const MonoTime told = Told();
    const absl::StatusOr<HostTier::Place> place = tier_->Reserve(copy, told);
    if (plain.bytes > pages_ * kPage) {
      EXPECT_TRUE(absl::IsInvalidArgument(place.status())) << place.status();
      return;
    }
    if (Named(number) != nullptr) {
      EXPECT_TRUE(absl::IsAlreadyExists(place.status())) << place.status();
      return;
    }
    const std::optional<std::uint64_t> offset = FirstFit(plain.room());
    if (!offset) {
      EXPECT_TRUE(absl::IsResourceExhausted(place.status())) << place.status();
      return Evict(plain.room());
    }
    ASSERT_TRUE(place.ok()) << place.status();
    EXPECT_EQ(place->offset, *offset);
    EXPECT_TRUE(generations_.insert(place->generation).second);  // Never told before.
    EXPECT_GE(place->generation, 1u);
    plain.place = *place;
    plains_.emplace(*offset, plain);
    keys_.emplace(number, *offset);
    if (Draw(0, 9) > 0) PublishOrCancel(plains_.at(*offset));
  }
  std::optional<std::uint64_t> FirstFit(std::uint64_t room) const {
    std::uint64_t at = room_;
    for (const auto& [offset, plain] : plains_) {
      if (offset - at >= room) return at;
      at = offset + plain.room();
    }
    return memory_end() - at >= room ? std::optional(at) : std::nullopt;
  }
  void PublishOrCancel() {
    for (auto& [offset, plain] : plains_) {
      if (plain.state == State::kReserved) return PublishOrCancel(plain);
    }
  }
  void PublishOrCancel(Plain& plain) {
    const BlockKey key = TestKey(plain.number);
    if (Draw(0, 9) == 0) {
      tier_->Cancel(key);
      keys_.erase(plain.number);
      return Gone(plain.place.offset);
    }
    plain.codec = static_cast<std::uint8_t>(random_());
    plain.state = State::kHeld;
    tier_->Amend(key, 0, plain.codec);
    tier_->Publish(key, Told());
  }

  void Lease(Plain& plain) {
    const MonoTime told = Told();
    const absl::StatusOr<LeaseId> lease = tier_->Lease(TestKey(plain.number), told);
    if (ends_.size() >= kLeasesMax) {
      EXPECT_TRUE(absl::IsResourceExhausted(lease.status())) << lease.status();
      return;
    }
    ASSERT_TRUE(lease.ok()) << lease.status();
    EXPECT_TRUE(leases_.insert(*lease).second);
    plain.leases.insert(*lease);
    ends_[*lease] = {plain.place.offset, last_ + seconds(5)};
  }
  void RenewOrEnd() {
    if (leases_.empty()) return;
    const LeaseId lease = *std::next(leases_.begin(), Index(leases_.size()));
    const MonoTime told = Told();
    const bool live = ends_.contains(lease);
    if (Draw(0, 1) == 0) {
      EXPECT_EQ(tier_->Renew(lease, told).ok(), live);
      if (live) ends_[lease].second = last_ + seconds(5);
      return;
    }
    tier_->EndLease(lease, told);
    if (!live) return;
    DropLease(lease, ends_[lease].first);
    ends_.erase(lease);
  }
  void DropLease(LeaseId lease, std::uint64_t offset) {
    plains_.at(offset).leases.erase(lease);
    GoneIfDone(offset);
  }
  void DropHold() {
    std::vector<std::uint64_t> with;
    for (const auto& [offset, plain] : plains_) {
      if (!plain.holds.empty()) with.push_back(offset);
    }
    if (with.empty()) return;
    const MonoTime told = Told();
    const std::uint64_t offset = with[static_cast<std::size_t>(Index(with.size()))];
    Plain& plain = plains_.at(offset);
    tier_->DropHold(plain.holds.back(), told);
    plain.holds.pop_back();
    GoneIfDone(offset);
  }

  void Ask() {
    std::vector<BlockKey> chain;
    const std::uint64_t head = Draw(0, kKeys / 8 - 1) * 8;
    for (std::uint64_t n = head; n < head + 8; ++n) chain.push_back(TestKey(n));
    tier_->Ask(chain, Told());
  }

  void Evict(std::uint64_t bytes) {
    const MonoTime told = Told();
    std::set<std::uint32_t> over;  // Tenants that have something to pay with.
    for (const auto& [offset, plain] : plains_) {
      const auto quota = quotas_.find(plain.tenant);
      if (plain.candidate() && quota != quotas_.end() &&
          tier_->tenant_bytes(plain.tenant) > quota->second) {
        over.insert(plain.tenant);
      }
    }
    const std::vector<HostTier::Copy> copies = tier_->Evict(bytes, told);
    std::uint64_t freed = 0;
    for (const HostTier::Copy& copy : copies) {
      Plain* const plain = Named(TestNumber(copy.key));
      ASSERT_NE(plain, nullptr);
      EXPECT_TRUE(plain->candidate());
      EXPECT_EQ(copy.bytes, plain->bytes);
      EXPECT_EQ(copy.codec, plain->codec);
      EXPECT_LT(freed, bytes);  // Not more than it takes.
      if (freed == 0 && !over.empty()) {
        EXPECT_TRUE(over.contains(plain->tenant));
      }
      freed += plain->room();
      plain->named = true;
    }
    evicted_ += copies.size();
    if (freed < bytes && !chains_) {
      for (const auto& [offset, plain] : plains_) EXPECT_FALSE(plain.candidate());
    }
    // Sometimes later: until then they are found, and may be held on to.
    for (const HostTier::Copy& copy : copies) {
      if (Draw(0, 9) > 0) Remove(TestNumber(copy.key));
    }
  }
  void Remove(std::uint64_t number) {
    tier_->Remove(TestKey(number), Told());
    const std::uint64_t offset = keys_.at(number);
    keys_.erase(number);
    plains_.at(offset).state = State::kLeaving;
    GoneIfDone(offset);
  }
  void GoneIfDone(std::uint64_t offset) {
    const Plain& plain = plains_.at(offset);
    if (plain.state == State::kLeaving && !plain.promised()) Gone(offset);
  }
  void Gone(std::uint64_t offset) {
    gone_.push_back(plains_.at(offset).place);
    plains_.erase(offset);
  }

  void Check() {
    HostTier::Stats want = {.bytes_max = pages_ * kPage, .leases = ends_.size()};
    std::map<std::uint32_t, std::uint64_t> tenants;
    std::uint64_t end = room_;
    for (const auto& [offset, plain] : plains_) {
      ASSERT_GE(offset, end);  // Nothing overlaps.
      end = offset + plain.room();
      ASSERT_LE(end, memory_end());
      ASSERT_TRUE(GenerationIs(memory_.get(), plain.place));
      want.bytes += plain.room();
      want.leaving += plain.state == State::kLeaving ? 1 : 0;
      if (plain.state != State::kHeld) continue;
      ++want.copies;
      if (plain.pinned || plain.promised()) want.bytes_pinned += plain.room();
      if (!plain.named) tenants[plain.tenant] += plain.room();
    }
    const HostTier::Stats stats = tier_->stats();
    ASSERT_EQ(stats.copies, want.copies);
    ASSERT_EQ(stats.bytes, want.bytes);
    ASSERT_EQ(stats.bytes_max, want.bytes_max);
    ASSERT_EQ(stats.bytes_pinned, want.bytes_pinned);
    ASSERT_EQ(stats.leases, want.leases);
    ASSERT_EQ(stats.leaving, want.leaving);
    ASSERT_EQ(stats.evicted, evicted_);
    for (std::uint32_t tenant = 0; tenant < kTenants; ++tenant) {
      ASSERT_EQ(tier_->tenant_bytes(tenant), tenants[tenant]);
    }
    MonoTime next = MonoTime::max();
    for (const auto& [lease, promise] : ends_) next = std::min(next, promise.second);
    ASSERT_EQ(tier_->NextExpiry(), next);
    if (!gone_.empty()) {
      ASSERT_FALSE(GenerationIs(memory_.get(), gone_[Draw(0, gone_.size() - 1)]));
    }
    CheckOne(Draw(0, kKeys - 1));
  }
  void CheckOne(std::uint64_t number) {
    const Plain* const plain = Named(number);
    const HostTier::Copy* const copy = tier_->Peek(TestKey(number));
    ASSERT_EQ(copy != nullptr, plain != nullptr && plain->state == State::kHeld);
    if (copy == nullptr) return;
    EXPECT_EQ(copy->bytes, plain->bytes);
    EXPECT_EQ(copy->codec, plain->codec);
    EXPECT_EQ(copy->tenant, plain->tenant);
  }

  // Whatever happened: once nobody holds on to anything, all room can be had in one piece.
  void LetGoOfAll() {
    for (auto& [offset, plain] : plains_) {
      if (plain.state == State::kReserved) tier_->Publish(TestKey(plain.number), now_);
      if (plain.state == State::kHeld) tier_->Unpin(TestKey(plain.number), now_);
      for (const HostTier::Hold hold : plain.holds) tier_->DropHold(hold, now_);
    }
    now_ += seconds(20);
    tier_->Expire(now_);
    for (const auto& [number, offset] : keys_) {
      if (plains_.at(offset).named) tier_->Remove(TestKey(number), now_);
    }
    const HostTier::Copy all = TestCopy(kKeys, static_cast<std::uint32_t>(pages_ * kPage));
    absl::StatusOr<HostTier::Place> place = tier_->Reserve(all, now_);
    for (std::uint64_t tries = 0; !place.ok(); ++tries) {
      ASSERT_TRUE(absl::IsResourceExhausted(place.status())) << place.status();
      ASSERT_LE(tries, kKeys);
      for (const HostTier::Copy& copy : tier_->Evict(1, now_)) tier_->Remove(copy.key, now_);
      place = tier_->Reserve(all, now_);
    }
    EXPECT_EQ(place->offset, room_);
  }

  std::ptrdiff_t Index(std::size_t size) { return static_cast<std::ptrdiff_t>(Draw(0, size - 1)); }
  std::uint64_t memory_end() const { return room_ + pages_ * kPage; }
  Plain* Named(std::uint64_t number) {
    const auto found = keys_.find(number);
    return found == keys_.end() ? nullptr : &plains_.at(found->second);
  }

  std::mt19937_64 random_;
  const std::string policy_;
  const std::uint64_t pages_, largest_;
  const bool chains_;
  TestMemory memory_;
  std::uint64_t room_ = 0;  // Offset of its first page.
  std::unique_ptr<HostTier> tier_;
  MonoTime now_ = TestTime(1000), last_ = MonoTime::min();
  std::map<std::uint64_t, Plain> plains_;                       // By offset: all with room.
  std::map<std::uint64_t, std::uint64_t> keys_;                 // Reserved and held ones.
  std::map<LeaseId, std::pair<std::uint64_t, MonoTime>> ends_;  // Live ones.
  std::set<LeaseId> leases_;                                    // Ever granted.
  std::set<std::uint64_t> generations_;                         // Ever told.
  std::vector<HostTier::Place> gone_;
  std::map<std::uint32_t, std::uint64_t> quotas_;
  std::uint64_t evicted_ = 0;
};

TEST(HostTierTest, AgreesWithModel) {
  for (std::uint64_t seed = 1; seed <= 200 && !HasFailure(); ++seed) {
    const RunningSeed running(seed);
    Model(seed).Run();
  }
}

}  // namespace
}  // namespace penstock::kvstore
