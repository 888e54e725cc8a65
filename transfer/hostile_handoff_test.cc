// SPDX-License-Identifier: Apache-2.0
// Handoffs whose peer is a test that says what it likes of blocks that are mapped.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/crc32c.h"
#include "transfer/handoff_receiver.h"
#include "transfer/handoff_sender.h"
#include "transfer/link_testing.h"

namespace penstock::transfer {
namespace {

using absl::StatusCode;
using std::chrono::seconds;

constexpr std::int32_t kBlocks = 8;
constexpr Grant kGrant = {1, 5};

// Ours: a sender and a receiver with one pool. Theirs: channels to either.
class HostileHandoffTest : public testing::Test {
 protected:
  // The end of a channel that the test speaks on, and what came there.
  struct Peer {
    std::unique_ptr<Channel> channel;
    std::vector<HandoffMessage> got;
    std::vector<absl::Status> closed;

    void Say(const HandoffMessage& message) { ASSERT_TRUE(channel->Send(Encode(message)).ok()); }
  };

  HostileHandoffTest() {
    KvGroup group;
    group.cache_layers = 2;
    group.kv_heads = 1;
    group.k_dim = group.v_dim = 64;
    group.dtype = KvDtype::kF16;
    SideLayout side;
    side.layout = *PageLayout::Make(group, 32, 16);
    slab_bytes_ = side.layout.block_bytes();
    SegmentTable::Segment segment;
    slabs_ = world_->Memory(kBlocks * slab_bytes_, segment);
    pool_ = {{.segment = ours_.Register(segment), .slab_bytes = slab_bytes_, .side = side}};
    sender_ = std::make_unique<HandoffSender>(world_->loop(), pool_,
                                              std::vector<const std::byte*>{slabs_}, nullptr);
    MakeReceiver({});
  }
  ~HostileHandoffTest() override {
    sender_.reset();
    receiver_.reset();
  }

  void MakeReceiver(HandoffReceiver::Options options) {
    receiver_ = std::make_unique<HandoffReceiver>(
        world_->loop(), turns_, pool_, options,
        [this](const transfer::Peer&, const absl::Status& why) { gone_.push_back(why); });
  }
  // The pool with a layer on each of two GPUs.
  std::vector<PoolGroup> InParts() const {
    std::vector<PoolGroup> pool = pool_;
    for (std::int32_t layer = 0; layer < 2; ++layer) {
      pool[0].parts.push_back(
          {.segment = pool[0].segment,
           .slab_bytes = slab_bytes_ / 2,
           .slab = {.first_layer = layer, .layers = 1, .head_begin = 0, .kv_heads = 1}});
    }
    return pool;
  }

  // Links of a peer and us; ours, as `name`, goes to `add`.
  template <typename Add>
  std::unique_ptr<Peer> Connect(const std::string& name, Add add) {
    auto [near, far] = world_->Connect(ours_, theirs_);
    add(std::make_unique<Channel>(world_->loop(), transfer::Peer{name, 1}, std::move(near)));
    auto peer = std::make_unique<Peer>();
    peer->channel =
        std::make_unique<Channel>(world_->loop(), transfer::Peer{"victim", 1}, std::move(far));
    peer->channel->Start(
        {.on_message = [p = peer.get()](auto bytes) { p->got.push_back(*Decode(bytes)); },
         .on_closed = [p = peer.get()](const absl::Status& why) { p->closed.push_back(why); }});
    return peer;
  }
  std::unique_ptr<Peer> ToReceiver(const std::string& name) {
    return Connect(name, [this](auto channel) { receiver_->AddPeer(std::move(channel)); });
  }
  // All of it comes from elsewhere.
  void Expect(std::vector<absl::Status>* ends) {
    HandoffReceiver::Target target;
    target.end_block = target.elsewhere_end = kBlocks;
    target.deadline = world_->loop().Now() + seconds(20);
    target.groups.emplace_back();
    for (std::size_t b = 0; b < kBlocks; ++b) {
      target.groups[0].slabs.push_back(slabs_ + b * slab_bytes_);
    }
    receiver_->Expect(kGrant, std::move(target), [ends](const HandoffReceiver::Outcome& outcome) {
      ends->push_back(outcome.status);
    });
  }
  // A handoff of ours to a new peer, and what that wants of it.
  std::unique_ptr<Peer> Begin(std::vector<absl::Status>* ends) { return Begin(ends, pool_); }
  std::unique_ptr<Peer> Begin(std::vector<absl::Status>* ends, const std::vector<PoolGroup>& pool) {
    Channel* channel = nullptr;
    std::unique_ptr<Peer> peer =
        Connect("hostile", [&](auto made) { channel = &sender_->AddPeer(std::move(made)); });
    sender_->Begin(
        kGrant, *channel, world_->loop().Now() + seconds(20),
        [ends](const HandoffSender::Outcome& outcome) { ends->push_back(outcome.status); }, nullptr,
        [this](std::int32_t first, std::int32_t end) { wanted_.emplace_back(first, end); });
    peer->Say(PoolMessage{pool});
    return peer;
  }
  bool Until(const std::function<bool()>& done) { return world_->Until(done); }

  const std::unique_ptr<LinkWorld> world_ = MakeInprocWorld();
  SegmentTable ours_, theirs_;
  std::size_t slab_bytes_ = 0;
  std::byte* slabs_ = nullptr;
  std::vector<PoolGroup> pool_;
  LinkTurns turns_{world_->loop(), nullptr};
  std::unique_ptr<HandoffSender> sender_;
  std::unique_ptr<HandoffReceiver> receiver_;
  std::vector<absl::Status> gone_;
  std::vector<std::pair<std::int32_t, std::int32_t>> wanted_;
};

TEST_F(HostileHandoffTest, MappedPastTheEndEndsTheHandoff) {
  std::vector<absl::Status> ends;
  Expect(&ends);
  const std::unique_ptr<Peer> peer = ToReceiver("hostile");
  peer->Say(PoolMessage{pool_});
  peer->Say(MappedMessage{kGrant, 0, kBlocks + 1});
  receiver_->Settle(kGrant, 0);
  ASSERT_TRUE(Until([&] { return !ends.empty() && peer->got.size() == 2; }));
  EXPECT_EQ(ends[0].code(), StatusCode::kInvalidArgument) << ends[0];
  EXPECT_NE(ends[0].message().find("from 1 to 8, got 9"), absl::string_view::npos) << ends[0];
  EXPECT_EQ(std::get<FailedMessage>(peer->got[1]).status, ends[0]);
}

TEST_F(HostileHandoffTest, WhoBreaksTheProtocolIsCutOff) {
  struct Case {
    const char* name;
    std::vector<HandoffMessage> said;
    const char* want;
  };
  for (const Case& c :
       {Case{"Mapped before Pool", {MappedMessage{kGrant, 0, 1}}, "before its pool"},
        Case{"Wanted to a receiver",
             {PoolMessage{pool_}, WantedMessage{kGrant, 0, 1}},
             "was told Received or Wanted"},
        Case{"parts that only GPUs read",
             {PoolMessage{InParts()},
              ReadyMessage{.grant = {1, kProbeGrant | 1}, .cache_layer = 1, .blocks = {{}}}},
             "group 0 of the pool lies in 2 parts, on a link of kind inproc"}}) {
    SCOPED_TRACE(c.name);
    gone_.clear();
    const std::unique_ptr<Peer> peer = ToReceiver("hostile");
    for (const HandoffMessage& message : c.said) peer->Say(message);
    ASSERT_TRUE(Until([&] { return !gone_.empty() && !peer->closed.empty(); }));
    EXPECT_EQ(gone_[0].code(), StatusCode::kInvalidArgument) << gone_[0];
    EXPECT_NE(gone_[0].message().find(c.want), absl::string_view::npos) << gone_[0];
  }
  std::vector<absl::Status> ends;
  const std::unique_ptr<Peer> peer = Begin(&ends);
  peer->Say(MappedMessage{kGrant, 0, 1});
  ASSERT_TRUE(Until([&] { return !ends.empty(); }));
  EXPECT_EQ(ends[0].code(), StatusCode::kInvalidArgument) << ends[0];
}

TEST_F(HostileHandoffTest, ReceiversInPartsThatOnlyGpusReadAreCutOff) {
  std::vector<absl::Status> ends;
  const std::unique_ptr<Peer> peer = Begin(&ends, InParts());
  sender_->Tell(kGrant, {.cache_layer = 1, .slabs = {0}});
  ASSERT_TRUE(Until([&] { return !ends.empty(); }));
  EXPECT_EQ(ends[0], absl::InvalidArgumentError(
                         "group 0 of the pool lies in 2 parts, on a link of kind inproc"));
}

// The link's queue has room for two, and would refuse the next one.
TEST_F(HostileHandoffTest, ManyStretchesWaitForTheirPeersReads) {
  turns_.Set("local", {.moves_max = 1, .waiting_max = 2});
  MakeReceiver({.reads_in_flight_max = 2});
  SegmentTable::Segment segment;
  std::byte* const source = world_->Memory(kBlocks * slab_bytes_, segment);
  for (std::size_t i = 0; i < kBlocks * slab_bytes_; ++i) {
    source[i] = static_cast<std::byte>(i / 1000);
  }
  std::vector<PoolGroup> pool = pool_;
  pool[0].segment = theirs_.Register(segment);
  std::vector<absl::Status> ends;
  Expect(&ends);
  const std::unique_ptr<Peer> peer = ToReceiver("eager");
  peer->Say(PoolMessage{pool});
  const std::size_t layer_bytes = slab_bytes_ / 2;
  for (std::int32_t layer = 0; layer < 2; ++layer) {
    for (std::uint32_t b = 0; b < kBlocks; ++b) {
      const std::size_t at = b * slab_bytes_ + static_cast<std::size_t>(layer) * layer_bytes;
      const std::uint32_t crc = kernels::Crc32c(0, source + at, layer_bytes);
      peer->Say(ReadyMessage{.grant = kGrant,
                             .cache_layer = layer,
                             .first_block = static_cast<std::int32_t>(b),
                             .blocks = {{.slab = b, .crcs = {crc}}}});
    }
  }
  // Behind the last of them.
  peer->Say(ReadyMessage{.grant = {9, 9}, .blocks = {{}}});
  ASSERT_TRUE(Until([&] { return peer->got.size() == 2; }));
  receiver_->Settle(kGrant, 0);
  ASSERT_TRUE(Until([&] { return !ends.empty(); }));
  EXPECT_TRUE(ends[0].ok()) << ends[0];
  EXPECT_TRUE(std::equal(slabs_, slabs_ + kBlocks * slab_bytes_, source));
}

TEST_F(HostileHandoffTest, MappedForAnothersGrantIsRefusedToThatPeerAlone) {
  std::vector<absl::Status> ends;
  Expect(&ends);
  const std::unique_ptr<Peer> first = ToReceiver("first");
  const std::unique_ptr<Peer> second = ToReceiver("second");
  first->Say(PoolMessage{pool_});
  first->Say(MappedMessage{kGrant, 2, 3});
  ASSERT_TRUE(Until([&] { return first->got.size() == 1; }));
  second->Say(PoolMessage{pool_});
  second->Say(MappedMessage{kGrant, 0, kBlocks});
  second->Say(MappedMessage{{9, 9}, 0, 1});
  ASSERT_TRUE(Until([&] { return second->got.size() == 3; }));
  const auto& anothers = std::get<FailedMessage>(second->got[1]);
  EXPECT_EQ(anothers.status, absl::AbortedError("this grant is being filled by first"));
  EXPECT_EQ(std::get<FailedMessage>(second->got[2]).status.code(), StatusCode::kAborted);
  receiver_->Settle(kGrant, 0);
  ASSERT_TRUE(Until([&] { return first->got.size() == 2; }));
  const auto& wanted = std::get<WantedMessage>(first->got[1]);
  EXPECT_EQ(std::pair(wanted.first_block, wanted.end_block), std::pair(2, 3));
  EXPECT_TRUE(ends.empty());
}

TEST_F(HostileHandoffTest, HoweverOftenOneSaysMappedOneRangeIsWanted) {
  std::vector<absl::Status> ends;
  Expect(&ends);
  const std::unique_ptr<Peer> peer = ToReceiver("hostile");
  peer->Say(PoolMessage{pool_});
  for (std::int32_t i = 0; i < 1000; ++i) {
    const std::int32_t first = 1 + i % 5;
    peer->Say(MappedMessage{kGrant, first, first + 1});
  }
  // Behind the last of them.
  peer->Say(ReadyMessage{.grant = {9, 9}, .blocks = {{}}});
  ASSERT_TRUE(Until([&] { return peer->got.size() == 2; }));
  receiver_->Settle(kGrant, 2);
  peer->Say(ReadyMessage{.grant = {9, 9}, .blocks = {{}}});
  ASSERT_TRUE(Until([&] { return peer->got.size() >= 4; }));
  ASSERT_EQ(peer->got.size(), 4u);
  const auto& wanted = std::get<WantedMessage>(peer->got[2]);
  EXPECT_EQ(std::pair(wanted.first_block, wanted.end_block), std::pair(2, 6));
  EXPECT_TRUE(std::holds_alternative<FailedMessage>(peer->got[3]));
  EXPECT_TRUE(ends.empty());
}

TEST_F(HostileHandoffTest, WantedIsCutToWhatWasTold) {
  std::vector<absl::Status> ends;
  const std::unique_ptr<Peer> peer = Begin(&ends);
  peer->Say(WantedMessage{kGrant, 0, kBlocks});  // Nothing was told yet.
  ASSERT_TRUE(Until([&] { return peer->got.size() == 1; }));
  EXPECT_TRUE(wanted_.empty());
  sender_->TellMapped(kGrant, 2, 3);
  sender_->TellMapped(kGrant, 4, 6);
  peer->Say(WantedMessage{kGrant, 0, 2});
  peer->Say(WantedMessage{kGrant, 6, 1 << 30});
  peer->Say(WantedMessage{{9, 9}, 2, 3});
  peer->Say(WantedMessage{kGrant, 0, 1 << 30});
  peer->Say(WantedMessage{kGrant, 5, 6});
  ASSERT_TRUE(Until([&] { return wanted_.size() == 2; }));
  EXPECT_EQ(wanted_[0], std::pair(2, 6));
  EXPECT_EQ(wanted_[1], std::pair(5, 6));
  EXPECT_TRUE(ends.empty());
  peer->Say(ReceivedMessage{kGrant});
  ASSERT_TRUE(Until([&] { return !ends.empty(); }));
  EXPECT_TRUE(ends[0].ok()) << ends[0];
}

TEST_F(HostileHandoffTest, WantedMoreOftenThanToldEndsTheHandoff) {
  std::vector<absl::Status> ends;
  const std::unique_ptr<Peer> peer = Begin(&ends);
  sender_->TellMapped(kGrant, 0, 1);
  for (int i = 0; i < 100; ++i) peer->Say(WantedMessage{kGrant, 0, 1});
  ASSERT_TRUE(Until([&] { return !ends.empty() && peer->got.size() == 3; }));
  EXPECT_EQ(wanted_.size(), 1u);
  ASSERT_EQ(ends.size(), 1u);
  EXPECT_EQ(ends[0], absl::ResourceExhaustedError("hostile wanted mapped blocks 2 times, was told "
                                                  "of such 1 times"));
  EXPECT_EQ(std::get<FailedMessage>(peer->got[2]).status, ends[0]);
  EXPECT_EQ(sender_->handoffs(), 0);
}

}  // namespace
}  // namespace penstock::transfer
