// SPDX-License-Identifier: Apache-2.0
// Store nodes from which too much is fetched, and who is asked to have it, too.
#include <algorithm>

#include "coordinator/coordinator_testing.h"

namespace penstock::coordinator {
namespace {

constexpr Namespace kSpace{{7}};
constexpr std::uint32_t kBlockBytes = 1 << 20;

Chain ChainNumber(std::uint8_t n) {
  Chain chain;
  chain.bytes[15] = n;
  return chain;
}

// A prefill and a decode worker on host "here"; store node "hot", elsewhere, has blocks 0..11.
class CoordinatorReplicationTest : public CoordinatorTest {
 protected:
  void Begin(Coordinator::Options options = {}) {
    options.policy.reuse.peer_bytes_per_s = 1e8;  // 100 blocks a second of a node alone.
    Start(options, 0, 0);
    for (const Role role : {Role::kPrefill, Role::kDecode}) {
      Registration r = Of(role == Role::kPrefill ? "p0" : "d0", role);
      r.groups = {{.copy_spaces = {kSpace}, .window_tokens = 0, .block_bytes = kBlockBytes}};
      r.transfer_address = "shm:here:x";
      // Slow: all is fetched.
      r.prefill_tokens_per_s = role == Role::kPrefill ? 10 : 1;
      ASSERT_TRUE(coordinator_->Register(r, now_).ok());
      ASSERT_TRUE(coordinator_->Report(r.ref, {}, {}, now_).ok());
    }
    Join("hot", "far");
    Have("hot", 1, 0, 12);
    coordinator_->TakeActions();
  }
  void Join(const std::string& name, const std::string& host,
            std::uint64_t room = std::uint64_t{1} << 30) {
    Registration r;
    r.ref = {name, 1};
    r.role = Role::kStore;
    r.transfer_address = absl::StrCat("shm:", host, ":", name);
    r.transfer_epoch = 41;
    ASSERT_TRUE(coordinator_->Register(r, now_).ok());
    LoadReport load;
    load.tiers = {{.tier = Tier::kHost, .bytes_max = room}};
    ASSERT_TRUE(coordinator_->Report(r.ref, load, {}, now_).ok());
  }
  void Have(const std::string& store, std::uint64_t number, std::uint8_t first, std::uint8_t end) {
    std::vector<CopyEvent> events;
    for (std::uint8_t n = first; n < end; ++n) {
      CopyEvent event = {
          .name = NameOf({kSpace, ChainNumber(n)}), .codec = 1, .bytes = kBlockBytes};
      if (n > 0) event.parent = NameOf({kSpace, ChainNumber(static_cast<std::uint8_t>(n - 1))});
      events.push_back(event);
    }
    ASSERT_TRUE(coordinator_->Copies({store, 1}, number, events, now_).ok());
  }
  // Asks for blocks 0..9, from plan to the end; what was to be copied, and from where it was fetched.
  std::vector<ReplicateAction> Ask(std::string* from = nullptr) {
    const std::string id = absl::StrCat("r", asked_++);
    RouteQuery query = Query(id, 10 * 16 + 1);
    query.tenant = 9;
    for (std::uint8_t n = 0; n < 10; ++n) query.chains.push_back(ChainNumber(n));
    EXPECT_TRUE(coordinator_->Route(query, now_).status.ok());
    std::vector<ReplicateAction> copies;
    Attempt attempt;
    std::string prefill;
    for (const Action& action : coordinator_->TakeActions()) {
      if (const auto* copy = std::get_if<ReplicateAction>(&action)) copies.push_back(*copy);
      if (const auto* reserve = std::get_if<ReserveAction>(&action)) {
        attempt = reserve->id;
        prefill = reserve->prefill.ref.name;
        if (from != nullptr) *from = reserve->sources.at(0).store.ref.name;
      }
    }
    EXPECT_TRUE(Say("d0", Kind::kGranted, attempt).ok());
    for (const Kind kind : {Kind::kAccepted, Kind::kComputed}) {
      EXPECT_TRUE(Say(prefill, kind, attempt).ok());
    }
    EXPECT_TRUE(Say("d0", Kind::kAdopted, attempt).ok());
    EXPECT_TRUE(Say("d0", Kind::kFinished, attempt).ok());
    coordinator_->TakeActions();
    return copies;
  }
  // So many, 50 ms apart: 200 blocks a second.
  std::vector<ReplicateAction> AskOften(int times) {
    std::vector<ReplicateAction> all;
    for (int i = 0; i < times; ++i) {
      for (ReplicateAction& copy : Ask()) all.push_back(std::move(copy));
      now_ += 50ms;
    }
    return all;
  }

  int asked_ = 0;
};

TEST_F(CoordinatorReplicationTest, WhatOneNodeGivesTooMuchOfIsAskedOfAnother) {
  Begin();
  Join("cold", "other");
  Join("near", "here");
  const std::vector<ReplicateAction> copies = AskOften(40);
  ASSERT_EQ(copies.size(), 1u) << "once";
  EXPECT_EQ(copies[0].worker.ref.name, "near") << "of the reader's host";
  EXPECT_EQ(copies[0].from.ref.name, "hot");
  EXPECT_EQ(copies[0].from.transfer_address, "shm:far:hot");
  EXPECT_EQ(copies[0].from.transfer_epoch, 41u);
  EXPECT_EQ(copies[0].copy_space, kSpace);
  EXPECT_EQ(copies[0].tenant, 9u);
  EXPECT_FALSE(copies[0].parent.has_value());
  ASSERT_EQ(copies[0].chains.size(), 10u);
  EXPECT_EQ(copies[0].chains[9], ChainNumber(9));
  EXPECT_EQ(coordinator_->stats().replicated_blocks, 10u);
}

TEST_F(CoordinatorReplicationTest, PlansSpreadOverLikeHolders) {
  Begin();
  Join("cold", "other");
  std::map<std::string, int> from;
  std::string store;
  for (int i = 0; i < 20; ++i) {
    Ask(&store);
    ++from[store];
    now_ += 50ms;
  }
  EXPECT_EQ(from["hot"], 20);
  Have("cold", 1, 0, 12);
  for (int i = 0; i < 60; ++i) {
    Ask(&store);
    ++from[store];
    now_ += 50ms;
  }
  EXPECT_EQ(from["hot"] + from["cold"], 80);
  EXPECT_NEAR(from["cold"], 40, 6);
}

TEST_F(CoordinatorReplicationTest, OnlyWhatIsMissingIsCopied) {
  Begin();
  Join("near", "here");
  Have("near", 1, 3, 5);  // Of no use to a prompt before it has what comes before.
  const std::vector<ReplicateAction> copies = AskOften(40);
  ASSERT_EQ(copies.size(), 2u);
  // What comes before is fetched from the hot node, too, and counted once it is hot: one plan later.
  EXPECT_EQ(copies[0].chains.size(), 5u);
  EXPECT_EQ(copies[0].parent, ChainNumber(4));
  EXPECT_EQ(copies[1].chains.size(), 3u);
  EXPECT_FALSE(copies[1].parent.has_value());
}

TEST_F(CoordinatorReplicationTest, NotWithoutNeedOrRoom) {
  struct Case {
    const char* name;
    int times;
    Duration between;
    std::uint64_t room;
    std::uint32_t holders_max;
    bool on;
  };
  for (const Case& c : {
           Case{"fetched too seldom", 40, 2s, std::uint64_t{1} << 30, 3, true},
           Case{"fetched twice", 2, 1ms, std::uint64_t{1} << 30, 3, true},
           Case{"the other is too small", 40, 50ms, 159 << 20, 3, true},
           Case{"as many holders as may be", 40, 50ms, std::uint64_t{1} << 30, 1, true},
           Case{"switched off", 40, 50ms, std::uint64_t{1} << 30, 3, false},
       }) {
    SCOPED_TRACE(c.name);
    Coordinator::Options options;
    options.replication.on = c.on;
    options.replication.holders_max = c.holders_max;
    Begin(options);
    Join("cold", "other", c.room);
    std::size_t copies = 0;
    for (int i = 0; i < c.times; ++i) {
      copies += Ask().size();
      now_ += c.between;
      for (const char* name : {"p0", "d0"}) {
        ASSERT_TRUE(coordinator_->Report({name, 1}, {}, {}, now_).ok());
      }
      for (const char* name : {"hot", "cold"}) {
        LoadReport load;
        load.tiers = {{.tier = Tier::kHost, .bytes_max = c.room}};
        ASSERT_TRUE(coordinator_->Report({name, 1}, load, {}, now_).ok());
      }
    }
    EXPECT_EQ(copies, 0u);
  }
}

}  // namespace
}  // namespace penstock::coordinator
