// SPDX-License-Identifier: Apache-2.0
// Handoffs from one GPU's pool to another's, with unlike pages, over kind nccl.
#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <optional>
#include <vector>

#include "transfer/gpu_sums.h"
#include "transfer/handoff_receiver.h"
#include "transfer/handoff_sender.h"
#include "transfer/nccl_pair_testing.h"

namespace penstock::transfer {
namespace {

using std::chrono::seconds;

constexpr std::int32_t kLayers = 3;
constexpr std::int32_t kSlabs = 6;

// One worker's pool in its GPU's memory. What the host would see of it is not there.
struct Pool {
  Pool(NcclWorld& world, std::size_t gpu, std::int32_t page_tokens) {
    KvGroup group;
    group.cache_layers = kLayers;
    group.kv_heads = 4;
    group.k_dim = group.v_dim = 64;
    group.dtype = KvDtype::kF16;
    side.layout = *PageLayout::Make(group, 32, page_tokens);
    bytes = RandomBytes(kSlabs * side.layout.slab_bytes(), static_cast<std::uint32_t>(gpu) + 1);
    memory = world.OnDevice(gpu, bytes);
    world.On([&] {
      segment = table.Register(*memory);
      groups = {{.segment = {}, .slab_bytes = side.layout.slab_bytes(), .side = side}};
    });
  }
  GpuSlabs OnGpu(UnitSums* sums) const {
    return {.groups = {{.part = {segment, side.layout.slab_bytes(), WholeOf(side)},
                        .base = memory->data()}},
            .sums = sums};
  }

  SegmentTable table;
  SideLayout side;
  std::vector<std::byte> bytes;
  std::unique_ptr<DeviceMemory> memory;
  SegmentId segment{};
  std::vector<PoolGroup> groups;
};

class NcclHandoffTest : public testing::Test {
 protected:
  NcclHandoffTest() {
    world_.On([&] {
      sums_ = GpuSums::Make(world_.loop(), *world_.gpu(0).device, CopyUnitsLater).value();
      sender_ = std::make_unique<HandoffSender>(world_.loop(), from_.groups,
                                                std::vector<const std::byte*>{nullptr}, nullptr);
      sender_->ReadOnGpus({from_.OnGpu(sums_.get())});
      turns_ = std::make_unique<LinkTurns>(world_.loop(), nullptr);
      receiver_ = std::make_unique<HandoffReceiver>(world_.loop(), *turns_, to_.groups,
                                                    HandoffReceiver::Options(), nullptr);
      receiver_->LandOnGpus({to_.OnGpu(nullptr)});
      auto [first, second] = world_.Connect(from_.table, to_.table);
      channel_ = &sender_->AddPeer(
          std::make_unique<Channel>(world_.loop(), Peer{"to", 1}, std::move(first)));
      receiver_->AddPeer(
          std::make_unique<Channel>(world_.loop(), Peer{"from", 1}, std::move(second)));
    });
  }
  ~NcclHandoffTest() override {
    world_.On([&] {
      sender_.reset();
      receiver_.reset();
      sums_.reset();
      turns_.reset();
    });
  }
  MonoTime In(Duration time) { return world_.loop().Now() + time; }
  void Begin(const Grant& grant) {
    sender_->Begin(grant, *channel_, In(seconds(20)), [&](const auto& o) { sent_ = o; });
  }
  void TellAll(const Grant& grant, const std::vector<std::uint32_t>& slabs) {
    for (std::int32_t layer = 0; layer < kLayers; ++layer) {
      sender_->Tell(grant, {.cache_layer = layer, .slabs = slabs});
    }
  }

  NcclWorld world_;
  Pool from_{world_, 0, 8}, to_{world_, 1, 32};
  std::unique_ptr<LinkTurns> turns_;
  std::unique_ptr<GpuSums> sums_;
  std::unique_ptr<HandoffSender> sender_;
  std::unique_ptr<HandoffReceiver> receiver_;
  Channel* channel_ = nullptr;
  std::optional<HandoffSender::Outcome> sent_;
};

TEST_F(NcclHandoffTest, KvGoesFromPoolToPool) {
  const Grant grant = {1, 1};
  const std::vector<std::uint32_t> from = {4, 0, 2}, to = {1, 5, 3};
  std::optional<HandoffReceiver::Outcome> came;
  world_.On([&] {
    HandoffReceiver::Target target;
    target.end_block = 3;
    target.deadline = In(seconds(20));
    HandoffReceiver::Target::Group& group = target.groups.emplace_back();
    group.slabs.assign(3, nullptr);  // Nothing is to land there.
    group.on_gpus = to;
    receiver_->Expect(grant, std::move(target), [&](const auto& outcome) { came = outcome; });
    Begin(grant);
    TellAll(grant, from);
  });
  ASSERT_TRUE(world_.Until([&] { return came.has_value() && sent_.has_value(); }));
  ASSERT_TRUE(came->status.ok()) << came->status;
  EXPECT_TRUE(sent_->status.ok()) << sent_->status;
  EXPECT_EQ(came->kind, Kind::kNccl);
  EXPECT_EQ(came->blocks_valid, 3);

  std::vector<std::byte> want = to_.bytes;
  const LayerPlan plan = LayerPlan::Make(from_.side, to_.side).value();
  const std::size_t slab_bytes = from_.side.layout.slab_bytes();
  for (std::size_t b = 0; b < from.size(); ++b) {
    for (std::int32_t layer = 0; layer < kLayers; ++layer) {
      const std::byte* const source =
          from_.bytes.data() + from[b] * slab_bytes + plan.FromOffset(layer);
      std::byte* const target =
          want.data() + to[b] * to_.side.layout.slab_bytes() + plan.ToOffset(layer);
      for (const ByteRun& run : plan.runs()) {
        std::memcpy(target + run.to, source + run.from, run.bytes);
      }
    }
  }
  EXPECT_EQ(world_.Bytes(1, *to_.memory), want);
  ASSERT_EQ(came->spans.size(), 3u);
  for (const HandoffReceiver::Span& span : came->spans) {
    for (const ReadParts::Part& part :
         {span.parts.pack, span.parts.ready, span.parts.move, span.parts.land}) {
      EXPECT_GE(part.time, Duration());
      EXPECT_GE(part.begin + part.time, span.begun);
      EXPECT_LE(part.begin + part.time, span.verified);
    }
  }
}

TEST_F(NcclHandoffTest, AProbeIsMeasuredAndLandsNowhere) {
  const Grant grant = {1, kProbeGrant | 1};
  world_.On([&] {
    Begin(grant);
    sender_->Measure(grant, In(seconds(5)));
    TellAll(grant, {2});
  });
  ASSERT_TRUE(world_.Until([&] { return sent_.has_value(); }));
  EXPECT_TRUE(sent_->status.ok()) << sent_->status;
  EXPECT_GT(sent_->figures.bytes_per_s, 0);
  EXPECT_EQ(world_.Bytes(1, *to_.memory), to_.bytes);
}

TEST_F(NcclHandoffTest, AHandoffThatEndsWhileItsSumsAreMadeTellsNothing) {
  world_.On([&] {  // Once the pools are known.
    Begin({1, kProbeGrant | 1});
    TellAll({1, kProbeGrant | 1}, {2});
  });
  ASSERT_TRUE(world_.Until([&] { return sent_.has_value(); }));
  std::int64_t messages = 0;
  {
    const HoldCopies hold;
    const std::int64_t begun = CopiesBegun();
    world_.On([&] {
      messages = channel_->stats().messages_sent;
      Begin({1, 2});
      TellAll({1, 2}, {0, 1});
      sender_->Fail({1, 2}, absl::CancelledError("nobody wants it any more"));
    });
    EXPECT_GT(CopiesBegun(), begun);
    EXPECT_TRUE(absl::IsCancelled(sent_->status)) << sent_->status;
  }
  // Sums are told in the order in which they were asked for.
  sent_.reset();
  world_.On([&] {
    Begin({1, kProbeGrant | 2});
    TellAll({1, kProbeGrant | 2}, {2});
  });
  ASSERT_TRUE(world_.Until([&] { return sent_.has_value(); }));
  world_.On([&] { EXPECT_EQ(channel_->stats().messages_sent, messages + 1 + kLayers); });
  // The sender may go while there are sums under way.
  const std::int64_t begun = CopiesBegun();
  auto hold = std::make_unique<HoldCopies>();
  world_.On([&] {
    Begin({1, 3});
    TellAll({1, 3}, {0, 1});
    sender_.reset();
  });
  EXPECT_GT(CopiesBegun(), begun);
  hold.reset();
}

}  // namespace
}  // namespace penstock::transfer
