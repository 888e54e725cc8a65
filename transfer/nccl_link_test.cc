// SPDX-License-Identifier: Apache-2.0
// What is special about links of kind nccl while all goes well; link_test.cc has what holds for
// all.
#include "transfer/nccl_link.h"

#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "device/nccl_standin.h"
#include "transfer/endpoint_testing.h"
#include "transfer/nccl_pair_testing.h"
#include "transfer/socket_address.h"

namespace penstock::transfer {
namespace {

using absl::StatusCode;
using std::chrono::milliseconds;
using std::chrono::seconds;

TEST(NcclLinkTest, DeviceMemoryGoesBothWaysAtOnce) {
  for (const bool rendezvous : {false, true}) {
    SCOPED_TRACE(rendezvous);
    NcclWorld world;
    nccl_standin::Set({.rendezvous = rendezvous});
    NcclPair pair(world);
    for (int round = 0; round < 3; ++round) {
      // More than all slots hold; units that are cut, too.
      DeviceRead at_a(world, 0, pair.b, 13, 300001), at_b(world, 1, pair.a, 40, 77777);
      pair.ReadBoth(at_a, at_b);
      EXPECT_TRUE(at_a.ends[0].ok()) << at_a.ends[0];
      EXPECT_TRUE(at_b.ends[0].ok()) << at_b.ends[0];
      EXPECT_EQ(world.Bytes(0, *at_a.target), at_a.want);
      EXPECT_EQ(world.Bytes(1, *at_b.target), at_b.want);
    }
    EXPECT_EQ(nccl_standin::Now().misuses, 0) << nccl_standin::Now().last_fault;
  }
}

TEST(NcclLinkTest, TheCommunicatorComesWithTheFirstReadAndGoesWithTheLink) {
  NcclWorld world;
  {
    NcclPair pair(world);
    world.On([&] {
      EXPECT_EQ(pair.to_b->Describe(), "nccl , no communicator");
      const std::byte byte{1};
      EXPECT_TRUE(pair.to_a->Send({&byte, 1}).ok());
    });
    ASSERT_TRUE(world.Until([&] { return pair.messages == 1; }));
    EXPECT_EQ(world.gpu(0).comms->load().comms, 0u);
    pair.ExpectReads();
    pair.ExpectReads();
    world.On([&] { EXPECT_EQ(pair.to_b->Describe(), "nccl , communicator open"); });
    for (const std::size_t i : {0, 1}) {
      EXPECT_EQ(world.gpu(i).comms->load().comms, 1u);
      EXPECT_EQ(world.gpu(i).comms->load().rings, 1u);
    }
  }
  ASSERT_TRUE(world.Until([&] { return nccl_standin::Now().comms == 0; }));
  EXPECT_EQ(nccl_standin::Now().registrations, 0);
}

TEST(NcclLinkTest, ReadsCancelledAnywhereLeaveTheOthersAlone) {
  NcclWorld world;
  NcclPair pair(world);
  std::vector<std::unique_ptr<DeviceRead>> reads;
  for (int i = 0; i < 12; ++i) {
    reads.push_back(std::make_unique<DeviceRead>(world, 0, pair.b, 7, 100000));
  }
  world.On([&] {
    for (auto& read : reads) read->Begin(*pair.to_b, world.loop().Now() + seconds(25));
  });
  // One after another, while those before them are on their way.
  for (std::size_t i = 0; i < reads.size(); i += 3) {
    ASSERT_TRUE(world.Until([&] { return i == 0 || reads[i - 1]->ended(); }));
    world.On([&] { pair.to_b->Cancel(reads[i]->id); });
  }
  ASSERT_TRUE(world.Until([&] { return pair.to_b->reads_pending() == 0; }));
  for (std::size_t i = 0; i < reads.size(); ++i) {
    SCOPED_TRACE(i);
    const absl::Status& end = reads[i]->ends.at(0);
    EXPECT_TRUE(end.ok() || (i % 3 == 0 && absl::IsCancelled(end))) << end;
    if (end.ok()) {
      EXPECT_EQ(world.Bytes(0, *reads[i]->target), reads[i]->want);
    }
  }
  pair.ExpectReads();
}

TEST(NcclLinkTest, WithdrawnSegmentsAreNotReadAnyMore) {
  NcclWorld world;
  NcclPair pair(world);
  DeviceRead first(world, 0, pair.b, 30, 100000), second(world, 0, pair.b, 30, 100000);
  world.On([&] {
    first.Begin(*pair.to_b, world.loop().Now() + seconds(25));
    second.Begin(*pair.to_b, world.loop().Now() + seconds(25));
  });
  ASSERT_TRUE(world.Until([&] { return nccl_standin::Now().comms == 2; }));
  world.On([&] { pair.b.table.Withdraw(pair.b.id); });
  pair.b.memory.reset();
  ASSERT_TRUE(world.Until([&] { return first.ended() && second.ended(); }));
  EXPECT_TRUE(absl::IsNotFound(second.ends[0])) << second.ends[0];
}

TEST(NcclLinkTest, FewerCommunicatorsThanPairsAreShared) {
  NcclWorld world({.comms_max = 2}, {.comms_max = 2});
  std::vector<std::unique_ptr<NcclPair>> pairs;
  for (int i = 0; i < 4; ++i) pairs.push_back(std::make_unique<NcclPair>(world));
  for (int round = 0; round < 3; ++round) {
    for (const auto& pair : pairs) {
      pair->ExpectReads();
      EXPECT_LE(world.gpu(0).comms->load().comms, 2u);
      EXPECT_LE(world.gpu(0).comms->load().rings, 2u);
    }
  }
}

TEST(NcclLinkTest, OnlyThisKindServesDeviceMemory) {
  NcclWorld world;
  const DeviceSegment segment(world, 0, 1000, 1);
  world.On([&] {
    EXPECT_EQ(segment.table.Find(segment.id), nullptr);
    EXPECT_NE(segment.table.FindOn(0, segment.id), nullptr);
    EXPECT_EQ(segment.table.FindOn(1, segment.id), nullptr);
  });
}

// ---- Endpoints, and a peer in another process.

struct Own {
  Own(EpollLoop& l, Endpoint::Options options) : loop(l) {
    loop.Run([&] {
      endpoint = Endpoint::Make(
                     loop, std::move(options), [](auto) {}, [](const absl::Status&) {})
                     .value();
    });
  }
  ~Own() {
    loop.Run([&] {
      channel.reset();
      endpoint.reset();
    });
  }
  EpollLoop& loop;
  std::unique_ptr<Endpoint> endpoint;
  std::unique_ptr<Channel> channel;
  std::vector<absl::Status> closed, failed;
};

class NcclProcessTest : public testing::TestWithParam<bool> {
 protected:
  void Connect() {
    nccl_standin::Set({.silent_death = GetParam()});
    Endpoint::Options options = PeerOptions("own", folder_.path(), "nccl");
    options.nccl = {world_.gpu(0).comms.get()};
    own_ = std::make_unique<Own>(world_.real_loop(), std::move(options));
    world_.On([&] {
      own_->endpoint->Connect(peer_.peer(), peer_.address(), [&](auto channel) {
        if (!channel.ok()) return own_->failed.push_back(channel.status());
        own_->channel = *std::move(channel);
        own_->channel->Start(
            {.on_message = [](auto) {}, .on_closed = [&](auto& s) { own_->closed.push_back(s); }});
      });
    });
    ASSERT_TRUE(world_.Until([&] { return own_->channel != nullptr || !own_->failed.empty(); }));
    ASSERT_TRUE(own_->failed.empty()) << own_->failed[0];
  }
  void Begin(DeviceRead& read) {
    world_.On([&] { read.Begin(*own_->channel, world_.loop().Now() + seconds(25)); });
  }

  static constexpr std::size_t kBytes = std::size_t{4} << 20;
  TemporaryFolder folder_;
  PeerProcess peer_{FolderOfThisProgram(), "peer", folder_.path(), "nccl", kBytes};
  NcclWorld world_{{.move_max = milliseconds(300)}};
  // As the peer's, of which it is a copy.
  std::unique_ptr<DeviceSegment> Theirs() {
    auto segment = std::make_unique<DeviceSegment>(world_, 0, kBytes, 1);
    for (std::size_t i = 0; i < kBytes; ++i) segment->bytes[i] = PeerByte(i);
    segment->id = peer_.segment();
    return segment;
  }
  std::unique_ptr<Own> own_;
};

TEST_P(NcclProcessTest, BytesComeFromAnotherProcess) {
  ASSERT_NO_FATAL_FAILURE(Connect());
  const std::vector<Route> routes = ParseRoutes(peer_.address()).value();
  ASSERT_EQ(routes.size(), 1u);
  ASSERT_EQ(routes[0].gpus.size(), 1u);
  EXPECT_TRUE(routes[0].gpus[0].ends_with("-0000.01.00.0")) << routes[0].gpus[0];
  EXPECT_EQ(FormatRoutes(routes), peer_.address());
  const auto theirs = Theirs();
  DeviceRead read(world_, 0, *theirs, 41, 100000);
  Begin(read);
  ASSERT_TRUE(world_.Until([&] { return read.ended(); }));
  EXPECT_TRUE(read.ends[0].ok()) << read.ends[0];
  EXPECT_EQ(world_.Bytes(0, *read.target), read.want);
}

TEST_P(NcclProcessTest, APeerKilledInMidTransferEndsItsReadsOnly) {
  ASSERT_NO_FATAL_FAILURE(Connect());
  const auto theirs = Theirs();
  std::vector<std::unique_ptr<DeviceRead>> reads;
  for (int i = 0; i < 30; ++i) {
    reads.push_back(std::make_unique<DeviceRead>(world_, 0, *theirs, 41, 100000));
    Begin(*reads.back());
  }
  ASSERT_TRUE(world_.Until([&] { return reads[1]->ended(); }));
  peer_.Kill();
  ASSERT_TRUE(world_.Until([&] { return !own_->closed.empty(); }));
  EXPECT_TRUE(absl::IsUnavailable(own_->closed[0])) << own_->closed[0];
  for (const auto& read : reads) {
    ASSERT_EQ(read->ends.size(), 1u);
    EXPECT_TRUE(read->ends[0].ok() || absl::IsUnavailable(read->ends[0])) << read->ends[0];
    if (read->ends[0].ok()) {
      EXPECT_EQ(world_.Bytes(0, *read->target), read->want);
    }
  }
  EXPECT_TRUE(absl::IsUnavailable(reads.back()->ends[0]));
  ASSERT_TRUE(world_.Until([&] { return world_.gpu(0).comms->load().comms == 0; }));
  EXPECT_TRUE(world_.gpu(0).comms->health().ok());
}

INSTANTIATE_TEST_SUITE_P(Deaths, NcclProcessTest, testing::Bool(),
                         [](const auto& test) { return test.param ? "silent" : "told"; });

// Two endpoints, each with a GPU of the world.
struct NcclEndpoints {
  NcclEndpoints(NcclWorld& world, const std::string& kinds)
      : a(world.real_loop(), Of(world, 0, kinds)), b(world.real_loop(), Of(world, 1, kinds)) {}
  Endpoint::Options Of(NcclWorld& world, std::size_t i, const std::string& kinds) const {
    Endpoint::Options options = PeerOptions(i == 0 ? "a" : "b", folder.path(), kinds);
    options.nccl = {world.gpu(i).comms.get()};
    return options;
  }
  // From a to b, on the loop.
  void Connect(Endpoint::Connected done, std::optional<Kind> without = {}) {
    a.endpoint->Connect({"b", 1}, b.endpoint->address(), std::move(done), without);
  }
  TemporaryFolder folder;
  Own a, b;
};

// Of workers on several GPUs a pair that shares one of them has another kind for all.
TEST(NcclEndpointTest, WorkersThatShareOneOfTheirGpusTakeTheNextKind) {
  for (const bool shared : {true, false}) {
    SCOPED_TRACE(shared);
    NcclWorld world(2, 1);
    const TemporaryFolder folder;
    const auto of = [&](const char* name, std::initializer_list<std::size_t> gpus) {
      Endpoint::Options options = PeerOptions(name, folder.path(), "nccl,tcp");
      for (const std::size_t gpu : gpus) options.nccl.push_back(world.gpu(gpu).comms.get());
      return options;
    };
    Own a(world.real_loop(), of("a", {0, 1}));
    Own b(world.real_loop(), shared ? of("b", {2, 1}) : of("b", {2}));
    const std::vector<Route> routes = ParseRoutes(a.endpoint->address()).value();
    EXPECT_EQ(routes[0].gpus.size(), 2u);
    EXPECT_EQ(FormatRoutes(routes), a.endpoint->address());
    std::unique_ptr<Channel> got;
    world.On([&] {
      a.endpoint->Connect({"b", 1}, b.endpoint->address(),
                          [&](auto channel) { got = std::move(channel).value(); });
    });
    ASSERT_TRUE(world.Until([&] { return got != nullptr; }));
    EXPECT_EQ(got->kind(), shared ? Kind::kTcp : Kind::kNccl);
    world.On([&] { got.reset(); });
  }
}

// Two processes on one GPU, or two that have not found each other over NCCL, take the next kind.
TEST(NcclEndpointTest, ThoseWhoCannotHaveItTakeTheNextKind) {
  for (const bool one_gpu : {true, false}) {
    SCOPED_TRACE(one_gpu);
    NcclWorld world({}, {}, one_gpu ? 0 : 1);
    NcclEndpoints ends(world, "nccl,tcp");
    const auto connect = [&](std::optional<Kind> without) {
      std::unique_ptr<Channel> got;
      world.On(
          [&] { ends.Connect([&](auto channel) { got = std::move(channel).value(); }, without); });
      EXPECT_TRUE(world.Until([&] { return got != nullptr; }));
      const Kind kind = got->kind();
      world.On([&] { got.reset(); });
      return kind;
    };
    EXPECT_EQ(connect({}), one_gpu ? Kind::kTcp : Kind::kNccl);
    EXPECT_EQ(connect(Kind::kNccl), Kind::kTcp);
  }
}

TEST(NcclEndpointTest, UnlikeReleasesAreRefused) {
  NcclWorld world({}, {.slot_bytes = 1000});
  NcclEndpoints ends(world, "nccl");
  absl::Status end;
  world.On([&] { ends.Connect([&](auto channel) { end = channel.status(); }); });
  ASSERT_TRUE(world.Until([&] { return !end.ok(); }));
  EXPECT_EQ(end,
            absl::FailedPreconditionError(
                "NCCL is 2.28.9, slots of 262144 bytes here, 2.28.9, slots of 1000 bytes at b"));
}

}  // namespace
}  // namespace penstock::transfer
