// SPDX-License-Identifier: Apache-2.0
#include "kvstore/disk/disk_tier.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <string>

#include "base/log.h"
#include "base/seed_testing.h"
#include "kernels/crc32c.h"
#include "kvstore/disk/block_testing.h"
#include "kvstore/disk/disk_format.h"
#include "kvstore/disk/disk_testing.h"

namespace penstock::kvstore {
namespace {

#if defined(PENSTOCK_SANITIZED)
constexpr std::uint64_t kSeeds = 200;
#else
constexpr std::uint64_t kSeeds = 1000;
#endif

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::HasSubstr;

constexpr std::uint64_t kSegmentBytes = 32 * kSectorBytes;

class Store {
 public:
  explicit Store(std::uint64_t seed, std::uint64_t segments = 8) : seed_(seed) {
    options_.bytes_max = segments * kSegmentBytes;
    options_.segment_bytes = kSegmentBytes;
    options_.store = 1234;
    Start({});
  }
  ~Store() { tier_.reset(); }

  void Start(FakeDisk::Images images) {
    tier_.reset();
    disk_ = std::make_unique<FakeDisk>(loop_, ++seed_, std::move(images));
    auto opened = DiskTier::Open(loop_, *disk_, options_);
    ASSERT_TRUE(opened.ok()) << opened.status();
    tier_ = *std::move(opened);
  }
  // Starts anew with what is on disk after a loss of power.
  void Crash() { Start(disk_->LosePower()); }

  void Put(std::uint32_t number, std::function<void(absl::Status)> done) {
    const DiskBytes content = ContentOf(number, BytesOfKey(number));
    const std::uint32_t bytes = BytesOfKey(number);
    tier_->Put({KeyOf(number), bytes, number}, content,
               kernels::Crc32c(0, content.bytes.data(), bytes), std::move(done));
  }
  absl::Status PutNow(std::uint32_t number) {
    std::optional<absl::Status> result;
    Put(number, [&](absl::Status status) { result = std::move(status); });
    EXPECT_FALSE(result.has_value());
    loop_.Advance(seconds(20));
    EXPECT_TRUE(result.has_value());
    return result.value_or(absl::InternalError("no answer"));
  }
  absl::Status DeleteNow(std::uint32_t number) {
    std::optional<absl::Status> result;
    tier_->Delete(KeyOf(number), [&](absl::Status status) { result = std::move(status); });
    loop_.Advance(seconds(20));
    return result.value_or(absl::InternalError("no answer"));
  }
  // OK only with the right bytes.
  absl::Status GetNow(std::uint32_t number) {
    std::optional<absl::Status> result;
    Get(number, [&](absl::Status status) { result = std::move(status); });
    loop_.Advance(seconds(2));
    return result.value_or(absl::InternalError("no answer"));
  }
  void Get(std::uint32_t number, const std::function<void(absl::Status)>& done) {
    const DiskBytes to = MakeSectors(SectorsUp(BytesOfKey(number)));
    tier_->Get(KeyOf(number), to, loop_.Now() + seconds(1),
               [=](const absl::StatusOr<std::uint32_t>& bytes) {
                 if (!bytes.ok()) return done(bytes.status());
                 const DiskBytes content = ContentOf(number, BytesOfKey(number));
                 const bool equal = *bytes == BytesOfKey(number) &&
                                    std::memcmp(to.bytes.data(), content.bytes.data(), *bytes) == 0;
                 done(equal ? absl::OkStatus() : absl::InternalError("other bytes"));
               });
  }
  bool Has(std::uint32_t number) const { return tier_->Find(KeyOf(number)).has_value(); }

  std::uint64_t seed_;
  VirtualLoop loop_;
  DiskTier::Options options_;
  std::unique_ptr<FakeDisk> disk_;
  std::unique_ptr<DiskTier> tier_;
};

TEST(DiskTierTest, KeepsWhatItWasGiven) {
  Store store(1);
  EXPECT_TRUE(absl::IsNotFound(store.GetNow(1)));
  EXPECT_TRUE(store.PutNow(1).ok());
  EXPECT_TRUE(store.PutNow(1).ok());  // Again: it is there.
  EXPECT_TRUE(store.PutNow(2).ok());
  EXPECT_TRUE(store.GetNow(1).ok());
  EXPECT_EQ(store.tier_->Find(KeyOf(2)), BytesOfKey(2));
  store.Crash();
  EXPECT_TRUE(store.GetNow(1).ok());
  EXPECT_TRUE(store.GetNow(2).ok());
  EXPECT_EQ(store.tier_->stats().blocks, 2u);
  store.tier_->Drop(KeyOf(1));
  EXPECT_FALSE(store.Has(1));
  EXPECT_TRUE(store.DeleteNow(2).ok());
  EXPECT_TRUE(absl::IsNotFound(store.GetNow(2)));
  store.Crash();
  EXPECT_TRUE(store.Has(1));  // Dropped, not deleted.
  EXPECT_FALSE(store.Has(2));
  EXPECT_TRUE(store.PutNow(2).ok());
  store.Crash();
  EXPECT_TRUE(store.GetNow(2).ok());
}

TEST(DiskTierTest, WrongCallsSayBothNumbers) {
  Store store(2);
  EXPECT_TRUE(store.PutNow(3).ok());
  std::string message;
  store.tier_->Get(KeyOf(3), MakeSectors(0), store.loop_.Now() + seconds(1),
                   [&](const auto& result) { message = result.status().ToString(); });
  store.loop_.Advance(seconds(1));
  EXPECT_THAT(message, HasSubstr("needs 4096 bytes to be read to, got 0"));
  const std::uint32_t large = kSegmentBytes;
  store.tier_->Put({KeyOf(4), large}, MakeSectors(large), 0,
                   [&](const absl::Status& status) { message = status.ToString(); });
  store.loop_.Advance(seconds(1));
  EXPECT_THAT(message, HasSubstr("at most 110592 bytes, this one 131072"));
  for (const auto& [bytes_max, segment_bytes] :
       {std::pair(8 * kSegmentBytes, kSegmentBytes + 1), std::pair(8 * kSegmentBytes, kSectorBytes),
        std::pair(4 * kSegmentBytes, kSegmentBytes)}) {
    DiskTier::Options options = store.options_;
    options.bytes_max = bytes_max;
    options.segment_bytes = segment_bytes;
    EXPECT_TRUE(
        absl::IsInvalidArgument(DiskTier::Open(store.loop_, *store.disk_, options).status()));
  }
}

TEST(DiskTierTest, RefusesWhatDoesNotFitUntilSomethingGoes) {
  Store store(3);
  std::vector<std::uint32_t> there;
  std::uint32_t next = 0;
  absl::Status status;
  while (status.ok()) {
    status = store.PutNow(next);
    if (status.ok()) there.push_back(next++);
    ASSERT_LE(store.disk_->bytes(), store.options_.bytes_max);
  }
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_GT(there.size(), 20u);
  // As a cache that is used for long: whatever comes, something older goes.
  for (int i = 0; i < 500; ++i, ++next) {
    while (!(status = store.PutNow(next)).ok()) {
      ASSERT_TRUE(absl::IsResourceExhausted(status)) << status;
      ASSERT_FALSE(there.empty());
      store.tier_->Drop(KeyOf(there.front()));
      there.erase(there.begin());
    }
    there.push_back(next);
    ASSERT_LE(store.disk_->bytes(), store.options_.bytes_max);
  }
  for (const std::uint32_t number : there) EXPECT_TRUE(store.GetNow(number).ok()) << number;
  const DiskTier::Stats stats = store.tier_->stats();
  EXPECT_EQ(stats.blocks, there.size());
  EXPECT_EQ(stats.damaged + stats.errors + stats.late, 0u);
  EXPECT_LT(stats.moved_bytes, 6 * stats.bytes_written);
}

// Somebody else has the only turn of that class on the disk's link.
struct BusyLink {
  explicit BusyLink(Store& store) : turns(store.loop_, nullptr) {
    turns.Set("disk", {.moves_max = 2});
    store.options_.turns = &turns;
    store.Start({});
    turn = turns.Ask("disk", transfer::MoveClass::kWriteBack, 1, store.loop_.Now(), {});
    EXPECT_TRUE(turn.begun());
  }
  transfer::LinkTurns turns;
  transfer::LinkTurns::Turn turn;
};

TEST(DiskTierTest, WhatIsMovedTakesItsTurn) {
  Store store(40);
  BusyLink link(store);
  for (std::uint32_t next = 0; store.disk_->bytes() < 6 * kSegmentBytes; ++next) {
    store.Put(next, [](const absl::Status&) {});
    store.loop_.Advance(milliseconds(20));
    if (next % 3 != 0) store.tier_->Drop(KeyOf(next));
  }
  store.loop_.Advance(milliseconds(500));
  EXPECT_EQ(store.tier_->stats().moved_bytes, 0u);
  link.turn.End();
  store.loop_.Advance(milliseconds(500));
  EXPECT_GT(store.tier_->stats().moved_bytes, 0u);
  EXPECT_EQ(link.turns.queue("disk")->under_way().moves, 0u);  // Each was given back.
  store.tier_.reset();
}

// It would wait for those that wait for it.
TEST(DiskTierTest, WhatIsMovedForAPutThatWaitsTakesNoTurn) {
  Store store(41);
  BusyLink link(store);
  std::vector<std::uint32_t> there;
  for (std::uint32_t next = 0; next < 300; ++next) {
    std::optional<absl::Status> put;
    for (;;) {
      put.reset();
      store.Put(next, [&](absl::Status status) { put = std::move(status); });
      store.loop_.Advance(milliseconds(400));
      ASSERT_TRUE(put.has_value()) << next;
      if (put->ok()) break;
      ASSERT_TRUE(absl::IsResourceExhausted(*put)) << *put;
      ASSERT_FALSE(there.empty());
      store.tier_->Drop(KeyOf(there[there.size() / 3]));
      there.erase(there.begin() + static_cast<std::ptrdiff_t>(there.size() / 3));
    }
    there.push_back(next);
  }
  for (const std::uint32_t number : there) EXPECT_TRUE(store.GetNow(number).ok()) << number;
  EXPECT_GT(store.tier_->stats().moved_bytes, 0u);
  store.tier_.reset();
}

TEST(DiskTierTest, DamagedBlocksAreMissing) {
  Store store(4);
  ASSERT_TRUE(store.PutNow(7).ok());
  ASSERT_TRUE(store.PutNow(8).ok());
  // Record 7 has its header in sector 1, its payload in 2.
  store.disk_->Damage(1, 8 * (2 * kSectorBytes + 5));
  EXPECT_TRUE(absl::IsDataLoss(store.GetNow(7)));
  EXPECT_TRUE(absl::IsNotFound(store.GetNow(7)));
  EXPECT_TRUE(store.GetNow(8).ok());
  EXPECT_EQ(store.tier_->stats().damaged, 1u);
  EXPECT_TRUE(store.PutNow(7).ok());
  EXPECT_TRUE(store.GetNow(7).ok());
}

TEST(DiskTierTest, FilesThatAreNotOurs) {
  Store store(5);
  ASSERT_TRUE(store.PutNow(1).ok());
  FakeDisk::Images images = store.disk_->LosePower();
  images[50].bytes.assign(kSegmentBytes, std::byte{7});  // Never written to.
  images[51].bytes.assign(5000, std::byte{7});           // No whole sectors.
  images[52] = images[1];                                // By another name.
  store.Start(images);
  EXPECT_EQ(store.tier_->stats().damaged, 3u);
  EXPECT_EQ(store.disk_->images().size(), 1u);
  EXPECT_TRUE(store.GetNow(1).ok());
  SegmentHeader header = {.store = 99, .segment = 60, .bytes = kSegmentBytes};
  images[60].bytes.assign(kSegmentBytes, std::byte{});
  EncodeSegmentHeader(header, std::span(images[60].bytes).first<kSegmentHeaderBytes>());
  FakeDisk disk(store.loop_, 1, images);
  const absl::Status two = DiskTier::Open(store.loop_, disk, store.options_).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(two)) << two;
  EXPECT_THAT(two.ToString(), HasSubstr("two stores, 00000000000004d2 and 0000000000000063"));
}

TEST(DiskTierTest, ADiskThatHangsCostsTimeAlone) {
  Store store(6);
  ASSERT_TRUE(store.PutNow(1).ok());
  store.disk_->faults().hang = 1;
  EXPECT_TRUE(absl::IsDeadlineExceeded(store.GetNow(1)));
  EXPECT_TRUE(absl::IsDeadlineExceeded(store.PutNow(2)));
  EXPECT_TRUE(absl::IsDeadlineExceeded(store.DeleteNow(1)));
  EXPECT_EQ(store.tier_->stats().late, 3u);
}

TEST(DiskTierTest, AFullDiskIsAMiss) {
  Store store(7);
  store.disk_->faults().bytes_max = kSegmentBytes;
  std::vector<std::uint32_t> there;
  int refused = 0;
  for (std::uint32_t number = 0; number < 12; ++number) {
    const absl::Status status = store.PutNow(number);
    if (status.ok()) there.push_back(number);
    refused += absl::IsResourceExhausted(status) ? 1 : 0;
  }
  EXPECT_GT(refused, 0);
  EXPECT_EQ(there.size() + static_cast<std::size_t>(refused), 12u);
  for (const std::uint32_t number : there) EXPECT_TRUE(store.GetNow(number).ok()) << number;
}

// What a store was told of a key.
struct Told {
  bool durable = false;  // A put said OK, and nobody dropped it since.
  bool gone = false;     // A deletion said OK, and nobody put it since.
};

class Workload {
 public:
  explicit Workload(std::uint64_t seed) : random_(seed), store_(seed, 6 + seed % 4) {}

  void Run() {
    for (int round = 0; round < 4 && !testing::Test::HasFailure(); ++round) {
      store_.disk_->faults().error = Chance(0.3) ? 0.02 : 0;
      store_.disk_->faults().latency_max = milliseconds(Chance(0.5) ? 1 : 20);
      const int steps = Number(1, 120);
      for (int i = 0; i < steps; ++i) {
        Step();
        store_.loop_.Advance(milliseconds(Number(0, 3)));
        ASSERT_LE(store_.disk_->bytes(), store_.options_.bytes_max);
      }
      if (Chance(0.3)) store_.loop_.Advance(seconds(20));
      ++life_;
      lossy_ = store_.tier_->stats().damaged > 0;  // A move that failed twice.
      store_.Crash();
      CheckAfterCrash();
    }
  }

 private:
  bool Chance(double p) { return std::bernoulli_distribution(p)(random_); }
  std::uint32_t Key() { return static_cast<std::uint32_t>(Number(0, 30)); }
  int Number(int least, int most) { return std::uniform_int_distribution(least, most)(random_); }

  void Step() {
    const std::uint32_t number = Key();
    const int what = Number(0, 9);
    if (what < 6) {
      told_[number].gone = false;
      store_.Put(number, [this, number, life = life_,
                          version = versions_[number]](const absl::Status& status) {
        if (life != life_) return;
        if (status.ok() && versions_[number] == version) told_[number].durable = true;
        if (absl::IsResourceExhausted(status)) Drop(Key());
      });
    } else if (what < 8) {
      store_.Get(number, [](const absl::Status& status) {
        EXPECT_FALSE(absl::IsInternal(status)) << status;
      });
    } else if (what < 9) {
      Drop(number);
    } else {
      Forget(number);
      store_.tier_->Delete(KeyOf(number), [this, number, life = life_, version = versions_[number]](
                                              const absl::Status& status) {
        if (life == life_ && status.ok() && versions_[number] == version &&
            !put_since_.contains(number)) {
          told_[number].gone = true;
        }
      });
      put_since_.erase(number);
    }
    if (what < 6) put_since_.insert(number);
  }

  void Drop(std::uint32_t number) {
    Forget(number);
    store_.tier_->Drop(KeyOf(number));
  }
  // What was said of the key before counts no more.
  void Forget(std::uint32_t number) {
    ++versions_[number];
    told_[number] = {};
  }

  void CheckAfterCrash() {
    for (auto& [number, told] : told_) {
      const absl::Status status = store_.GetNow(number);
      EXPECT_FALSE(absl::IsInternal(status)) << status;
      if (told.durable && !lossy_) {
        EXPECT_TRUE(status.ok()) << number << ": " << status;
      }
      if (told.gone) {
        EXPECT_TRUE(absl::IsNotFound(status)) << number << ": " << status;
      }
      Forget(number);
      told.durable = status.ok();
    }
    for (const DiskTier::Block& block : store_.tier_->List()) {
      std::uint32_t number = 0;
      std::memcpy(&number, block.key.chain.bytes.data(), sizeof(number));
      EXPECT_EQ(block.bytes, BytesOfKey(number));
      EXPECT_EQ(block.tenant, number);
    }
  }

  std::mt19937_64 random_;
  Store store_;
  std::map<std::uint32_t, Told> told_;
  std::map<std::uint32_t, int> versions_;
  std::set<std::uint32_t> put_since_;
  int life_ = 0;
  bool lossy_ = false;
};

TEST(DiskTierTest, WhatWasPromisedOutlivesAnyLossOfPower) {
  SetLogLevel(LogLevel::kError);  // Each life may find a file that was never begun.
  for (std::uint64_t seed = 1; seed <= kSeeds && !HasFailure(); ++seed) {
    const RunningSeed running(seed);
    Workload(seed).Run();
  }
}

}  // namespace
}  // namespace penstock::kvstore
