// SPDX-License-Identifier: Apache-2.0
// Links of kind nccl whose peer, NCCL or GPU does not do what it should.
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <array>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/status.h"
#include "device/cuda_standin.h"
#include "device/nccl_standin.h"
#include "transfer/frame_socket.h"
#include "transfer/nccl_frames.h"
#include "transfer/nccl_link.h"
#include "transfer/nccl_pair_testing.h"

namespace penstock::transfer {
namespace {

using absl::StatusCode;
using std::chrono::milliseconds;
using std::chrono::seconds;
using Type = NcclFrame::Type;

constexpr std::size_t kSlotBytes = 100000;

// A peer on GPU 1, rank 1, that serves zeros as it is told to, or not.
class FakePeer final : private FrameSocket::Events, private NcclComms::Events {
 public:
  explicit FakePeer(NcclWorld& world) : world_(world), zeros_(world, 1, 1, 0) {
    std::array<int, 2> fds{};
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds.data()), 0);
    zeros_.bytes.assign(std::size_t{1} << 20, std::byte{});
    world.On([&] {
      channel = std::make_unique<Channel>(world.loop(), Peer{"fake", 1},
                                          MakeNcclLink(world.real_loop(), UniqueFd(fds[0]), table_,
                                                       {world.gpu(0).comms.get()}, {.first = true})
                                              .value());
      channel->Start(
          {.on_message = [](auto) {}, .on_closed = [this](auto& s) { closed.push_back(s); }});
      socket_ =
          std::make_unique<FrameSocket>(world.real_loop(), UniqueFd(fds[1]), table_, seconds(10));
      socket_->Start(*this);
    });
  }
  ~FakePeer() override {
    world_.On([&] {
      channel.reset();
      comm_.reset();
      socket_.reset();
    });
  }

  // Of one slot of zeros, into memory of 0xEE.
  std::unique_ptr<DeviceRead> Read(Duration limit = seconds(25)) {
    auto read = std::make_unique<DeviceRead>(world_, 0, zeros_, 1, kSlotBytes);
    world_.On([&] { read->Begin(*channel, world_.loop().Now() + limit); });
    return read;
  }
  void ExpectUnavailable(const std::string& part) {
    const auto read = Read();
    ASSERT_TRUE(world_.Until([&] { return read->ended(); }));
    EXPECT_EQ(read->ends[0].code(), StatusCode::kUnavailable) << read->ends[0];
    EXPECT_NE(read->ends[0].message().find(part), absl::string_view::npos) << read->ends[0];
    ExpectUntouched(*read);
    EXPECT_TRUE(closed.empty());
  }
  void ExpectUntouched(DeviceRead& read) {
    EXPECT_EQ(world_.Bytes(0, *read.target), std::vector<std::byte>(kSlotBytes, std::byte{0xEE}));
  }
  void ExpectReads() {
    const auto read = Read();
    ASSERT_TRUE(world_.Until([&] { return read->ended(); }));
    EXPECT_TRUE(read->ends[0].ok()) << read->ends[0];
    EXPECT_EQ(world_.Bytes(0, *read->target), read->want);
  }
  void Say(const NcclFrame& frame) { SayBytes(FrameType::kNccl, 0, frame.Encode()); }
  void SayBytes(FrameType type, std::uint64_t id, const std::vector<std::byte>& payload) {
    socket_->Send(type, id, payload);
  }
  // A segment of GPU 0, which the peer may read.
  SegmentId Offered() { return table_.Register(*offered_, 0); }
  std::size_t seen(Type type) const { return seen_[static_cast<std::size_t>(type)]; }
  void PostNow() {
    ASSERT_GT(unposted_, 0u);
    for (; unposted_ > 0; --unposted_) comm_->Move(true, ring_->out(0).data, kSlotBytes + more);
  }

  bool joins = true;
  bool posts = true;
  bool says_closed = true;
  bool keeps_reads = false;  // Without an offer.
  std::size_t more = 0;      // Bytes than it offers.
  std::size_t moved = 0;
  std::unique_ptr<Channel> channel;
  std::vector<absl::Status> closed;

 private:
  absl::Status OnFrame(const FrameHeader& header, std::span<const std::byte> payload) override {
    if (header.type == FrameType::kRead) asked_.push_back(header.id);
    if (header.type == FrameType::kCancel) {
      if (std::erase(asked_, header.id) > 0) {
        SayBytes(FrameType::kEnd, header.id, EncodeEnd(absl::CancelledError("x")));
      }
    }
    if (header.type == FrameType::kNccl) OnNccl(*NcclFrame::Decode(payload));
    Offer();
    return absl::OkStatus();
  }
  void OnNccl(const NcclFrame& frame) {
    ++seen_[static_cast<std::size_t>(frame.type)];
    switch (frame.type) {
      case Type::kOpen:
        number_ = 0;
        if (joins) comm_ = world_.gpu(1).comms->Open(world_.loop(), *this, frame.id);
        return;
      case Type::kReady:
        ++unposted_;
        if (posts) PostNow();
        return;
      case Type::kClosed:
        End();
        return;
      default:
        return;
    }
  }
  void Offer() {
    if (keeps_reads || ring_ == nullptr || seen(Type::kOpened) <= closes_) return;
    for (const std::uint64_t id : std::exchange(asked_, {})) {
      Say({.type = Type::kPacked, .number = number_++, .read = id, .bytes = kSlotBytes});
    }
  }
  void End() {
    comm_.reset();
    ring_.reset();
    unposted_ = 0;
    closes_ = seen(Type::kOpened);
    if (says_closed) Say({.type = Type::kClosed, .text = "so"});
  }
  void OnEnd(const absl::Status&) override {}
  void OnId(const NcclId&) override {}
  void OnOpen(std::shared_ptr<NcclRing> ring) override {
    ring_ = std::move(ring);
    Say({.type = Type::kOpened});
    Offer();
  }
  void OnMoved(Duration) override { ++moved; }
  void OnYield() override {}
  void OnBroken(const absl::Status&) override {
    comm_.reset();  // And waits for the other side to notice.
  }

  NcclWorld& world_;
  SegmentTable table_;
  DeviceSegment zeros_;
  std::unique_ptr<DeviceMemory> offered_ =
      world_.OnDevice(0, std::vector<std::byte>(16, std::byte{1}));
  std::unique_ptr<FrameSocket> socket_;
  std::unique_ptr<NcclComms::Comm> comm_;
  std::shared_ptr<NcclRing> ring_;
  std::vector<std::uint64_t> asked_;
  std::array<std::size_t, 8> seen_ = {};
  std::size_t closes_ = 0;
  std::uint64_t number_ = 0;
  std::size_t unposted_ = 0;
};

TEST(NcclTroubleTest, APeerThatNeverJoinsEndsTheLink) {
  NcclWorld world({.open_max = milliseconds(200)});
  FakePeer peer(world);
  peer.joins = false;
  const auto read = peer.Read();
  ASSERT_TRUE(world.Until([&] { return !peer.closed.empty(); }));
  const absl::Status late = absl::UnavailableError("nccl: joining the peer took more than 200 ms");
  EXPECT_EQ(read->ends, std::vector{late});
  EXPECT_EQ(peer.closed, std::vector{late});
  EXPECT_TRUE(world.gpu(0).comms->health().ok());
}

TEST(NcclTroubleTest, ACommunicatorThatMovesNothingEndsTheLink) {
  NcclWorld world({.move_max = milliseconds(200)});
  FakePeer peer(world);
  peer.posts = false;
  const auto read = peer.Read();
  ASSERT_TRUE(world.Until([&] { return !peer.closed.empty(); }));
  EXPECT_EQ(read->ends, peer.closed);
  EXPECT_EQ(peer.closed[0], absl::UnavailableError("nccl: moving a slot took more than 200 ms"));
}

TEST(NcclTroubleTest, APeerThatJoinsAndNeverPostsIsGivenUp) {
  NcclWorld world({.move_max = milliseconds(200)});
  FakePeer peer(world);
  peer.ExpectReads();
  world.On([&] { peer.posts = false; });
  peer.ExpectUnavailable("moving a slot took more than 200 ms");
  world.On([&] { peer.posts = true; });
  peer.ExpectReads();
}

TEST(NcclTroubleTest, UnequalSizesAreNamed) {
  NcclWorld world;
  FakePeer peer(world);
  peer.ExpectReads();
  world.On([&] { peer.more = 1; });
  peer.ExpectUnavailable("moving a slot: invalid usage");
  EXPECT_EQ(nccl_standin::Now().last_fault, "a receive of 100000 bytes meets a send of 100001");
  world.On([&] { peer.more = 0; });
  peer.ExpectReads();
}

TEST(NcclTroubleTest, DeadlinesEndReadsWhileNcclHangs) {
  NcclWorld world;
  FakePeer peer(world);
  peer.posts = false;
  const auto read = peer.Read(milliseconds(50));
  ASSERT_TRUE(world.Until([&] { return read->ended(); }));
  EXPECT_TRUE(absl::IsDeadlineExceeded(read->ends[0])) << read->ends[0];
  peer.ExpectUntouched(*read);
}

TEST(NcclTroubleTest, WhatWasPostedForACancelledReadIsDrained) {
  NcclWorld world;
  FakePeer peer(world);
  peer.posts = false;
  const auto read = peer.Read();
  ASSERT_TRUE(world.Until([&] { return peer.seen(Type::kReady) == 1; }));
  world.On([&] { peer.channel->Cancel(read->id); });
  ASSERT_TRUE(world.Until([&] { return read->ended(); }));
  EXPECT_TRUE(absl::IsCancelled(read->ends[0])) << read->ends[0];
  world.On([&] {
    peer.posts = true;
    peer.PostNow();
  });
  peer.ExpectReads();
  world.On([&] {
    EXPECT_EQ(peer.moved, 2u);
    EXPECT_EQ(peer.seen(Type::kOpen), 1u);
  });
  peer.ExpectUntouched(*read);
}

TEST(NcclTroubleTest, AReadThatIsBeingUnpackedEndsWithItsKernel) {
  NcclWorld world;
  FakePeer peer(world);
  auto hold = std::make_unique<HoldCopies>();
  const std::int64_t begun = CopiesBegun();
  const auto read = peer.Read();
  ASSERT_TRUE(world.Until([&] { return CopiesBegun() > begun; }));
  world.On([&] { peer.channel->Cancel(read->id); });
  for (int turn = 0; turn < 100; ++turn) {
    world.On([&] { EXPECT_FALSE(read->ended()); });
  }
  hold.reset();
  ASSERT_TRUE(world.Until([&] { return read->ended(); }));
  EXPECT_TRUE(absl::IsCancelled(read->ends[0])) << read->ends[0];
  EXPECT_EQ(world.Bytes(0, *read->target), read->want) << "its kernel had begun";
}

TEST(NcclTroubleTest, LinksThatGoWhileTheyUnpackWaitForTheKernel) {
  NcclWorld world;
  FakePeer peer(world);
  auto hold = std::make_unique<HoldCopies>();
  const std::int64_t begun = CopiesBegun();
  const auto read = peer.Read();
  ASSERT_TRUE(world.Until([&] { return CopiesBegun() > begun; }));
  std::jthread release([&] { hold.reset(); });
  world.On([&] { peer.channel.reset(); });
  EXPECT_EQ(world.Bytes(0, *read->target), read->want);
}

// The slot of an aborted receive is written, by the stand-in as by NCCL, until the abort has
// returned.
TEST(NcclTroubleTest, SlotsAreNotUsedAgainBeforeTheirAbortHasReturned) {
  for (const std::size_t comms_max : {1, 2}) {
    SCOPED_TRACE(comms_max);
    NcclWorld world({.comms_max = comms_max, .move_max = milliseconds(200)});
    FakePeer peer(world);
    peer.ExpectReads();
    world.On([&] { peer.posts = false; });
    nccl_standin::Set({.abort_hangs = true});
    peer.ExpectUnavailable("moving a slot took more than 200 ms");
    world.On([&] { peer.posts = true; });
    const auto read = peer.Read();
    if (comms_max == 1) {
      ASSERT_TRUE(world.Until([&] { return world.gpu(0).comms->load().waiting == 1; }));
      world.On([&] { EXPECT_FALSE(read->ended()); });
      EXPECT_EQ(world.gpu(0).comms->load().rings, 1u);
      nccl_standin::Set({});
    }
    ASSERT_TRUE(world.Until([&] { return read->ended(); }));
    EXPECT_TRUE(read->ends[0].ok()) << read->ends[0];
    EXPECT_EQ(world.gpu(0).comms->load().rings, comms_max);
    nccl_standin::Set({});
    ASSERT_TRUE(world.Until([&] { return world.gpu(0).comms->load().aborting == 0; }));
    peer.ExpectReads();
    EXPECT_EQ(world.gpu(0).comms->load().rings, comms_max);
  }
}

TEST(NcclTroubleTest, ErrorsOfNcclEndReadsAndTheNextMakeANewCommunicator) {
  NcclWorld world;
  NcclPair pair(world);
  pair.ExpectReads();
  nccl_standin::Set({.group_end_error = 3});
  pair.ExpectFails(StatusCode::kUnavailable, "moving a slot: internal error (3)");
  nccl_standin::Set({});
  pair.ExpectReads();
  world.On([&] { EXPECT_TRUE(pair.closed.empty()); });
}

TEST(NcclTroubleTest, ACommunicatorThatCannotBeMadeEndsBothLinks) {
  NcclWorld world;
  NcclPair pair(world);
  nccl_standin::Set({.init_error = 2});
  pair.ExpectFails(StatusCode::kUnavailable, "joining the peer: unhandled system error (2)");
  EXPECT_TRUE(world.Until([&] { return pair.closed.size() == 2; }));
  for (const absl::Status& status : pair.closed) EXPECT_TRUE(absl::IsUnavailable(status)) << status;
}

TEST(NcclTroubleTest, AnAbortThatNeverReturnsMakesTheGpuUnhealthy) {
  NcclWorld world({.abort_max = milliseconds(100)});
  {
    NcclPair pair(world);
    pair.ExpectReads();
    nccl_standin::Set({.group_end_error = 3, .abort_hangs = true});
    pair.ExpectFails(StatusCode::kUnavailable, "moving a slot: internal error (3)");
    ASSERT_TRUE(world.Until([&] { return !world.gpu(0).comms->health().ok(); }));
    const absl::Status health = world.gpu(0).comms->health();
    EXPECT_EQ(health,
              absl::InternalError("nccl: an abort has not returned after 100 ms; the process "
                                  "has to start again"));
    pair.ExpectFails(StatusCode::kUnavailable, "an abort has not returned");
    world.On([&] {
      SegmentTable table;
      EXPECT_EQ(MakeNcclLink(world.real_loop(), UniqueFd(), table, {world.gpu(0).comms.get()}, {})
                    .status(),
                absl::UnavailableError(health.message()));
    });
  }
}

TEST(NcclTroubleTest, AGpuThatFailsIsUnhealthy) {
  NcclWorld world({}, {}, 0);
  {
    NcclPair pair(world);
    pair.ExpectReads();
    DeviceRead read(world, 0, pair.b, 3, 100000);
    cuda_standin::Change({.synchronizes = 0});
    world.On([&] { read.Begin(*pair.to_b, world.loop().Now() + seconds(25)); });
    EXPECT_TRUE(world.Until([&] { return read.ended(); }));
    EXPECT_TRUE(absl::IsUnavailable(read.ends.at(0))) << read.ends[0];
    EXPECT_TRUE(absl::IsInternal(world.gpu(1).comms->health()));
  }
  cuda_standin::Change({});
}

TEST(NcclTroubleTest, AllCommunicatorsInUseIsToldAfterADeadline) {
  NcclWorld world({.comms_max = 1, .open_max = milliseconds(200)});
  FakePeer peer(world);
  peer.ExpectReads();
  peer.posts = false;
  const auto stuck = peer.Read();
  ASSERT_TRUE(world.Until([&] { return peer.seen(Type::kReady) == 2; }));
  NcclPair pair(world);
  pair.ExpectFails(StatusCode::kUnavailable, "all 1 communicators are in use");
}

TEST(NcclTroubleTest, CancelsOnLanesThatAreNoneAreIgnored) {
  NcclWorld world;
  FakePeer peer(world);
  world.On([&] { peer.SayBytes(FrameType::kCancel, std::uint64_t{1} << 48 | 5, {}); });
  peer.ExpectReads();
  world.On([&] { EXPECT_TRUE(peer.closed.empty()); });
}

TEST(NcclTroubleTest, WhatAPeerMayAskForIsCountedOverAllLanes) {
  NcclWorld world;
  FakePeer peer(world);
  peer.joins = false;  // So that all of it waits.
  world.On([&] {
    const std::vector<ByteRun> runs = {{0, 0, 16}};
    const std::vector<Unit> units = {{.from = 0, .to = nullptr, .runs = runs}};
    const std::vector<std::byte> read = ReadRequest::Encode(peer.Offered(), units);
    for (std::uint64_t i = 1; i <= 257; ++i) peer.SayBytes(FrameType::kRead, i % 3 << 48 | i, read);
  });
  ASSERT_TRUE(world.Until([&] { return !peer.closed.empty(); }));
  EXPECT_EQ(peer.closed[0], absl::InvalidArgumentError("the peer asks for read 257 beside 256 "
                                                       "others: it is one of them, or one too "
                                                       "many"));
}

TEST(NcclTroubleTest, WhoBreaksTheProtocolIsCutOff) {
  struct Case {
    const char* name;
    const char* want;
    FrameType type;
    std::uint64_t id;
    std::vector<std::byte> payload;
  };
  const auto frame = [](const NcclFrame& f) { return f.Encode(); };
  const std::vector<std::byte> junk(10, std::byte{0x5a});
  const std::vector<std::byte> read = ReadRequest::Encode(SegmentId{1}, {});
  const Case cases[] = {
      {"junk", "a malformed frame of kind nccl", FrameType::kNccl, 0, junk},
      {"data", "data on a socket", FrameType::kData, 1, junk},
      {"a request of junk", "a read request", FrameType::kRead, 1, junk},
      {"the end of nothing", "was not under way", FrameType::kEnd, 9,
       EncodeEnd(absl::NotFoundError("x"))},
      {"opens as rank 1", "does not fit", FrameType::kNccl, 0, frame({.type = Type::kOpen})},
      {"closes twice", "does not fit", FrameType::kNccl, 0, frame({.type = Type::kClosed})},
      {"closes nothing", "answers on lane 0, which is none of the 0", FrameType::kNccl, 0,
       frame({.type = Type::kClosed})},
      {"answers on another lane", "answers on lane 1, which is none of the 1", FrameType::kNccl, 0,
       frame({.type = Type::kOpened, .lane = 1})},
      {"ends a read on another lane", "answers on lane 1, which is none of the 1", FrameType::kEnd,
       std::uint64_t{1} << 48, EncodeEnd(absl::NotFoundError("x"))},
      {"reads from no GPU", "of GPU 1 here, where there are 1", FrameType::kRead,
       std::uint64_t{1} << 56, read},
      {"speaks of no GPU here", "of GPU 1 here, where there are 1", FrameType::kNccl, 0,
       frame({.type = Type::kOpened, .lane = 0x0100})},
      {"speaks of no GPU of its own", "of its GPU 64", FrameType::kNccl, 0,
       frame({.type = Type::kOpened, .lane = 0x0040})},
      {"opened, twice", "does not fit", FrameType::kNccl, 0, frame({.type = Type::kOpened})},
      {"an answer to nothing", "answers slot 7, but none", FrameType::kNccl, 0,
       frame({.type = Type::kSkip, .number = 7})},
      {"ready for nothing", "answers slot 7, but none", FrameType::kNccl, 0,
       frame({.type = Type::kReady, .number = 7})},
      {"orders as rank 1", "not its to post", FrameType::kNccl, 0,
       frame({.type = Type::kGo, .number = 0, .order = 1})},
      {"bytes nobody asked for", "did not ask", FrameType::kNccl, 0,
       frame({.type = Type::kPacked, .number = 1, .read = 99, .bytes = 1})},
      {"too many bytes", "did not ask", FrameType::kNccl, 0,
       frame({.type = Type::kPacked, .number = 1, .read = 2, .bytes = 100001})},
      {"another number", "offers 1 bytes as slot 5", FrameType::kNccl, 0,
       frame({.type = Type::kPacked, .number = 5, .read = 2, .bytes = 1})},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    NcclWorld world;
    FakePeer peer(world);
    const std::string name = c.name;
    // Open, unless the frame would fit then.
    if (name != "closes nothing") peer.ExpectReads();
    std::unique_ptr<DeviceRead> other;
    world.On([&] {
      peer.joins = false;
      peer.posts = false;
      peer.says_closed = false;
    });
    if (c.want == std::string("did not ask") || name == "another number") {
      world.On([&] { peer.keeps_reads = true; });
      other = peer.Read();
    }
    world.On([&] {
      if (name == "closes twice") peer.SayBytes(c.type, c.id, c.payload);
      peer.SayBytes(c.type, c.id, c.payload);
    });
    ASSERT_TRUE(world.Until([&] { return !peer.closed.empty(); }));
    EXPECT_EQ(peer.closed[0].code(), StatusCode::kInvalidArgument) << peer.closed[0];
    EXPECT_NE(peer.closed[0].message().find(c.want), absl::string_view::npos) << peer.closed[0];
    if (other != nullptr) {
      ASSERT_EQ(other->ends.size(), 1u);
      EXPECT_TRUE(absl::IsUnavailable(other->ends[0])) << other->ends[0];
      peer.ExpectUntouched(*other);
    }
  }
}

}  // namespace
}  // namespace penstock::transfer
