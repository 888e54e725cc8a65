// SPDX-License-Identifier: Apache-2.0
// What a node tells of its copies is always where they are: random puts, gets, pins, deletions,
// flushes, faults and restarts, with each mix of tiers; after every step the events told so far say
// what List says. And what a get gives is what was put.
#include <gtest/gtest.h>

#include <map>
#include <random>

#include "base/log.h"
#include "base/seed_testing.h"
#include "kvstore/node/tier_set_testing.h"

namespace penstock::kvstore {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr std::uint64_t kSeeds = 200;
constexpr int kConversations = 5;
constexpr std::int32_t kBlocks = 8;

// What somebody knows who hears the events alone.
class Listener {
 public:
  void Hear(const CopyEvent& event) {
    switch (event.kind) {
      case CopyEvent::Kind::kStored:
        copies_[event.name] = event;
        return;
      case CopyEvent::Kind::kRemoved:
        EXPECT_EQ(copies_.erase(event.name), 1u) << "removed twice, or never stored";
        return;
      case CopyEvent::Kind::kCleared:
      case CopyEvent::Kind::kSnapshotBegin:
        copies_.clear();
        return;
      case CopyEvent::Kind::kSnapshotEnd:
        return;
    }
  }
  const std::map<CopyName, CopyEvent>& copies() const { return copies_; }

 private:
  std::map<CopyName, CopyEvent> copies_;
};

class Model {
 public:
  explicit Model(std::uint64_t seed) : random_(seed), seed_(seed) {
    options_ = {.host_pages = 8 + Draw(40),
                .disk_bytes = Draw(4) == 0 ? 0 : (5 + Draw(6)) * 32 * 4096,
                .policy = Draw(2) == 0 ? "lru" : "reuse-density",
                .remote = Draw(2) == 0 ? &server_ : nullptr,
                .server = {.secret = secret_}};
    options_.tiers.disk_through = Draw(2) == 0;
    options_.tiers.remote_through = Draw(3) == 0;
    options_.tiers.free_share = static_cast<double>(Draw(3)) / 8;
    options_.tiers.promotions_max = 1 + Draw(8);
    options_.tiers.remote_known_max = Draw(3) == 0 ? 4 : 1000;
    options_.tiers.moving_bytes_max = (1 + Draw(6)) * kTestFrameBytes;
    if (Draw(2) == 0) options_.tiers.quotas = {{1, Draw(12) * kTestFrameBytes}};
    for (int c = 0; c < kConversations; ++c) chains_.push_back(TestChains(c, kBlocks));
    Restart({});
  }

  void Run() {
    for (int step = 0; step < 150 && !testing::Test::HasFailure(); ++step) {
      Step();
      Check();
      loop_.Advance(milliseconds(Draw(3) == 0 ? 0 : Draw(20)));
      Check();
    }
    node_->disk != nullptr ? void(node_->disk->faults() = {}) : void();
    if (node_->remote_link != nullptr) node_->remote_link->faults() = {};
    loop_.Advance(seconds(40));
    Check();
    EXPECT_EQ(tiers().promotions(), 0u);
    EXPECT_EQ(tiers().leaving(), 0u);
    EXPECT_EQ(tiers().moving_bytes(), 0u);
    // The disk has nothing that nobody knows of. What it found damaged while it made room is missed
    // when it is read.
    std::size_t on_disk = 0;
    for (const TierSet::Listed& listed : tiers().List()) on_disk += listed.disk ? 1 : 0;
    if (tiers().disk() != nullptr) {
      const DiskTier::Stats disk = tiers().disk()->stats();
      EXPECT_LE(disk.blocks, on_disk);
      EXPECT_GE(disk.blocks + disk.damaged, on_disk);
    }
    for (const auto& [get, want] : gets_) {
      ASSERT_TRUE(get->status.has_value()) << "a get was never told";
      if (get->status->ok()) {
        EXPECT_EQ(get->frame, want);
      }
      good_ += get->status->ok() ? 1 : 0;
    }
  }
  int good() const { return good_; }

 private:
  std::uint64_t Draw(std::uint64_t n) { return random_() % n; }
  TierSet& tiers() { return *node_->tiers; }

  void Restart(FakeDisk::Images images) {
    node_.reset();
    gets_.clear();  // Those of the node that is gone are told nothing.
    listener_ = Listener();
    heard_ = 0;
    node_ = std::make_unique<TestNode>(loop_, seed_, options_, std::move(images));
    for (const CopyEvent& event : tiers().Snapshot()) listener_.Hear(event);
  }

  void Step() {
    const std::vector<Chain>& chains = chains_[Draw(kConversations)];
    const auto index = static_cast<std::int32_t>(Draw(kBlocks));
    const BlockKey key = TestCopyKey(chains[static_cast<std::size_t>(index)]);
    switch (Draw(16)) {
      case 0:
      case 1:
      case 2:
      case 3:
      case 4:
        if (tiers().Wants(key)) {
          (void)PutBlock(tiers(), chains, index, static_cast<std::uint32_t>(Draw(3)), secret_);
        }
        break;
      case 5: {  // One that is broken off.
        const TierSet::Copy copy = CopyOfBlock(chains, index, 0, kTestFrameBytes);
        if (tiers().BeginPut(copy).ok()) tiers().EndPut(key, absl::CancelledError("gone"));
        break;
      }
      case 6:
      case 7:
      case 8:
      case 9: {
        tiers().Asked(std::vector<BlockKey>{key});
        gets_.emplace_back(GetBlock(tiers(), key, loop_.Now() + milliseconds(Draw(50))),
                           TestFrame(chains[static_cast<std::size_t>(index)], index, secret_));
        break;
      }
      case 10:
        (void)(Draw(2) == 0 ? tiers().Pin(key) : tiers().Unpin(key));
        break;
      case 11:
        tiers().Delete(key, [](const absl::Status&) {});
        break;
      case 12:
        tiers().FlushHost(Draw(2) == 0 ? UINT64_MAX : Draw(8) * kTestFrameBytes);
        break;
      case 13:
        tiers().Verify(key, [](const absl::Status&, std::uint64_t) {});
        break;
      case 14:
        Fault();
        break;
      case 15:
        if (Draw(4) == 0) {
          Restart(node_->disk == nullptr ? FakeDisk::Images() : node_->disk->LosePower());
        }
        break;
    }
  }

  void Fault() {
    if (node_->disk != nullptr) {
      node_->disk->faults() = {.error = Draw(3) == 0 ? 0.2 : 0,
                               .hang = Draw(4) == 0 ? 0.1 : 0,
                               .bytes_max = Draw(4) == 0 ? 0 : UINT64_MAX};
      const auto& images = node_->disk->images();
      if (Draw(3) == 0 && !images.empty()) {
        node_->disk->Damage(images.begin()->first, Draw(8 * images.begin()->second.bytes.size()));
      }
    }
    if (node_->remote_link == nullptr) return;
    node_->remote_link->faults() = {.refuse = Draw(4) == 0 ? 1.0 : 0,
                                    .lose = Draw(3) == 0 ? 0.2 : 0,
                                    .silent = Draw(6) == 0 ? 0.1 : 0,
                                    .error = Draw(4) == 0 ? 0.2 : 0,
                                    .full = Draw(4) == 0 ? 0.5 : 0};
    if (server_.empty() || Draw(3) != 0) return;
    const auto victim =
        std::next(server_.begin(), static_cast<std::ptrdiff_t>(Draw(server_.size())));
    if (Draw(2) == 0) {
      server_.erase(victim);
    } else {
      victim->second[Draw(victim->second.size())] ^= 1;
    }
  }

  // The events say what List says.
  void Check() {
    for (; heard_ < node_->events.size(); ++heard_) listener_.Hear(node_->events[heard_]);
    std::map<CopyName, CopyEvent> there;
    std::size_t pinned = 0;
    for (const TierSet::Listed& listed : tiers().List()) {
      CopyEvent event = {.kind = CopyEvent::Kind::kStored,
                         .name = NameOf(listed.copy.key),
                         .tier = listed.host   ? Tier::kHost
                                 : listed.disk ? Tier::kDisk
                                               : Tier::kRemote,
                         .codec = listed.copy.codec,
                         .bytes = listed.copy.bytes};
      if (listed.copy.parent.has_value()) event.parent = NameOf(*listed.copy.parent);
      EXPECT_TRUE(listed.host || listed.disk || listed.remote);
      EXPECT_EQ(tiers().Where(listed.copy.key), event.tier);
      EXPECT_EQ(listed.host, node_->host->Peek(listed.copy.key) != nullptr);
      there[event.name] = event;
      pinned += listed.pinned ? 1 : 0;
    }
    ASSERT_EQ(there.size(), tiers().copies());
    ASSERT_EQ(listener_.copies().size(), there.size());
    for (const auto& [name, event] : there) {
      const auto told = listener_.copies().find(name);
      ASSERT_NE(told, listener_.copies().end()) << "never told of";
      ASSERT_EQ(told->second.tier, event.tier)
          << ToString(told->second.tier) << " was told, " << ToString(event.tier) << " it is";
      ASSERT_EQ(told->second.codec, event.codec);
      ASSERT_EQ(told->second.bytes, event.bytes);
      ASSERT_TRUE(told->second.parent == event.parent);
    }
    ASSERT_EQ(pinned, tiers().pinned());
  }

  std::mt19937_64 random_;
  const std::uint64_t seed_;
  const std::vector<std::byte> secret_ = std::vector<std::byte>(32, std::byte{1});
  VirtualLoop loop_;
  FakeRedisLink::Values server_;
  TestNode::Options options_;
  std::vector<std::vector<Chain>> chains_;
  std::unique_ptr<TestNode> node_;
  Listener listener_;
  std::size_t heard_ = 0;  // Of the node's events.
  std::vector<std::pair<std::shared_ptr<TestGet>, Bytes>> gets_;
  int good_ = 0;
};

TEST(TierSetModelTest, WhatIsToldIsWhereCopiesAre) {
  SetLogLevel(LogLevel::kOff);
  int good = 0;
  for (std::uint64_t seed = 0; seed < kSeeds && !testing::Test::HasFailure(); ++seed) {
    const RunningSeed running(seed);
    Model model(seed);
    model.Run();
    good += model.good();
  }
  EXPECT_GT(good, static_cast<int>(kSeeds));  // And gets are not all misses.
  SetLogLevel(LogLevel::kWarning);
}

}  // namespace
}  // namespace penstock::kvstore
