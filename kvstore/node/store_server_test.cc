// SPDX-License-Identifier: Apache-2.0
// Hostile peers of a store node: what each gets, that nothing is left of it, and that others go on.
#include "kvstore/node/store_server.h"

#include <gtest/gtest.h>

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/log.h"
#include "kvstore/client/store_testing.h"
#include "transfer/inproc_link.h"

namespace penstock::kvstore {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using transfer::SegmentId;

const std::vector<std::byte> kSecret(32, std::byte{1});
const std::vector<std::byte> kOtherSecret(32, std::byte{2});

// Says what a test wants, from memory that has frames in slots of kSlotBytes.
class HostilePeer : private transfer::LinkEvents {
 public:
  static constexpr std::size_t kSlotBytes = 16384;
  explicit HostilePeer(TestNode& node)
      : loop_(node.loop), memory_(16 * kSlotBytes / HostTier::kPageBytes) {
    segment_ = segments_.Register(transfer::SegmentTable::Segment{.bytes = memory_.get()});
    auto [mine, theirs] = transfer::MakeInprocLinks(node.loop, segments_, node.segments);
    link_ = std::move(mine);
    node.server->AddPeer(std::make_unique<transfer::Channel>(
        node.loop, transfer::Peer{"hostile", 1}, std::move(theirs)));
    link_->Start(*this);
  }
  ~HostilePeer() override {
    link_.reset();
    loop_.RunUntilIdle();  // The node hears of it: its link knows our segments.
  }

  void Say(const StoreMessage& message) { Say(Encode(message)); }
  void Say(const std::vector<std::byte>& bytes) { (void)link_->Send(bytes); }
  // A good offer of block `index`, to be made a bad one.
  OfferMessage Offer(std::uint64_t id, const std::vector<Chain>& chains, std::int32_t index,
                     const std::vector<std::byte>& secret = kSecret) {
    const Chain& chain = chains[static_cast<std::size_t>(index)];
    const Bytes frame = TestFrame(chain, index, secret);
    const std::size_t at = static_cast<std::size_t>(index) * kSlotBytes;
    std::ranges::copy(frame, memory_.get().subspan(at).begin());
    const std::size_t header_bytes = *FrameHeaderBytesOf(frame);
    return {
        .id = id,
        .key = TestCopyKey(chain),
        .segment = segment_,
        .offset = at + FramePayloadAt(header_bytes),
        .header = Bytes(frame.begin(), frame.begin() + static_cast<std::ptrdiff_t>(header_bytes))};
  }
  std::span<std::byte> memory() { return memory_.get(); }

  bool closed() const { return closed_; }
  std::vector<StoreMessage> heard;
  template <typename Message>
  std::vector<Message> Heard() const {
    std::vector<Message> of;
    for (const StoreMessage& message : heard) {
      if (const auto* const m = std::get_if<Message>(&message)) of.push_back(*m);
    }
    return of;
  }

 private:
  void OnMessage(std::span<const std::byte> bytes) override {
    auto message = Decode(bytes);
    ASSERT_TRUE(message.ok()) << message.status();
    heard.push_back(*std::move(message));
  }
  void OnRead(transfer::ReadId, const absl::Status&, std::span<const std::uint32_t>) override {}
  void OnClosed(const absl::Status&) override { closed_ = true; }

  VirtualLoop& loop_;
  TestMemory memory_;
  transfer::SegmentTable segments_;
  SegmentId segment_{};
  bool closed_ = false;
  std::unique_ptr<transfer::Link> link_;
};

class StoreServerTest : public testing::Test {
 protected:
  StoreServerTest() { SetLogLevel(LogLevel::kOff); }
  ~StoreServerTest() override { SetLogLevel(LogLevel::kWarning); }

  void Start(StoreServer::Options options = {}) {
    options.secret = kSecret;
    TestNode::Options node;
    node.server = std::move(options);
    node_ = std::make_unique<TestNode>(loop_, 1, node);
    worker_ = std::make_unique<TestWorker>(loop_, TestWorker::Options{.secret = kSecret});
    worker_->SetNode("store", node_.get());
    worker_->keeper().SetStore(TestWorker::AddressOf("store"));
    worker_->Compute(kept_);
    loop_.Advance(seconds(1));
    ASSERT_EQ(worker_->keeper().stats().taken, kept_.size());
    peer_ = std::make_unique<HostilePeer>(*node_);
  }
  FindMessage FindKept(std::uint64_t id) {
    return {id, 1000, CopySpace(kTestSpace, 0, "exact"), kept_};
  }
  // Once the peer is gone, nothing is left of it, and others find what they did.
  void Check() {
    EXPECT_EQ(node_->server->peers(), peer_->closed() ? 1u : 2u);
    peer_.reset();
    loop_.Advance(seconds(1));
    EXPECT_EQ(node_->server->peers(), 1u);
    EXPECT_EQ(node_->server->finds(), 0u);
    EXPECT_EQ(node_->server->offers(), 0u);
    EXPECT_EQ(node_->server->kept_bytes(), 0u);
    EXPECT_EQ(node_->host->stats().leases, 0u);
    EXPECT_EQ(node_->host->stats().leaving, 0u);
    const HostTier::Stats stats = node_->host->stats();
    std::uint64_t bytes = 0;
    for (const HostTier::Copy& copy : node_->host->List()) {
      bytes +=
          (copy.bytes + HostTier::kPageBytes - 1) / HostTier::kPageBytes * HostTier::kPageBytes;
    }
    EXPECT_EQ(stats.bytes, bytes);  // No room is reserved for nobody.
    const auto fetched = worker_->Fetch(kept_, "store");
    loop_.Advance(seconds(11));
    worker_->Check(*fetched, kept_);
    EXPECT_EQ(fetched->outcome->end_block, static_cast<std::int32_t>(kept_.size()));
  }
  void TearDown() override {
    peer_.reset();
    worker_.reset();
    node_.reset();
  }

  const std::vector<Chain> kept_ = TestChains(1, 6);
  const std::vector<Chain> new_ = TestChains(2, 12);
  VirtualLoop loop_;
  std::unique_ptr<TestNode> node_;
  std::unique_ptr<TestWorker> worker_;
  std::unique_ptr<HostilePeer> peer_;
};

TEST_F(StoreServerTest, WhatBreaksTheProtocolClosesTheChannel) {
  struct Case {
    const char* name;
    std::function<void(HostilePeer& peer)> say;
  };
  const Case cases[] = {
      {"no message", [](HostilePeer& p) { p.Say(std::vector<std::byte>(9, std::byte{0xff})); }},
      {"one cut off",
       [&](HostilePeer& p) {
         std::vector<std::byte> bytes = Encode(FindKept(1));
         bytes.pop_back();
         p.Say(bytes);
       }},
      {"answers of a node",
       [](HostilePeer& p) {
         p.Say(TakenMessage{1, absl::OkStatus()});
       }},
      {"a find's number twice",
       [&](HostilePeer& p) {
         p.Say(FindKept(7));
         p.Say(FindKept(7));
       }},
      {"an offer's number twice",
       [&](HostilePeer& p) {
         p.Say(p.Offer(7, new_, 0));
         p.Say(p.Offer(7, new_, 1));
       }},
      {"more released than was told",
       [&](HostilePeer& p) {
         p.Say(FindKept(3));
         p.Say(ReleaseMessage{3, 7});
       }},
      {"one kept that may not be",
       [&](HostilePeer& p) {
         p.Say(FindKept(3));
         p.Say(KeepMessage{3, 6});
       }},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    Start({.kept_share = 0.01});
    c.say(*peer_);
    loop_.RunUntilIdle();
    EXPECT_TRUE(peer_->closed());
    EXPECT_EQ(node_->server->stats().hostile, 1u);
    Check();
    TearDown();
  }
}

TEST_F(StoreServerTest, WhatIsNoFrameOfThisClusterIsRefused) {
  using Spoil = std::function<void(OfferMessage & offer, HostilePeer & peer)>;
  struct Case {
    const char* name;
    absl::StatusCode want;
    const char* words;
    Spoil spoil;
  };
  const Case cases[] = {
      {"of another key", absl::StatusCode::kInvalidArgument, "the frame is of copy",
       [&](OfferMessage& o, HostilePeer&) { o.key.chain = new_[5]; }},
      {"of another space", absl::StatusCode::kInvalidArgument, "the frame is of copy",
       [](OfferMessage& o, HostilePeer&) { o.key.space = kTestSpace; }},
      {"of another cluster", absl::StatusCode::kDataLoss, "",
       [&](OfferMessage& o, HostilePeer& p) { o = p.Offer(o.id, new_, 0, kOtherSecret); }},
      {"without a MAC", absl::StatusCode::kDataLoss, "",
       [&](OfferMessage& o, HostilePeer& p) { o = p.Offer(o.id, new_, 0, {}); }},
      {"a bit of its header", absl::StatusCode::kDataLoss, "",
       [](OfferMessage& o, HostilePeer&) { o.header[40] ^= std::byte{1}; }},
      {"a header cut off", absl::StatusCode::kDataLoss, "cut off",
       [](OfferMessage& o, HostilePeer&) { o.header.pop_back(); }},
      {"bytes behind its header", absl::StatusCode::kInvalidArgument, "the frame's header has",
       [](OfferMessage& o, HostilePeer&) { o.header.resize(o.header.size() + 4096); }},
      {"at an odd offset", absl::StatusCode::kInvalidArgument, "at a multiple of 4096",
       [](OfferMessage& o, HostilePeer&) { o.offset += 64; }},
      {"outside the segment", absl::StatusCode::kInvalidArgument, "",
       [](OfferMessage& o, HostilePeer&) { o.offset = std::uint64_t{1} << 40; }},
      {"at the end of all offsets", absl::StatusCode::kInvalidArgument, "",
       [](OfferMessage& o, HostilePeer&) { o.offset = UINT64_MAX - 4095; }},
      {"in no segment", absl::StatusCode::kNotFound, "",
       [](OfferMessage& o, HostilePeer&) { o.segment = SegmentId{999}; }},
      {"other bytes than its checksums say", absl::StatusCode::kDataLoss, "",
       [](OfferMessage& o, HostilePeer& p) { p.memory()[o.offset + 100] ^= std::byte{1}; }},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    Start();
    OfferMessage offer = peer_->Offer(5, new_, 0);
    c.spoil(offer, *peer_);
    peer_->Say(offer);
    loop_.Advance(seconds(20));
    const auto taken = peer_->Heard<TakenMessage>();
    ASSERT_EQ(taken.size(), 1u);
    EXPECT_EQ(taken[0].id, 5u);
    EXPECT_EQ(taken[0].status.code(), c.want) << taken[0].status;
    EXPECT_NE(taken[0].status.message().find(c.words), absl::string_view::npos) << taken[0].status;
    EXPECT_FALSE(peer_->closed());
    EXPECT_FALSE(node_->tiers->Where(TestCopyKey(new_[0])).has_value());
    EXPECT_FALSE(node_->tiers->Where(offer.key).has_value());
    // The same frame, as it should be, is taken.
    peer_->Say(peer_->Offer(6, new_, 0));
    loop_.Advance(seconds(1));
    EXPECT_TRUE(peer_->Heard<TakenMessage>()[1].status.ok());
    Check();
    TearDown();
  }
}

TEST_F(StoreServerTest, AFrameLargerThanAllRoomIsRefused) {
  Start();
  const PageLayout layout = *PageLayout::Make(
      {.cache_layers = 64, .kv_heads = 32, .k_dim = 256, .v_dim = 256, .dtype = KvDtype::kF16}, 8,
      8);
  FrameHeader header;
  header.codec = CodecId::kRaw;
  header.codec_version = 1;
  header.key = {kTestSpace, new_[0]};
  header.shape = ShapeOf(layout);
  header.planes = 1;
  header.layer_crcs.assign(64, 0);
  header.plane_bytes.assign(64, 1u << 23);  // 512 MiB.
  OfferMessage offer = peer_->Offer(1, new_, 0);
  offer.header.resize(FrameHeaderBytes(64, 1, true));
  WriteFrameHeader(header, kSecret, offer.header);
  peer_->Say(offer);
  header.plane_bytes.assign(64, 1u << 25);  // 2 GiB.
  WriteFrameHeader(header, kSecret, offer.header);
  offer.id = 2;
  peer_->Say(offer);
  loop_.Advance(seconds(1));
  const auto taken = peer_->Heard<TakenMessage>();
  ASSERT_EQ(taken.size(), 2u);
  for (const TakenMessage& each : taken) {
    EXPECT_EQ(each.status.code(), absl::StatusCode::kInvalidArgument) << each.status;
  }
  EXPECT_EQ(node_->tiers->stats(Tier::kHost).evicted, 0u);  // Nobody made room for it.
  Check();
}

TEST_F(StoreServerTest, LayersOfNothingAreRead) {
  Start();
  const Bytes frame = TestFrame(new_[0], 0, kSecret);
  FrameHeader header = *ParseFrameHeader(frame, {});
  header.plane_bytes[1] = 0;
  header.layer_crcs[1] = 0;  // Of no bytes.
  OfferMessage offer = peer_->Offer(1, new_, 0);
  WriteFrameHeader(header, kSecret, offer.header);
  peer_->Say(offer);
  loop_.Advance(seconds(11));
  EXPECT_EQ(peer_->Heard<TakenMessage>().size(), 1u);
  Check();
}

TEST_F(StoreServerTest, WhoDiesAmidReadsLeavesNothing) {
  for (int steps = 0; steps < 40; ++steps) {
    SCOPED_TRACE(steps);
    Start();
    for (int i = 0; i < 12; ++i) peer_->Say(peer_->Offer(static_cast<std::uint64_t>(i), new_, i));
    peer_->Say(FindKept(1));
    for (int i = 0; i < steps; ++i) loop_.RunUntilIdle(1);
    Check();
    TearDown();
  }
}

TEST_F(StoreServerTest, OffersAndFindsOfOnePeerAreBounded) {
  Start({.finds_max = 3, .offers_max = 4});
  transfer::LinkTurns::Turn busy =
      node_->turns.Ask("local", transfer::MoveClass::kHandoff, std::uint64_t{1} << 30,
                       loop_.Now() + seconds(1), nullptr);
  ASSERT_TRUE(busy.begun());
  for (int i = 0; i < 12; ++i) {
    peer_->Say(peer_->Offer(static_cast<std::uint64_t>(i), new_, i));
    peer_->Say(FindKept(static_cast<std::uint64_t>(i)));
  }
  loop_.Advance(milliseconds(1));
  std::size_t refused = 0, told_nothing = 0;
  for (const TakenMessage& taken : peer_->Heard<TakenMessage>()) {
    if (absl::IsResourceExhausted(taken.status)) ++refused;
  }
  for (const MissingMessage& missing : peer_->Heard<MissingMessage>()) {
    if (absl::IsResourceExhausted(missing.status)) ++told_nothing;
  }
  EXPECT_EQ(refused, 8u);
  EXPECT_EQ(told_nothing, 9u);
  EXPECT_EQ(node_->server->finds(), 3u);
  EXPECT_EQ(node_->server->offers(), 4u);
  busy.End();
  Check();
}

TEST_F(StoreServerTest, TenThousandFinds) {
  Start();
  for (std::uint64_t id = 0; id < 10'000; ++id) {
    FindMessage find = FindKept(id);
    if (id % 2 == 0) find.chains = new_;  // Nobody has those.
    peer_->Say(find);
    if (id % 3 != 0) peer_->Say(ReleaseMessage{id, UINT32_MAX});
    if (id % 100 == 99) loop_.RunUntilIdle();
  }
  loop_.RunUntilIdle();
  EXPECT_LE(node_->server->finds(), 256u);
  EXPECT_LE(node_->host->stats().leases, 256u * kept_.size());
  Check();
}

TEST_F(StoreServerTest, ACopyIsLeasedAsOftenAsItWasTold) {
  Start();
  FindMessage same = FindKept(1);
  same.chains.assign(200, kept_[0]);
  peer_->Say(same);
  loop_.RunUntilIdle();
  EXPECT_EQ(peer_->Heard<FoundMessage>().size(), 64u);  // find_ahead.
  EXPECT_EQ(node_->host->stats().leases, 64u);
  peer_->Say(ReleaseMessage{1, 64});
  peer_->Say(ReleaseMessage{1, 10});  // An older one: nothing.
  peer_->Say(ReleaseMessage{2, 10});  // Of no find.
  peer_->Say(RenewMessage{2});
  loop_.RunUntilIdle();
  EXPECT_EQ(peer_->Heard<FoundMessage>().size(), 128u);
  EXPECT_EQ(node_->host->stats().leases, 64u);
  EXPECT_FALSE(peer_->closed());
  Check();
}

// Frames of two pages each, of 256; copies are told of as kept until they are released.
TEST_F(StoreServerTest, AllPeersTogetherKeepAShare) {
  Start({.kept_share = 7.0 * 2 / 256});
  HostilePeer other(*node_);
  const auto may_keep = [](const HostilePeer& peer) {
    return std::ranges::count_if(peer.Heard<FoundMessage>(), &FoundMessage::may_keep);
  };
  peer_->Say(FindKept(1));
  loop_.RunUntilIdle();
  other.Say(FindKept(1));
  loop_.RunUntilIdle();
  EXPECT_EQ(may_keep(*peer_), 6);
  EXPECT_EQ(may_keep(other), 1);
  EXPECT_EQ(node_->server->kept_bytes(), 7u * 2 * HostTier::kPageBytes);
  other.Say(KeepMessage{1, 1});
  peer_->Say(KeepMessage{1, 2});
  peer_->Say(ReleaseMessage{1, UINT32_MAX});
  peer_->Say(DropMessage{1, {0}});
  loop_.RunUntilIdle();
  EXPECT_EQ(node_->server->kept(), 2u);
  EXPECT_EQ(node_->server->kept_bytes(), 2u * 2 * HostTier::kPageBytes);
  other.Say(FindKept(2));
  loop_.RunUntilIdle();
  EXPECT_EQ(may_keep(other), 1 + 5);
  EXPECT_FALSE(other.closed());
  other.Say(std::vector<std::byte>(9, std::byte{0xff}));
  loop_.RunUntilIdle();
  EXPECT_EQ(node_->server->kept_bytes(), 1u * 2 * HostTier::kPageBytes);
  // A lease that ends without a word ends that, too.
  loop_.Advance(seconds(6));
  node_->host->Expire(loop_.Now());
  peer_->Say(RenewMessage{0});
  loop_.RunUntilIdle();
  EXPECT_EQ(node_->server->kept_bytes(), 0u);
  Check();
}

TEST_F(StoreServerTest, LeasesOfWhoNeverReleasesEnd) {
  Start();
  peer_->Say(FindKept(1));
  loop_.RunUntilIdle();
  EXPECT_EQ(node_->host->stats().leases, kept_.size());
  loop_.Advance(seconds(4));
  peer_->Say(RenewMessage{1});
  loop_.RunUntilIdle();
  loop_.Advance(seconds(4));
  node_->host->Expire(loop_.Now());
  EXPECT_EQ(node_->host->stats().leases, kept_.size());
  loop_.Advance(seconds(2));
  node_->host->Expire(loop_.Now());
  EXPECT_EQ(node_->host->stats().leases, 0u);
  peer_->Say(RenewMessage{1});  // Nothing to renew.
  peer_->Say(ReleaseMessage{1, 3});
  loop_.RunUntilIdle();
  EXPECT_FALSE(peer_->closed());
  Check();
}

}  // namespace
}  // namespace penstock::kvstore
