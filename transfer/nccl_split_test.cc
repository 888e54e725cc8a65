// SPDX-License-Identifier: Apache-2.0
// Handoffs over kind nccl between workers on several GPUs each, however those are split.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "device/nccl_standin.h"
#include "transfer/fault_link.h"
#include "transfer/gpu_sums.h"
#include "transfer/handoff_receiver.h"
#include "transfer/handoff_sender.h"
#include "transfer/nccl_pair_testing.h"

namespace penstock::transfer {
namespace {

using std::chrono::seconds;

constexpr std::int32_t kLayers = 3;
constexpr std::uint32_t kSlabs = 5;

struct Shape {
  std::int32_t stages, shards;
  std::size_t gpus() const { return static_cast<std::size_t>(stages * shards); }
};

// One worker's pool, in parts on its GPUs. What the host would see of it are whole slabs.
struct SplitPool {
  SplitPool(NcclWorld& world, std::size_t first_gpu, std::int32_t heads, const Shape& shape,
            std::int32_t page_tokens, std::uint32_t seed)
      : first(first_gpu), slabs(shape.gpus()) {
    KvGroup group;
    group.cache_layers = kLayers;
    group.kv_heads = heads;
    group.k_dim = group.v_dim = 64;
    whole.layout = *PageLayout::Make(group, 32, page_tokens);
    bytes = RandomBytes(kSlabs * whole.layout.slab_bytes(), seed);
    for (std::int32_t d = 0; d < shape.stages * shape.shards; ++d) {
      const std::int32_t stage = d / shape.shards, shard = d % shape.shards;
      SideLayout& own = parts.emplace_back(whole);
      SlabPart& part = slab_parts.emplace_back();
      part.first_layer = kLayers * stage / shape.stages;
      part.layers = kLayers * (stage + 1) / shape.stages - part.first_layer;
      part.kv_heads = std::max(1, heads / shape.shards);
      part.head_begin = std::min(heads, shape.shards) * shard / shape.shards * part.kv_heads;
      own.layout.group.cache_layers = part.layers;
      own.layout.group.kv_heads = part.kv_heads;
      own.head_begin = part.head_begin;
    }
    for (std::size_t d = 0; d < parts.size(); ++d) {
      memory.push_back(world.OnDevice(first + d, PartOf(d, bytes)));
      world.On([&] {
        slabs[d].groups = {{.part = {.segment = table.Register(*memory[d], d),
                                     .slab_bytes = parts[d].layout.slab_bytes(),
                                     .slab = slab_parts[d]},
                            .base = memory[d]->data()}};
      });
    }
  }
  std::vector<PoolGroup> groups() const {
    return {{.segment = {}, .slab_bytes = whole.layout.slab_bytes(), .side = whole}};
  }
  // What GPU `d` has of slabs whose bytes are these, page by page; zeros behind them.
  std::vector<std::byte> PartOf(std::size_t d, const std::vector<std::byte>& all) const {
    const PageLayout& own = parts[d].layout;
    std::vector<std::byte> part(kSlabs * own.slab_bytes());
    for (std::uint32_t slab = 0; slab < kSlabs; ++slab) {
      for (std::int32_t layer = 0; layer < own.group.cache_layers; ++layer) {
        for (std::int32_t head = 0; head < own.group.kv_heads; ++head) {
          for (std::int32_t page = 0; page < own.pages_per_block(); ++page) {
            std::memcpy(&part[slab * own.slab_bytes() + own.PageOffset(layer, head, page)],
                        &all[slab * whole.layout.slab_bytes() +
                             whole.layout.PageOffset(slab_parts[d].first_layer + layer,
                                                     parts[d].head_begin + head, page)],
                        own.page_bytes());
          }
        }
      }
    }
    return part;
  }
  void ExpectIs(NcclWorld& world, const std::vector<std::byte>& want) {
    for (std::size_t d = 0; d < parts.size(); ++d) {
      EXPECT_EQ(world.Bytes(first + d, *memory[d]), PartOf(d, want)) << "GPU " << d;
    }
  }

  const std::size_t first;
  SegmentTable table;
  SideLayout whole;
  std::vector<SideLayout> parts;
  std::vector<SlabPart> slab_parts;
  std::vector<std::byte> bytes;
  std::vector<std::unique_ptr<DeviceMemory>> memory;
  std::vector<GpuSlabs> slabs;
};

// A sender and a receiver of handoffs, and the link between them.
struct SplitPair {
  SplitPair(std::int32_t heads, const Shape& from_shape, const Shape& to_shape,
            std::int32_t to_page_tokens = 32, const FaultPlan& faults = {},
            HandoffReceiver::Options options = {})
      : world(from_shape.gpus(), to_shape.gpus()),
        from(world, 0, heads, from_shape, 32, 1),
        to(world, from_shape.gpus(), heads, to_shape, to_page_tokens, 2) {
    world.On([&] {
      for (std::size_t d = 0; d < from.slabs.size(); ++d) {
        sums.push_back(GpuSums::Make(world.loop(), *world.gpu(d).device, CopyUnitsLater).value());
        from.slabs[d].sums = sums.back().get();
      }
      const auto gone = [this](const Channel&, const absl::Status& why) { closed = why; };
      sender = std::make_unique<HandoffSender>(world.loop(), from.groups(),
                                               std::vector<const std::byte*>{nullptr}, gone);
      sender->ReadOnGpus(from.slabs);
      turns = std::make_unique<LinkTurns>(world.loop(), nullptr);
      receiver =
          std::make_unique<HandoffReceiver>(world.loop(), *turns, to.groups(), options, nullptr);
      receiver->LandOnGpus(to.slabs);
      auto [first, second] = world.Connect(from.table, to.table);
      channel = &sender->AddPeer(
          std::make_unique<Channel>(world.loop(), Peer{"to", 1}, std::move(first)));
      receiver->AddPeer(std::make_unique<Channel>(
          world.loop(), Peer{"from", 1}, MakeFaultLink(world.loop(), std::move(second), faults)));
    });
  }
  ~SplitPair() {
    world.On([&] {
      sender.reset();
      receiver.reset();
      sums.clear();
      turns.reset();
    });
  }
  // Blocks in slabs 4, 0, 2 go to slabs 1, 3, 4, layer by layer, so many layers of them.
  void Begin(const Grant& grant, std::int32_t layers = kLayers) {
    world.On([&] {
      const MonoTime end = world.loop().Now() + seconds(20);
      HandoffReceiver::Target target;
      target.end_block = 3;
      target.deadline = end;
      HandoffReceiver::Target::Group& group = target.groups.emplace_back();
      group.slabs.assign(3, nullptr);  // Nothing is to land there.
      group.on_gpus = kTo;
      receiver->Expect(grant, std::move(target), [&](const auto& outcome) { came = outcome; });
      sender->Begin(
          grant, *channel, end, [&](const auto& outcome) { sent = outcome; },
          [&](const auto&, std::size_t) { ++layers_sent; });
      for (std::int32_t layer = 0; layer < layers; ++layer) {
        sender->Tell(grant, {.cache_layer = layer, .slabs = kFrom});
      }
    });
  }
  // The receiver's whole slabs once that has gone the host's way: run by run of the whole plan.
  std::vector<std::byte> Want() const {
    const LayerPlan plan = LayerPlan::Make(from.whole, to.whole).value();
    std::vector<std::byte> want = to.bytes;
    for (std::size_t b = 0; b < kFrom.size(); ++b) {
      for (std::int32_t layer = 0; layer < kLayers; ++layer) {
        const std::size_t source =
            kFrom[b] * from.whole.layout.slab_bytes() + plan.FromOffset(layer);
        const std::size_t target = kTo[b] * to.whole.layout.slab_bytes() + plan.ToOffset(layer);
        for (const ByteRun& run : plan.runs()) {
          std::memcpy(&want[target + run.to], &from.bytes[source + run.from], run.bytes);
        }
      }
    }
    return want;
  }

  std::vector<std::vector<std::byte>> BytesThere() {
    std::vector<std::vector<std::byte>> all;
    for (std::size_t d = 0; d < to.memory.size(); ++d) {
      all.push_back(world.Bytes(to.first + d, *to.memory[d]));
    }
    return all;
  }

  const std::vector<std::uint32_t> kFrom = {4, 0, 2}, kTo = {1, 3, 4};
  NcclWorld world;
  SplitPool from, to;
  std::vector<std::unique_ptr<GpuSums>> sums;
  std::unique_ptr<LinkTurns> turns;
  std::unique_ptr<HandoffSender> sender;
  std::unique_ptr<HandoffReceiver> receiver;
  Channel* channel = nullptr;
  int layers_sent = 0;
  std::optional<HandoffReceiver::Outcome> came;
  std::optional<HandoffSender::Outcome> sent;
  std::optional<absl::Status> closed;
};

struct Case {
  const char* name;
  std::int32_t heads;
  Shape from, to;
  std::size_t lanes;  // Pairs of GPUs that meet.
  std::int32_t to_page_tokens = 32;
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

class NcclSplitTest : public testing::TestWithParam<Case> {};

TEST_P(NcclSplitTest, KvGoesAsByTheHost) {
  const Case& c = GetParam();
  SplitPair pair(c.heads, c.from, c.to, c.to_page_tokens);
  pair.Begin({1, 1});
  ASSERT_TRUE(pair.world.Until([&] { return pair.came.has_value() && pair.sent.has_value(); }));
  ASSERT_TRUE(pair.came->status.ok()) << pair.came->status;
  ASSERT_TRUE(pair.sent->status.ok()) << pair.sent->status;
  EXPECT_EQ(pair.came->blocks_valid, 3);
  EXPECT_EQ(pair.came->repeated_reads, 0);
  EXPECT_EQ(pair.came->bytes, pair.sent->bytes_told);
  pair.to.ExpectIs(pair.world, pair.Want());
  // One communicator for each pair of GPUs that has something to move, and no more.
  std::size_t lanes = 0;
  for (std::size_t i = 0; i < c.from.gpus(); ++i) lanes += pair.world.gpu(i).comms->load().comms;
  EXPECT_EQ(lanes, c.lanes);
  EXPECT_EQ(nccl_standin::Now().misuses, 0) << nccl_standin::Now().last_fault;
}

TEST_P(NcclSplitTest, AProbeTriesEveryLaneAndLandsNowhere) {
  const Case& c = GetParam();
  SplitPair pair(c.heads, c.from, c.to, c.to_page_tokens);
  const Grant grant = {1, kProbeGrant | 1};
  pair.world.On([&] {
    pair.sender->Begin(grant, *pair.channel, pair.world.loop().Now() + seconds(20),
                       [&](const auto& outcome) { pair.sent = outcome; });
    pair.sender->Measure(grant, pair.world.loop().Now() + seconds(5));
    for (std::int32_t layer = 0; layer < kLayers; ++layer) {
      pair.sender->Tell(grant, {.cache_layer = layer, .slabs = {2}});
    }
  });
  ASSERT_TRUE(pair.world.Until([&] { return pair.sent.has_value(); }));
  ASSERT_TRUE(pair.sent->status.ok()) << pair.sent->status;
  EXPECT_GT(pair.sent->figures.bytes_per_s, 0);
  std::size_t lanes = 0;
  for (std::size_t i = 0; i < c.from.gpus(); ++i) lanes += pair.world.gpu(i).comms->load().comms;
  EXPECT_EQ(lanes, c.lanes);
  pair.to.ExpectIs(pair.world, pair.to.bytes);
}

INSTANTIATE_TEST_SUITE_P(Splits, NcclSplitTest,
                         testing::Values(Case{"tp1_tp2", 4, {1, 1}, {1, 2}, 2},
                                         Case{"tp2_tp1", 4, {1, 2}, {1, 1}, 2},
                                         Case{"tp2_tp4_replicas", 2, {1, 2}, {1, 4}, 4},
                                         Case{"tp4_tp2_replicas", 2, {1, 4}, {1, 2}, 2},
                                         Case{"tp4_tp4_replicas", 2, {1, 4}, {1, 4}, 4},
                                         Case{"pp2_pp1", 4, {2, 1}, {1, 1}, 2},
                                         Case{"pp3_pp2", 4, {3, 1}, {2, 1}, 3},
                                         Case{"tp2pp2_tp2", 4, {2, 2}, {1, 2}, 4},
                                         Case{"tp2_tp1_pages", 4, {1, 2}, {1, 1}, 2, 8}),
                         [](const auto& test) { return test.param.name; });

TEST(NcclSplitTroubleTest, CorruptLegsAreReadAgainEachOnItsLane) {
  for (std::uint64_t seed = 0; seed < 3; ++seed) {
    SCOPED_TRACE(seed);
    SplitPair pair(4, {2, 2}, {1, 2}, 32,
                   {.seed = seed,
                    .delay_read = 0.5,
                    .corrupt_read = 0.5,
                    .delay_max = std::chrono::milliseconds(1)},
                   {.tries = 30});
    pair.Begin({1, 1});
    ASSERT_TRUE(pair.world.Until([&] { return pair.came.has_value() && pair.sent.has_value(); }));
    ASSERT_TRUE(pair.came->status.ok()) << pair.came->status;
    EXPECT_GT(pair.came->repeated_reads, 0);
    EXPECT_EQ(pair.came->bytes, pair.sent->bytes_told);
    for (const HandoffReceiver::Span& span : pair.came->spans) {
      EXPECT_NE(span.parts.land.begin, MonoTime());
    }
    pair.to.ExpectIs(pair.world, pair.Want());
  }
}

// What one pair of GPUs cannot have ends the link of all.
TEST(NcclSplitTroubleTest, ALaneThatCannotBeMadeEndsTheLink) {
  nccl_standin::Set({.init_error = 2});
  SplitPair pair(4, {1, 2}, {1, 2});
  pair.Begin({1, 1});
  ASSERT_TRUE(pair.world.Until(
      [&] { return pair.came.has_value() && pair.sent.has_value() && pair.closed.has_value(); }));
  EXPECT_FALSE(pair.came->status.ok());
  EXPECT_FALSE(pair.sent->status.ok());
  EXPECT_TRUE(absl::IsUnavailable(*pair.closed)) << *pair.closed;
  pair.to.ExpectIs(pair.world, pair.to.bytes);
}

// A peer that goes while bytes are under way on several lanes: its handoff ends, and no byte lands
// once that was told.
TEST(NcclSplitTroubleTest, NothingLandsOnceAHandoffHasEnded) {
  for (const bool rendezvous : {false, true}) {
    SCOPED_TRACE(rendezvous);
    SplitPair pair(4, {2, 2}, {1, 2});
    nccl_standin::Set({.rendezvous = rendezvous, .silent_death = true});
    pair.Begin({1, 1});  // So that there are communicators.
    ASSERT_TRUE(pair.world.Until([&] { return pair.came.has_value() && pair.sent.has_value(); }));
    ASSERT_TRUE(pair.came->status.ok()) << pair.came->status;
    pair.came.reset();
    pair.Begin({1, 2}, kLayers - 1);
    ASSERT_TRUE(pair.world.Until([&] { return pair.layers_sent > kLayers; }));
    pair.world.On([&] { pair.sender.reset(); });
    ASSERT_TRUE(pair.world.Until([&] { return pair.came.has_value(); }));
    EXPECT_TRUE(absl::IsUnavailable(pair.came->status)) << pair.came->status;
    const std::vector<std::vector<std::byte>> before = pair.BytesThere();
    const auto none_left = [&] {
      for (std::size_t i = 0; i < 6; ++i) {
        if (pair.world.gpu(i).comms->load().comms > 0) return false;
      }
      return true;
    };
    ASSERT_TRUE(pair.world.Until(none_left));
    EXPECT_EQ(pair.BytesThere(), before);
  }
}

// Whoever asks a GPU for what another one has gets none of it.
TEST(NcclSplitTroubleTest, AGpuServesItsOwnMemoryAlone) {
  SplitPair pair(4, {1, 2}, {1, 1});
  const SegmentId second = pair.from.slabs[1].groups[0].part.segment;
  std::vector<absl::Status> ends;
  const std::vector<ByteRun> runs = {{0, 0, 4096}};
  std::unique_ptr<Channel> serves, reads;
  pair.world.On([&] {
    auto [first, second_end] = pair.world.Connect(pair.from.table, pair.to.table);
    serves = std::make_unique<Channel>(pair.world.loop(), Peer{"to", 1}, std::move(first));
    reads = std::make_unique<Channel>(pair.world.loop(), Peer{"from", 1}, std::move(second_end));
    serves->Start({.on_message = [](auto) {}, .on_closed = [](auto&) {}});
    reads->Start({.on_message = [](auto) {}, .on_closed = [](auto&) {}});
    for (const std::uint8_t gpu : {std::uint8_t{0}, std::uint8_t{1}}) {
      reads->Read({.segment = second,
                   .units = {{.from = 0, .to = nullptr, .runs = runs}},
                   .crcs = {0},
                   .deadline = pair.world.loop().Now() + seconds(20),
                   .lane = {.from = gpu, .to = 0},
                   .verify = false},
                  [&](const absl::Status& status) { ends.push_back(status); });
    }
  });
  ASSERT_TRUE(pair.world.Until([&] { return ends.size() == 2; }));
  EXPECT_EQ(std::ranges::count_if(ends, [](auto& s) { return absl::IsNotFound(s); }), 1);
  EXPECT_EQ(std::ranges::count_if(ends, [](auto& s) { return s.ok(); }), 1);
  pair.world.On([&] {
    serves.reset();
    reads.reset();
  });
}

}  // namespace
}  // namespace penstock::transfer
