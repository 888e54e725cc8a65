// SPDX-License-Identifier: Apache-2.0
#include "kvstore/host/host_tier.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/status.h"
#include "kvstore/host/host_testing.h"

namespace penstock::kvstore {
namespace {

using std::chrono::nanoseconds;
using std::chrono::seconds;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr std::uint32_t kPage = HostTier::kPageBytes;
constexpr MonoTime kStart = MonoTime() + seconds(100);

struct Tier {
  explicit Tier(std::size_t pages, HostTier::Options options = {.policy = "lru"})
      : memory(pages), tier(HostTier::Make(memory.get(), options).value()) {}
  HostTier* operator->() { return tier.get(); }

  HostTier::Place Put(std::uint64_t number, std::uint32_t bytes, std::uint32_t tenant = 0) {
    const HostTier::Place place = tier->Reserve(TestCopy(number, bytes, tenant), kStart).value();
    tier->Publish(TestKey(number), kStart);
    return place;
  }
  bool Has(std::uint64_t number) { return tier->Peek(TestKey(number)) != nullptr; }
  bool IsThere(const HostTier::Place& place) { return GenerationIs(memory.get(), place); }
  std::vector<std::uint64_t> Evict(std::uint64_t bytes) {
    std::vector<std::uint64_t> numbers;
    for (const HostTier::Copy& copy : tier->Evict(bytes, kStart)) {
      numbers.push_back(TestNumber(copy.key));
    }
    return numbers;
  }

  TestMemory memory;
  std::unique_ptr<HostTier> tier;
};

TEST(HostTierTest, LifeOfACopy) {
  Tier tier(10);
  HostTier::Copy copy = TestCopy(1, kPage + 1, 3);
  copy.parent = TestKey(0);
  copy.tokens_before = 32;
  const HostTier::Place place = tier->Reserve(copy, kStart).value();
  EXPECT_EQ(place.offset, kPage);
  EXPECT_GE(place.generation, 1u);
  EXPECT_EQ(tier->Bytes(place, copy.bytes).data(), tier.memory.get().data() + kPage);
  EXPECT_EQ(tier->Find(copy.key, kStart), std::nullopt);
  EXPECT_EQ(tier->Peek(copy.key), nullptr);
  EXPECT_EQ(tier->stats().copies, 0u);
  EXPECT_EQ(tier->stats().bytes, 2 * kPage);
  EXPECT_EQ(tier->stats().bytes_max, 10 * kPage);
  EXPECT_TRUE(absl::IsAlreadyExists(tier->Reserve(copy, kStart).status()));

  tier->Amend(copy.key, 64, 2);
  tier->Publish(copy.key, kStart);
  EXPECT_TRUE(absl::IsAlreadyExists(tier->Reserve(copy, kStart).status()));
  const HostTier::Found found = tier->Find(copy.key, kStart).value();
  EXPECT_EQ(found.copy.parent, copy.parent);
  EXPECT_EQ(found.copy.tokens_before, 64u);
  EXPECT_EQ(found.copy.codec, 2);
  EXPECT_EQ(found.place.offset, place.offset);
  EXPECT_EQ(found.place.generation, place.generation);
  EXPECT_EQ(tier->tenant_bytes(3), 2 * kPage);
  EXPECT_TRUE(tier.IsThere(place));

  tier->Remove(copy.key, kStart);
  EXPECT_FALSE(tier.IsThere(place));
  EXPECT_EQ(tier->Find(copy.key, kStart), std::nullopt);
  EXPECT_EQ(tier->stats().bytes, 0u);
  const HostTier::Place again = tier->Reserve(copy, kStart).value();
  EXPECT_EQ(again.offset, place.offset);
  EXPECT_NE(again.generation, place.generation);
  tier->Cancel(copy.key);
  EXPECT_FALSE(tier.IsThere(again));
  EXPECT_EQ(tier->stats().bytes, 0u);
}

TEST(HostTierTest, WrongMemoryAndOptionsAreRefused) {
  TestMemory memory(4);
  const auto refused = [&](std::size_t bytes, const HostTier::Options& options) {
    const absl::Status status = HostTier::Make(memory.get().first(bytes), options).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    return status.ToString();
  };
  EXPECT_THAT(refused(0, {}), HasSubstr("needs 8192 bytes of memory at least, got 0"));
  EXPECT_THAT(refused(2 * kPage - 1, {}), HasSubstr("at least, got 8191"));
  EXPECT_THAT(refused(2 * kPage, {.policy = "random"}), HasSubstr("got 'random'"));
  EXPECT_THAT(refused(2 * kPage, {.lease = nanoseconds(0)}), HasSubstr("lease must be above 0"));
  EXPECT_TRUE(HostTier::Make(memory.get().first(2 * kPage), {}).ok());
}

TEST(HostTierTest, RoomIsWhatGenerationsLeave) {
  // 512 generations fill a page.
  for (const auto& [pages, room] : {std::pair(2, 1), std::pair(3, 2), std::pair(513, 512),
                                    std::pair(514, 512), std::pair(515, 513)}) {
    TestMemory memory(static_cast<std::size_t>(pages));
    const auto tier =
        HostTier::Make(memory.get().first(static_cast<std::size_t>(pages) * kPage), {}).value();
    const auto bytes = static_cast<std::uint32_t>(room) * kPage;
    EXPECT_EQ(tier->stats().bytes_max, bytes);
    const HostTier::Place place = tier->Reserve(TestCopy(1, bytes), kStart).value();
    EXPECT_LE(place.offset + bytes, static_cast<std::uint64_t>(pages) * kPage);
    EXPECT_LE(place.generation_offset + 8, place.offset);
  }
}

TEST(HostTierTest, WhatDoesNotFitSaysBothNumbers) {
  Tier tier(4);
  const auto refusal = [&](std::uint32_t bytes) {
    return tier->Reserve(TestCopy(9, bytes), kStart).status();
  };
  EXPECT_TRUE(absl::IsInvalidArgument(refusal(0)));
  EXPECT_TRUE(absl::IsInvalidArgument(refusal(4 * kPage + 1)));
  EXPECT_TRUE(absl::IsInvalidArgument(refusal(UINT32_MAX)));
  EXPECT_THAT(refusal(4 * kPage + 1).ToString(),
              HasSubstr("from 1 to 16384 bytes, all room, got 16385"));
  for (std::uint64_t n = 0; n < 4; ++n) tier.Put(n, 1);
  tier->Remove(TestKey(0), kStart);
  tier->Remove(TestKey(2), kStart);
  EXPECT_TRUE(absl::IsResourceExhausted(refusal(kPage + 1)));  // Two pages, apart.
  EXPECT_THAT(refusal(kPage + 1).ToString(),
              HasSubstr("a copy of 4097 bytes needs room in one piece, of which there are 4096"));
  EXPECT_TRUE(refusal(kPage).ok());
}

TEST(HostTierTest, WhatIsHeldOnToKeepsItsRoom) {
  Tier tier(4);
  const HostTier::Place place = tier.Put(1, kPage);
  const HostTier::Hold first = tier->HoldCopy(TestKey(1));
  const HostTier::Hold second = tier->HoldCopy(TestKey(1));
  const LeaseId lease = tier->Lease(TestKey(1), kStart).value();
  EXPECT_EQ(tier->stats().bytes_pinned, kPage);
  tier->Remove(TestKey(1), kStart);
  EXPECT_FALSE(tier.Has(1));
  EXPECT_EQ(tier->stats().bytes_pinned, 0u);
  EXPECT_EQ(tier->stats().leaving, 1u);
  // Its key is free at once, its room is not.
  const HostTier::Place other = tier.Put(1, kPage);
  EXPECT_NE(other.offset, place.offset);
  const HostTier::Hold third = tier->HoldCopy(TestKey(1));
  EXPECT_EQ(third.offset, other.offset);
  tier->DropHold(first, kStart);
  EXPECT_TRUE(tier->Renew(lease, kStart + seconds(4)).ok());
  tier->DropHold(second, kStart);
  EXPECT_TRUE(tier.IsThere(place));
  tier->Expire(kStart + seconds(9) - nanoseconds(1));
  EXPECT_TRUE(tier.IsThere(place));
  EXPECT_EQ(tier->NextExpiry(), kStart + seconds(9));
  tier->Expire(kStart + seconds(9));
  EXPECT_FALSE(tier.IsThere(place));
  EXPECT_TRUE(tier.IsThere(other));
  EXPECT_EQ(tier->stats().leaving, 0u);
  EXPECT_EQ(tier->stats().bytes, kPage);
  EXPECT_TRUE(absl::IsFailedPrecondition(tier->Renew(lease, kStart)));
  tier->EndLease(lease, kStart);  // Nothing.
  EXPECT_EQ(tier->stats().bytes_pinned, kPage);
}

TEST(HostTierTest, EvictLeavesAloneWhatAnyReasonKeeps) {
  Tier tier(8);
  for (std::uint64_t n = 0; n < 6; ++n) tier.Put(n, kPage);
  const HostTier::Hold hold = tier->HoldCopy(TestKey(0));
  const LeaseId lease = tier->Lease(TestKey(1), kStart).value();
  EXPECT_TRUE(tier->Pin(TestKey(2)));
  EXPECT_TRUE(tier->Pin(TestKey(0)));  // Two reasons.
  EXPECT_FALSE(tier->Pin(TestKey(99)));
  EXPECT_FALSE(tier->Unpin(TestKey(99), kStart));
  EXPECT_EQ(tier->stats().bytes_pinned, 3 * kPage);
  EXPECT_THAT(tier.Evict(1), ElementsAre(3));
  EXPECT_TRUE(tier.Has(3));             // Until it is removed.
  EXPECT_FALSE(tier->Pin(TestKey(3)));  // Too late.
  EXPECT_FALSE(tier->Unpin(TestKey(3), kStart));
  EXPECT_TRUE(tier->Lease(TestKey(3), kStart).ok());  // It may still be read.
  EXPECT_EQ(tier->stats().bytes_pinned, 4 * kPage);
  EXPECT_THAT(tier.Evict(8 * kPage), ElementsAre(4, 5));
  tier->DropHold(hold, kStart);
  EXPECT_THAT(tier.Evict(8 * kPage), ElementsAre());
  EXPECT_TRUE(tier->Unpin(TestKey(0), kStart));
  EXPECT_THAT(tier.Evict(8 * kPage), ElementsAre(0));
  tier->EndLease(lease, kStart);
  EXPECT_THAT(tier.Evict(8 * kPage), ElementsAre(1));
  EXPECT_EQ(tier->stats().evicted, 5u);
  for (const std::uint64_t n : {0, 1, 3, 4, 5}) tier->Remove(TestKey(n), kStart);
  EXPECT_EQ(tier->stats().copies, 1u);
  EXPECT_EQ(tier->stats().bytes_pinned, kPage);
  EXPECT_EQ(tier->stats().leaving, 1u);  // The leased one.
  EXPECT_EQ(tier->List().size(), 1u);
}

TEST(HostTierTest, TenantsOverTheirQuotaPayFirst) {
  Tier tier(8);
  tier.Put(0, kPage, 1);
  for (std::uint64_t n = 1; n < 4; ++n) tier.Put(n, 2 * kPage - 1, 2);
  EXPECT_EQ(tier->tenant_bytes(2), 6 * kPage);  // Of room.
  tier->SetQuota(2, 4 * kPage);
  EXPECT_THAT(tier.Evict(1), ElementsAre(1));
  EXPECT_THAT(tier.Evict(1), ElementsAre(0));
  tier->SetQuota(2, std::nullopt);
  EXPECT_EQ(tier->tenant_bytes(2), 4 * kPage);
}

// However the room is cut up.
TEST(HostTierTest, EvictAndRemoveEndInRoomForTheLargest) {
  constexpr std::uint32_t kPages = 64;
  for (std::uint32_t stride = 1; stride < 6; ++stride) {
    Tier tier(kPages);
    std::uint64_t copies = 0;
    for (; tier->stats().bytes + 5 * kPage <= kPages * kPage; ++copies) {
      tier.Put(copies, (1 + static_cast<std::uint32_t>(copies) % 5) * kPage);
    }
    for (std::uint64_t n = 0; n < copies; n += stride + 1) tier->Remove(TestKey(n), kStart);
    const HostTier::Copy all = TestCopy(copies, kPages * kPage);
    std::uint64_t tries = 0;
    while (absl::IsResourceExhausted(tier->Reserve(all, kStart).status())) {
      ASSERT_LT(tries++, copies);
      for (const std::uint64_t n : tier.Evict(1)) tier->Remove(TestKey(n), kStart);
    }
    EXPECT_EQ(tier->stats().bytes, kPages * kPage);
    EXPECT_EQ(tier->stats().copies, 0u);
  }
}

TEST(HostTierTest, LeasesAreShedWhenThereAreTooMany) {
  Tier tier(4, {.leases_max = 1});
  tier.Put(1, 1);
  const LeaseId lease = tier->Lease(TestKey(1), kStart).value();
  EXPECT_TRUE(absl::IsResourceExhausted(tier->Lease(TestKey(1), kStart).status()));
  // One that has ended counts no more.
  EXPECT_TRUE(tier->Lease(TestKey(1), kStart + seconds(5)).ok());
  EXPECT_EQ(tier->stats().leases, 1u);
  tier->EndLease(lease, kStart);
  EXPECT_EQ(tier->stats().leases, 1u);
}

TEST(HostTierTest, PlacesOutsideTheReadersMappingCountAsChanged) {
  Tier tier(4);
  const HostTier::Place place = tier.Put(1, 1);
  EXPECT_FALSE(GenerationIs({}, place));
  HostTier::Place wrong = place;
  for (const std::uint64_t offset : std::initializer_list<std::uint64_t>{
           1, tier.memory.get().size() - 7, tier.memory.get().size(), UINT64_MAX - 7}) {
    wrong.generation_offset = offset;
    EXPECT_FALSE(tier.IsThere(wrong)) << offset;
  }
}

TEST(HostTierDeathTest, WrongCallsOfOurOwn) {
  Tier tier(4);
  tier.Put(1, 1);
  EXPECT_DEATH(tier->Publish(TestKey(1), kStart), "");
  EXPECT_DEATH(tier->Amend(TestKey(1), 0, 1), "");
  EXPECT_DEATH(tier->Cancel(TestKey(1)), "");
  EXPECT_DEATH(tier->Remove(TestKey(2), kStart), "");
  EXPECT_DEATH(tier->HoldCopy(TestKey(2)), "");
  const HostTier::Hold hold = tier->HoldCopy(TestKey(1));
  tier->DropHold(hold, kStart);
  EXPECT_DEATH(tier->DropHold(hold, kStart), "");
}

// A reader that is slower than its lease: whatever it read is either the copy it was told of, or it
// sees that it is not. Words of a copy are its generation.
TEST(HostTierTest, ReadersOfChangingMemoryNeverTakeOtherBytesForTheirs) {
#if defined(PENSTOCK_SANITIZED)
  constexpr int kUnchanged = 300;
#else
  constexpr int kUnchanged = 3000;
#endif
  constexpr std::size_t kPages = 12;
  TestMemory memory(kPages);
  const auto word = [&](std::uint64_t offset) {
    return std::atomic_ref(*reinterpret_cast<std::uint64_t*>(memory.get().data() + offset));
  };
  std::mutex mutex;
  HostTier::Found told;  // Guarded by it.
  std::atomic<int> unchanged = 0, changed = 0, wrong = 0;
  std::atomic<bool> over = false;
  const auto read = [&] {
    while (!over) {
      HostTier::Found found;
      {
        const std::lock_guard lock(mutex);
        found = told;
      }
      if (found.copy.bytes == 0) continue;
      bool equal = true;
      for (std::uint32_t at = 0; at < found.copy.bytes; at += sizeof(std::uint64_t)) {
        equal &=
            word(found.place.offset + at).load(std::memory_order_relaxed) == found.place.generation;
      }
      if (!GenerationIs(memory.get(), found.place)) {
        ++changed;
      } else if (equal) {
        ++unchanged;
      } else {
        ++wrong;
      }
    }
  };
  {
    const std::jthread one(read), two(read);
    const auto tier = HostTier::Make(memory.get(), {.policy = "lru"}).value();
    for (std::uint64_t n = 0; (unchanged < kUnchanged || changed < 1) && wrong == 0; ++n) {
      const HostTier::Copy copy = TestCopy(n, static_cast<std::uint32_t>(1 + n % 4) * kPage);
      absl::StatusOr<HostTier::Place> place = tier->Reserve(copy, kStart);
      while (!place.ok()) {
        for (const HostTier::Copy& victim : tier->Evict(copy.bytes, kStart)) {
          tier->Remove(victim.key, kStart);
        }
        place = tier->Reserve(copy, kStart);
      }
      for (std::uint32_t at = 0; at < copy.bytes; at += sizeof(std::uint64_t)) {
        word(place->offset + at).store(place->generation, std::memory_order_relaxed);
      }
      tier->Publish(copy.key, kStart);
      const std::lock_guard lock(mutex);
      told = tier->Find(copy.key, kStart).value();
    }
    over = true;
  }
  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace penstock::kvstore
