// SPDX-License-Identifier: Apache-2.0
// Pairs are measured between a HandoffSender and a HandoffReceiver, over links of every kind and over
// ones with faults.
#include "transfer/pair_meter.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "transfer/fault_link.h"
#include "transfer/handoff_receiver.h"
#include "transfer/handoff_sender.h"
#include "transfer/link_testing.h"

namespace penstock::transfer {
namespace {

using absl::StatusCode;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr std::int32_t kLayers = 3;
constexpr std::int32_t kBlockTokens = 32;
constexpr std::size_t kMiB = std::size_t{1} << 20;

// One worker's pool, of two slabs.
struct Pool {
  // `heads` of 64 values in F16: 8 KiB of each layer of a block.
  Pool(LinkWorld& world, std::int32_t heads, std::int32_t page_tokens) {
    KvGroup group;
    group.cache_layers = kLayers;
    group.kv_heads = heads;
    group.k_dim = group.v_dim = 64;
    group.dtype = KvDtype::kF16;
    side.layout = *PageLayout::Make(group, kBlockTokens, page_tokens);
    block_bytes = side.layout.block_bytes();
    SegmentTable::Segment segment;
    data = world.Memory(2 * block_bytes, segment);
    for (std::size_t i = 0; i < 2 * block_bytes; ++i) data[i] = static_cast<std::byte>(i * 7 / 3);
    groups = {{.segment = table.Register(segment), .slab_bytes = block_bytes, .side = side}};
  }
  SegmentTable table;
  SideLayout side;
  std::size_t block_bytes = 0;
  std::byte* data = nullptr;
  std::vector<PoolGroup> groups;
};

struct Worker {
  Worker(LinkWorld& world, std::int32_t heads, std::int32_t page_tokens)
      : pool(world, heads, page_tokens),
        sender(std::make_unique<HandoffSender>(world.loop(), pool.groups,
                                               std::vector<const std::byte*>{pool.data}, nullptr)),
        turns(std::make_unique<LinkTurns>(world.loop(), nullptr)),
        receiver(std::make_unique<HandoffReceiver>(world.loop(), *turns, pool.groups,
                                                   HandoffReceiver::Options(), nullptr)) {}
  Pool pool;
  std::unique_ptr<HandoffSender> sender;
  std::unique_ptr<LinkTurns> turns;
  std::unique_ptr<HandoffReceiver> receiver;
};

// Some workers, all of them on one loop.
class Cluster {
 public:
  explicit Cluster(std::unique_ptr<LinkWorld> world, std::int32_t heads = 4)
      : world_(std::move(world)), heads_(heads) {}
  ~Cluster() {
    world_->On([&] {
      for (const auto& worker : workers_) {  // Links watch the tables of both their ends.
        worker->sender.reset();
        worker->receiver.reset();
      }
      workers_.clear();
    });
  }
  Worker& Add(std::int32_t page_tokens) {
    world_->On([&] { workers_.push_back(std::make_unique<Worker>(*world_, heads_, page_tokens)); });
    return *workers_.back();
  }
  // The end of `from`; the other one's is in `far`.
  Channel& Connect(Worker& from, Worker& to, const FaultPlan& faults, Channel** far) {
    Channel* near = nullptr;
    world_->On([&] {
      auto [first, second] = world_->Connect(from.pool.table, to.pool.table);
      auto accepted =
          std::make_unique<Channel>(world_->loop(), Peer{"from", 1},
                                    MakeFaultLink(world_->loop(), std::move(second), faults));
      *far = accepted.get();
      to.receiver->AddPeer(std::move(accepted));
      near = &from.sender->AddPeer(
          std::make_unique<Channel>(world_->loop(), Peer{"to", 1}, std::move(first)));
    });
    return *near;
  }
  // A preflight, as a prefill worker does it.
  void Try(Worker& from, Channel& channel, std::uint64_t number, Duration within,
           std::optional<HandoffSender::Outcome>* outcome) {
    world_->On([&] {
      const Grant grant = {1, kProbeGrant | number};
      const MonoTime now = world_->loop().Now();
      from.sender->Begin(grant, channel, now + seconds(20),
                         [outcome](const HandoffSender::Outcome& o) { *outcome = o; });
      from.sender->Measure(grant, now + within);
      for (std::int32_t layer = 0; layer < kLayers; ++layer) {
        from.sender->Tell(grant, {.cache_layer = layer, .slabs = {1}});
      }
    });
  }
  bool Until(const std::function<bool()>& done) { return world_->Until(done); }
  LinkWorld& world() { return *world_; }

 private:
  const std::unique_ptr<LinkWorld> world_;
  const std::int32_t heads_;
  std::vector<std::unique_ptr<Worker>> workers_;
};

class PairMeterTest : public testing::TestWithParam<NamedWorld> {};

TEST_P(PairMeterTest, APairIsMeasured) {
  Cluster cluster(GetParam().make());
  Worker& from = cluster.Add(8);
  Worker& to = cluster.Add(32);
  Channel* far = nullptr;
  Channel& channel = cluster.Connect(from, to, {}, &far);
  for (std::uint64_t round = 1; round < 3; ++round) {
    std::optional<HandoffSender::Outcome> outcome;
    const std::int64_t before = far->stats().bytes_read;
    cluster.Try(from, channel, round << 10, seconds(9), &outcome);
    ASSERT_TRUE(cluster.Until([&] { return outcome.has_value(); }));
    EXPECT_TRUE(outcome->status.ok()) << outcome->status;
    EXPECT_GT(outcome->figures.bytes_per_s, 0);
    EXPECT_GE(outcome->figures.round_trip, Duration());
    cluster.world().On([&] {
      // The first block and the first part at least; never more than is said.
      const auto moved = static_cast<std::size_t>(far->stats().bytes_read - before);
      EXPECT_GE(moved, to.pool.block_bytes);
      EXPECT_LE(moved, to.pool.block_bytes + kProbeBytesMax);
      EXPECT_EQ(from.sender->handoffs(), 0);
      EXPECT_EQ(to.receiver->handoffs(), 0);
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, PairMeterTest, testing::ValuesIn(AllWorlds()),
                         [](const auto& of) { return of.param.name; });

// Over links with faults under a virtual clock.
struct Faulty {
  explicit Faulty(const FaultPlan& faults, std::int32_t heads = 4)
      : cluster(MakeInprocWorld(), heads),
        from(cluster.Add(8)),
        to(cluster.Add(32)),
        channel(cluster.Connect(from, to, faults, &far)),
        begun(cluster.world().loop().Now()) {}
  const HandoffSender::Outcome& Run(Duration within = seconds(9)) {
    cluster.Try(from, channel, 1 << 10, within, &outcome);
    EXPECT_TRUE(cluster.Until([&] { return outcome.has_value(); }));
    took = cluster.world().loop().Now() - begun;
    moved = outcome->status.ok() ? static_cast<std::size_t>(far->stats().bytes_read) : 0;
    EXPECT_EQ(from.sender->handoffs(), 0);
    // What was called off there ends there, too.
    EXPECT_TRUE(cluster.Until([&] { return to.receiver->handoffs() == 0; }));
    return *outcome;
  }
  Cluster cluster;
  Worker& from;
  Worker& to;
  Channel* far = nullptr;
  Channel& channel;
  const MonoTime begun;
  std::optional<HandoffSender::Outcome> outcome;
  Duration took{};
  std::size_t moved = 0;
};

TEST(PairMeterFaultTest, AFastLinkGetsAllOfIt) {
  Faulty pair({});
  ASSERT_TRUE(pair.Run().status.ok());
  EXPECT_GT(pair.moved, 8 * kMiB - 2 * pair.to.pool.block_bytes);
  EXPECT_LE(pair.moved, 8 * kMiB + pair.to.pool.block_bytes);
}

TEST(PairMeterFaultTest, ASlowLinkIsMeasuredInBoundedTimeAndBytes) {
  // Each message and each read of 4 MiB at most takes up to that long.
  Faulty messages({.seed = 1, .delay_message = 1, .delay_max = milliseconds(8)});
  const PairFigures slow = messages.Run().figures;
  EXPECT_GT(slow.round_trip, Duration());
  EXPECT_LE(slow.round_trip, milliseconds(8));
  EXPECT_GT(slow.bytes_per_s, static_cast<double>(256 << 10) / 0.008 / 2);

  Faulty reads({.seed = 1, .delay_read = 1, .delay_max = milliseconds(400)});
  const PairFigures slower = reads.Run().figures;
  EXPECT_GT(slower.bytes_per_s, static_cast<double>(128 << 10) / 0.4);
  EXPECT_LT(slower.bytes_per_s, 1e8);
  EXPECT_LE(reads.moved, reads.to.pool.block_bytes + (2 * kMiB));
  EXPECT_LT(reads.took, seconds(2));
}

TEST(PairMeterFaultTest, WhatTakesTooLongIsNotWaitedFor) {
  // Each of its parts takes hours, once the first block is there.
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    SCOPED_TRACE("seed=" + std::to_string(seed));
    Faulty pair({.seed = seed, .delay_read = 0.2, .delay_max = std::chrono::hours(1)});
    pair.Run();
    if (!pair.outcome->status.ok()) {  // That block itself: as ever.
      EXPECT_EQ(pair.outcome->status.code(), StatusCode::kDeadlineExceeded);
      continue;
    }
    EXPECT_LT(pair.took, seconds(2));
  }
}

TEST(PairMeterFaultTest, WithoutTimeThereAreNoFigures) {
  Faulty pair({.seed = 1, .delay_message = 1});
  const HandoffSender::Outcome& outcome = pair.Run(Duration());
  EXPECT_TRUE(outcome.status.ok()) << outcome.status;
  EXPECT_EQ(outcome.figures.bytes_per_s, 0);
}

TEST(PairMeterFaultTest, CorruptBytesFailThePreflight) {
  Faulty always({.corrupt_read = 1});
  EXPECT_EQ(always.Run().status.code(), StatusCode::kDataLoss);
  int good = 0, while_measured = 0;
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    SCOPED_TRACE("seed=" + std::to_string(seed));
    // A read is tried three times.
    Faulty pair({.seed = seed, .corrupt_read = 0.4});
    const HandoffSender::Outcome& outcome = pair.Run();
    if (outcome.status.ok()) {
      ++good;
      EXPECT_GT(outcome.figures.bytes_per_s, 0);
      continue;
    }
    EXPECT_EQ(outcome.status.code(), StatusCode::kDataLoss) << outcome.status;
    if (outcome.figures.round_trip > Duration() || outcome.figures.bytes_per_s > 0)
      ++while_measured;
  }
  EXPECT_GT(good, 10);
  EXPECT_GT(while_measured, 10);
}

TEST(PairMeterFaultTest, WhateverHappensItEnds) {
  int good = 0;
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE("seed=" + std::to_string(seed));
    Faulty pair({.seed = seed,
                 .drop_message = 0.02,
                 .delay_message = 0.3,
                 .duplicate_message = 0.2,
                 .corrupt_message = 0.01,
                 .delay_read = 0.3,
                 .corrupt_read = 0.1,
                 .disconnect = seed % 3 == 0 ? 0.02 : 0});
    if (pair.Run().status.ok()) ++good;
    EXPECT_LE(pair.moved, pair.to.pool.block_bytes + kProbeBytesMax);
    if (HasFailure()) return;
  }
  EXPECT_GT(good, 100);
}

TEST(PairMeterFaultTest, ABlockThatIsMoreThanAllMovesOnceMore) {
  Faulty pair({}, /*heads=*/400);
  ASSERT_GT(pair.to.pool.block_bytes, kProbeBytesMax);
  ASSERT_TRUE(pair.Run().status.ok());
  EXPECT_EQ(pair.moved, 2 * pair.to.pool.block_bytes);
}

TEST(PairMeterFaultTest, PairsOfOneWorkerTakeTurns) {
  // Two that send to two: every one of the four pairs is measured, though each receiver takes one at
  // a time.
  Cluster cluster(MakeInprocWorld());
  std::vector<Worker*> workers;
  for (int i = 0; i < 4; ++i) workers.push_back(&cluster.Add(8));
  std::vector<std::optional<HandoffSender::Outcome>> outcomes(4);
  std::vector<Channel*> far(4);
  for (std::size_t i = 0; i < 4; ++i) {
    Worker& from = *workers[i / 2];
    Channel& channel =
        cluster.Connect(from, *workers[2 + i % 2],
                        {.seed = i, .delay_read = 1, .delay_max = milliseconds(5)}, &far[i]);
    cluster.Try(from, channel, (i + 1) << 10, seconds(9), &outcomes[i]);
  }
  ASSERT_TRUE(cluster.Until(
      [&] { return std::ranges::all_of(outcomes, [](const auto& o) { return o.has_value(); }); }));
  for (const auto& outcome : outcomes) {
    EXPECT_TRUE(outcome->status.ok()) << outcome->status;
    EXPECT_GT(outcome->figures.bytes_per_s, 0);
  }
}

// A peer that asks for more than it may.
TEST(PairMeterFaultTest, AReceiverTakesNoMoreThanItSays) {
  Cluster cluster(MakeInprocWorld());
  Worker& to = cluster.Add(8);
  Pool& theirs = cluster.Add(8).pool;
  auto [first, second] = cluster.world().Connect(theirs.table, to.pool.table);
  to.receiver->AddPeer(
      std::make_unique<Channel>(cluster.world().loop(), Peer{"from", 1}, std::move(second)));
  Channel channel(cluster.world().loop(), Peer{"to", 1}, std::move(first));
  std::vector<HandoffMessage> got;
  channel.Start(
      {.on_message = [&](auto bytes) { got.push_back(*Decode(bytes)); }, .on_closed = {}});
  const auto ready = [&](std::uint64_t number, std::size_t blocks) {
    return ReadyMessage{.grant = {1, kProbeGrant | number},
                        .blocks = std::vector<ReadyMessage::Block>(blocks)};
  };
  const std::size_t most = kProbeBytesMax / to.pool.block_bytes;
  ASSERT_TRUE(channel.Send(Encode(PoolMessage{theirs.groups})).ok());
  for (const ReadyMessage& message :
       {ready(1, most + 1), ready(2, most), ready(3, 2), ready(4, 0)}) {
    ASSERT_TRUE(channel.Send(Encode(message)).ok());
  }
  ASSERT_TRUE(cluster.Until([&] { return got.size() == 4; }));
  const auto& too_much = std::get<FailedMessage>(got[1]);
  EXPECT_EQ(too_much.grant.number, kProbeGrant | 1);
  EXPECT_EQ(too_much.status.code(), StatusCode::kInvalidArgument) << too_much.status;
  const auto& another = std::get<FailedMessage>(got[2]);
  EXPECT_EQ(another.grant.number, kProbeGrant | 3);
  EXPECT_EQ(another.status.code(), StatusCode::kResourceExhausted) << another.status;
  EXPECT_EQ(std::get<ReceivedMessage>(got[3]).grant.number, kProbeGrant | 4);
  EXPECT_EQ(to.receiver->handoffs(), 1);
}

}  // namespace
}  // namespace penstock::transfer
