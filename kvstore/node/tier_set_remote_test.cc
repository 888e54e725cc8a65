// SPDX-License-Identifier: Apache-2.0
// The remote tier inside a node: what goes there, what comes back, and what is never believed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "base/log.h"
#include "kvstore/node/tier_set_testing.h"

namespace penstock::kvstore {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

const std::vector<std::byte> kSecret(32, std::byte{1});

class RemoteOfTierSetTest : public TierSetTest {
 protected:
  RemoteOfTierSetTest() { SetLogLevel(LogLevel::kOff); }
  ~RemoteOfTierSetTest() override {
    node_.reset();
    SetLogLevel(LogLevel::kWarning);
  }
  TestNode::Options Options(std::uint64_t disk_bytes = 0) {
    TestNode::Options options = {.host_pages = 256,
                                 .disk_bytes = disk_bytes,
                                 .remote = &server_,
                                 .server = {.secret = kSecret}};
    options.tiers.free_share = 0;
    return options;
  }
  // Put, and let go of by all tiers but the remote one.
  void PutThere(std::int32_t end) {
    Put(0, end);
    Flush();
    for (std::int32_t i = 0; i < end; ++i) ASSERT_EQ(Where(i), "remote") << i;
  }
  std::string& Value(std::int32_t index) { return server_.at(RemoteName(Key(index))); }
  static std::string TextOf(const Bytes& frame) {
    return {reinterpret_cast<const char*>(frame.data()), frame.size()};
  }

  FakeRedisLink::Values server_;  // What the server has.
};

TEST_F(RemoteOfTierSetTest, TakesWhatHostMemoryLetsGoOf) {
  Start(Options());
  Put(0, 3);
  loop_.Advance(seconds(1));
  EXPECT_TRUE(server_.empty());
  Flush();
  EXPECT_EQ(server_.size(), 3u);
  EXPECT_EQ(Value(1), TextOf(TestFrame(chains_[1], 1, kSecret)));  // The frame, and nothing else.
  EXPECT_EQ(Where(1), "remote");
  EXPECT_EQ(node_->events.back().tier, Tier::kRemote);
  ASSERT_TRUE(Get(1).ok());
  EXPECT_EQ(from_, Tier::kRemote);
  EXPECT_EQ(Where(1), "host+remote");
  EXPECT_EQ(tiers().stats(Tier::kRemote).hits, 1u);
  ASSERT_TRUE(Get(1).ok());
  EXPECT_EQ(from_, Tier::kHost);
  EXPECT_EQ(tiers().moving_bytes(), 0u);
}

TEST_F(RemoteOfTierSetTest, WriteThroughIsThereAtOnce) {
  TestNode::Options options = Options();
  options.tiers.remote_through = true;
  Start(options);
  Put(0, 3);
  loop_.Advance(seconds(1));
  EXPECT_EQ(Where(0), "host+remote");
  EXPECT_EQ(server_.size(), 3u);
}

TEST_F(RemoteOfTierSetTest, TakesWhatAFullDiskLetsGoOf) {
  TestNode::Options options = Options(5 * kSegment);
  options.tiers.free_share = 1.0 / 8;
  Start(options);
  for (std::int32_t i = 0; i < 64; ++i) {
    Put(i, i + 1);
    loop_.Advance(milliseconds(50));
  }
  Flush();
  std::size_t remote = 0;
  for (std::int32_t i = 0; i < 64; ++i) {
    EXPECT_NE(Where(i), "") << i;
    remote += Where(i) == "remote" ? 1 : 0;
  }
  EXPECT_GT(remote, 10u);
  EXPECT_EQ(tiers().moving_bytes(), 0u);
  for (std::int32_t i = 0; i < 64; ++i) EXPECT_TRUE(Get(i).ok()) << i;
}

TEST_F(RemoteOfTierSetTest, WhatAnotherNodePutThereIsFound) {
  Start(Options());
  PutThere(2);
  Start(Options());  // One that never heard of it.
  EXPECT_EQ(Where(0), "");
  ASSERT_TRUE(Get(0).ok());
  EXPECT_EQ(from_, Tier::kRemote);
  EXPECT_EQ(Where(0), "host+remote");
  const TierSet::Copy copy = tiers().Describe(Key(0))->copy;
  EXPECT_EQ(copy.codec, static_cast<std::uint8_t>(CodecId::kRaw));
  EXPECT_EQ(tiers().Describe(Key(0))->copy.tokens_before, 0u);
  EXPECT_EQ(Get(5).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(tiers().stats(Tier::kRemote).misses, 1u);
}

// Who can write to the server can write anything there.
TEST_F(RemoteOfTierSetTest, NothingOfAHostileServerIsBelieved) {
  const std::vector<std::byte> other_secret(32, std::byte{2});
  struct Case {
    const char* name;
    std::function<void(std::string& value)> change;
  };
  for (const Case& c : {
           Case{"the frame of another block",
                [&](std::string& value) { value = TextOf(TestFrame(chains_[9], 9, kSecret)); }},
           Case{"of this chain, at another position",
                [&](std::string& value) { value = TextOf(TestFrame(chains_[1], 1, kSecret)); }},
           Case{
               "by another secret",
               [&](std::string& value) { value = TextOf(TestFrame(chains_[0], 0, other_secret)); }},
           Case{"without a MAC",
                [&](std::string& value) { value = TextOf(TestFrame(chains_[0], 0)); }},
           Case{"a bit of the header", [](std::string& value) { value[64] ^= 1; }},
           Case{"a bit of the payload", [](std::string& value) { value[value.size() - 7] ^= 1; }},
           Case{"cut off", [](std::string& value) { value.resize(value.size() - 1); }},
           Case{"a byte more", [](std::string& value) { value += 'x'; }},
           Case{"noise", [](std::string& value) { value = "what?"; }},
           Case{"nothing", [](std::string& value) { value.clear(); }},
       }) {
    SCOPED_TRACE(c.name);
    server_.clear();
    Start(Options());
    PutThere(1);
    c.change(Value(0));
    for (const bool known : {true, false}) {
      SCOPED_TRACE(known);
      if (!known) Start(Options());
      const absl::Status status = Get(0);
      EXPECT_TRUE(absl::IsDataLoss(status) || absl::IsNotFound(status)) << status;
      EXPECT_EQ(node_->host->stats().bytes, 0u);
      EXPECT_EQ(Where(0), "");
      EXPECT_EQ(tiers().moving_bytes(), 0u);
      if (known) {
        EXPECT_EQ(node_->events.back().kind, CopyEvent::Kind::kRemoved);
      } else {
        EXPECT_TRUE(node_->events.empty());
      }
      EXPECT_EQ(tiers().stats(Tier::kRemote).damaged, absl::IsDataLoss(status) ? 1u : 0u);
    }
    // What is put again takes its place.
    PutThere(1);
    EXPECT_EQ(Value(0), TextOf(TestFrame(chains_[0], 0, kSecret)));
  }
}

TEST_F(RemoteOfTierSetTest, AServerThatIsAwayIsAMiss) {
  Start(Options());
  PutThere(2);
  // Connections are lost, and not made again.
  node_->remote_link->faults() = {.refuse = 1, .lose = 1};
  EXPECT_EQ(Get(0).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(Get(0, milliseconds(1)).code(), absl::StatusCode::kUnavailable);  // At once.
  EXPECT_EQ(Where(0), "remote");                                              // It may come back.
  EXPECT_EQ(Get(7).code(), absl::StatusCode::kNotFound);
  // Putting goes on; what has nowhere to go is gone.
  Put(2, 3);
  EXPECT_EQ(Where(2), "host");
  Flush();
  EXPECT_EQ(Where(2), "");
  EXPECT_GT(tiers().stats(Tier::kRemote).refused, 0u);
  node_->remote_link->faults() = {};
  loop_.Advance(seconds(1));
  EXPECT_TRUE(Get(0).ok());
}

TEST_F(RemoteOfTierSetTest, AServerThatIsSilentHoldsNobody) {
  Start(Options());
  PutThere(1);
  node_->remote_link->faults().silent = 1;
  EXPECT_EQ(Get(0, milliseconds(100)).code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(tiers().stats(Tier::kRemote).late, 1u);
  loop_.Advance(seconds(30));
  EXPECT_EQ(tiers().promotions(), 0u);
  EXPECT_EQ(tiers().moving_bytes(), 0u);
}

TEST_F(RemoteOfTierSetTest, AFullServerLosesCopiesAndNothingElse) {
  Start(Options());
  node_->remote_link->faults().full = 1;
  Put(0, 2);
  Flush();
  EXPECT_EQ(tiers().copies(), 0u);
  EXPECT_EQ(tiers().stats(Tier::kRemote).refused, 2u);
  EXPECT_EQ(Get(0).code(), absl::StatusCode::kNotFound);
}

TEST_F(RemoteOfTierSetTest, DeletingReachesTheServer) {
  Start(Options());
  PutThere(2);
  std::optional<absl::Status> deleted;
  tiers().Delete(Key(0), [&](const absl::Status& status) { deleted = status; });
  loop_.Advance(seconds(1));
  EXPECT_EQ(deleted, absl::OkStatus());
  EXPECT_FALSE(server_.contains(RemoteName(Key(0))));
  EXPECT_EQ(Get(0).code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(Get(1).ok());
}

TEST_F(RemoteOfTierSetTest, NeedsASecret) {
  VirtualLoop loop;
  TestMemory memory(8);
  const auto host = HostTier::Make(memory.get(), {.policy = "lru"});
  ASSERT_TRUE(host.ok());
  RemoteTier remote(loop, std::make_unique<FakeRedisLink>(loop, 1, server_), {});
  transfer::LinkTurns turns(loop, nullptr);
  const auto made =
      TierSet::Make({.loop = &loop, .host = host->get(), .remote = &remote, .turns = &turns}, {},
                    [](const CopyEvent&) {});
  EXPECT_EQ(made.status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace penstock::kvstore
