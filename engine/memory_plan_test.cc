// SPDX-License-Identifier: Apache-2.0
#include "engine/memory_plan.h"

#include <string>

#include "engine/slab_encoder.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace penstock::engine {
namespace {

using testing::HasSubstr;

constexpr std::size_t kMiB = std::size_t{1} << 20;
constexpr std::size_t kGiB = std::size_t{1} << 30;

// 2 layers, 2 KV heads of 64: 1,024 bytes of F16 a token, in blocks of 32 tokens and 32 KiB.
model::Architecture SmallModel(std::int32_t window_tokens = 0) {
  model::Architecture a;
  a.d_model = 256;
  a.qo_heads = 4;
  a.kv_heads = 2;
  a.head_dim = 64;
  a.ffn_dim = 512;
  a.vocab = 1000;
  a.context_tokens_max = 8192;
  a.layers = {{.window_tokens = 0, .rope = 0}, {.window_tokens = window_tokens, .rope = 0}};
  return a;
}

TEST(SequenceKvBytesTest, CountsWholeBlocks) {
  const model::Architecture full = SmallModel();
  EXPECT_EQ(SequenceKvBytes(full, {}, 1), 32 * 1024u);
  EXPECT_EQ(SequenceKvBytes(full, {}, 32), 32 * 1024u);
  EXPECT_EQ(SequenceKvBytes(full, {}, 33), 64 * 1024u);
  EXPECT_EQ(SequenceKvBytes(full, {.kv_dtype = KvDtype::kF32}, 8192), 16 * kMiB);
  // Levels and a scale: 2 layers x 2 heads x 2 x (64 + 2) bytes, in slabs of 20 KiB, not 16.5.
  EXPECT_EQ(SequenceKvBytes(full, {.kv_dtype = KvDtype::kInt8}, 8192), 256 * 20 * 1024u);
  // The window layer stops growing at 512 + 512 tokens and a block that is partly seen.
  EXPECT_EQ(SequenceKvBytes(SmallModel(512), {}, 8192), 4 * kMiB + 33 * 16 * 1024u);
}

TEST(PlanMemoryTest, MakesRoomForWhatIsAsked) {
  MemoryRequest request;
  request.context_tokens = 320;
  const absl::StatusOr<MemoryPlan> one = PlanMemory(SmallModel(), {}, 100 * kMiB, request, kGiB);
  ASSERT_TRUE(one.ok()) << one.status();
  EXPECT_EQ(one->context_tokens, 320);
  EXPECT_EQ(one->kv_bytes, 12 * 32 * 1024u);  // 10 blocks and 2 to spare.

  request.sequences = 4;
  request.shared_tokens = 256;
  const absl::StatusOr<MemoryPlan> four = PlanMemory(SmallModel(), {}, 100 * kMiB, request, kGiB);
  ASSERT_TRUE(four.ok()) << four.status();
  EXPECT_EQ(four->kv_bytes, (12 + 3 * 4) * 32 * 1024u);  // 64 tokens of their own, 2 to spare.
}

TEST(PlanMemoryTest, WithoutWordsThePoolIsModest) {
  const absl::StatusOr<MemoryPlan> plenty = PlanMemory(SmallModel(), {}, 100 * kMiB, {}, 8 * kGiB);
  ASSERT_TRUE(plenty.ok()) << plenty.status();
  EXPECT_EQ(plenty->context_tokens, 8192);
  EXPECT_LE(plenty->kv_bytes, 9 * kMiB);

  model::Architecture large = SmallModel();
  large.context_tokens_max = 10'000'000;  // 10 GB of KV.
  const absl::StatusOr<MemoryPlan> cut = PlanMemory(large, {}, 100 * kMiB, {}, 8 * kGiB);
  ASSERT_TRUE(cut.ok()) << cut.status();
  EXPECT_LE(cut->kv_bytes, kGiB + kMiB);
  EXPECT_GT(cut->context_tokens, 1'000'000);

  const absl::StatusOr<MemoryPlan> tight = PlanMemory(large, {}, 100 * kMiB, {}, 400 * kMiB);
  ASSERT_TRUE(tight.ok()) << tight.status();
  EXPECT_LT(tight->kv_bytes, 150 * kMiB);
}

TEST(PlanMemoryTest, TooLittleMemoryNamesTheNumbers) {
  struct Case {
    const char* name;
    std::size_t weights;
    std::size_t kv_bytes;
    std::size_t available;
    const char* want;
  };
  for (const Case& c : {Case{"weights", 900 * kMiB, 0, 800 * kMiB, "900.0 MiB for weights"},
                        Case{"pool", 10 * kMiB, 2 * kGiB, kGiB, "2048.0 MiB for KV"},
                        Case{"absurd pool", 10 * kMiB, SIZE_MAX, kGiB, "for KV"}}) {
    SCOPED_TRACE(c.name);
    MemoryRequest request;
    request.kv_bytes = c.kv_bytes;
    const absl::Status status =
        PlanMemory(SmallModel(), {}, c.weights, request, c.available).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.want));
    EXPECT_THAT(std::string(status.message()), HasSubstr("of memory is available"));
  }
}

TEST(PlanMemoryTest, LinksTakeOfTheDevicesMemory) {
  MemoryRequest request;
  request.kv_bytes = 64 * kMiB;
  const std::size_t without = PlanMemory(SmallModel(), {}, kMiB, request, kGiB)->device_bytes();
  request.links_bytes = kGiB - without;
  const auto fits = PlanMemory(SmallModel(), {}, kMiB, request, kGiB);
  ASSERT_TRUE(fits.ok()) << fits.status();
  EXPECT_EQ(fits->device_bytes(), kGiB);
  ++request.links_bytes;
  const absl::Status none = PlanMemory(SmallModel(), {}, kMiB, request, kGiB).status();
  EXPECT_EQ(none.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(none.message()), HasSubstr(" MiB for links, and 1024.0 MiB "));
  // A pool that nobody asked for leaves them their room.
  request = {.links_bytes = 900 * kMiB};
  const auto small = PlanMemory(SmallModel(), {}, kMiB, request, kGiB);
  ASSERT_TRUE(small.ok()) << small.status();
  EXPECT_LE(small->device_bytes(), kGiB);
}

// The pool is counted in whole slabs; a shard has its heads of them, which two may share.
TEST(PlanMemoryTest, AShardHasItsPartOfThePool) {
  struct Case {
    std::int32_t shards;
    std::size_t part;  // Of the KV, one in so many.
  };
  for (const Case& c : {Case{1, 1}, Case{2, 2}, Case{4, 2}}) {
    SCOPED_TRACE(c.shards);
    const ModelPart shard = {.stage = {}, .shard = {.shards = c.shards, .sums = 4}};
    MemoryRequest request;
    request.kv_bytes = 64 * kMiB;
    const absl::StatusOr<MemoryPlan> told = PlanMemory(SmallModel(), shard, kMiB, request, kGiB);
    ASSERT_TRUE(told.ok()) << told.status();
    EXPECT_EQ(told->pool_bytes, 64 * kMiB);
    EXPECT_EQ(told->kv_bytes, 64 * kMiB / c.part);
    request = {.context_tokens = 320};
    const absl::StatusOr<MemoryPlan> meant = PlanMemory(SmallModel(), shard, kMiB, request, kGiB);
    ASSERT_TRUE(meant.ok()) << meant.status();
    EXPECT_EQ(meant->pool_bytes, 12 * 32 * 1024u);
    EXPECT_EQ(meant->kv_bytes, 12 * 32 * 1024u / c.part);
    request.kv_bytes = 3 * kGiB;
    const absl::Status none = PlanMemory(SmallModel(), shard, kMiB, request, kGiB).status();
    EXPECT_EQ(none.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_EQ(none.message().substr(0, 4) == "each", c.shards > 1) << none;
  }
}

// Of three layers in two stages the second one has two, so that its devices hold more of the pool;
// weights leave the first one less room.
TEST(PlanStagesTest, TheStageThatHoldsLeastDecidesForAll) {
  model::Architecture model = SmallModel();
  model.layers.push_back(model.layers[0]);  // 48 KiB a block.
  const StageWeights parts[] = {{.part = PartOf(0, 2, 1, 1), .bytes = 100 * kMiB},
                                {.part = PartOf(1, 2, 1, 1), .bytes = kMiB}};
  MemoryRequest request;
  request.kv_bytes = 480 * 1024;
  const auto told = PlanStages(model, parts, request, kGiB);
  ASSERT_TRUE(told.ok()) << told.status();
  ASSERT_EQ(told->size(), 2u);
  for (std::size_t stage = 0; stage < 2; ++stage) {
    const MemoryPlan& plan = (*told)[stage];
    EXPECT_EQ(plan.pool_bytes, 480 * 1024u);
    EXPECT_EQ(plan.kv_bytes, (stage + 1) * 160 * 1024);
    EXPECT_EQ(plan.weights_bytes, parts[stage].bytes);
    EXPECT_EQ(plan.context_tokens, 8192);
  }
  // 8,192 tokens and two blocks would be 258 * 16 KiB of the first stage's.
  const auto fits = PlanStages(model, parts, {}, kGiB);
  ASSERT_TRUE(fits.ok()) << fits.status();
  EXPECT_EQ((*fits)[0].pool_bytes, 258 * 48 * 1024u);
  EXPECT_EQ((*fits)[0].kv_bytes, 258 * 16 * 1024u);
  const auto tight = PlanStages(model, parts, {}, 175 * kMiB);
  ASSERT_TRUE(tight.ok()) << tight.status();
  EXPECT_EQ((*tight)[0].context_tokens, (*tight)[1].context_tokens);
  EXPECT_EQ((*tight)[0].pool_bytes, (*tight)[1].pool_bytes);
  EXPECT_LT((*tight)[0].context_tokens, 8192);
  EXPECT_EQ((*tight)[1].kv_bytes, 2 * (*tight)[0].kv_bytes);
  const absl::Status none = PlanStages(model, parts, {}, 110 * kMiB).status();
  EXPECT_EQ(none.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(none.message().substr(0, 37), "stage 0 of 2: this needs 100.0 MiB fo");
}

TEST(PlanMemoryTest, CountsOutOfRange) {
  const auto plan = [](MemoryRequest request) {
    return PlanMemory(SmallModel(), {}, kMiB, request, 8 * kGiB).status();
  };
  MemoryRequest request;
  request.context_tokens = 8193;
  EXPECT_THAT(std::string(plan(request).message()),
              testing::AllOf(HasSubstr("8193"), HasSubstr("1 to 8192")));
  request = {};
  request.chunk_tokens = 0;
  EXPECT_EQ(plan(request).code(), absl::StatusCode::kInvalidArgument);
  request = {};
  request.sequences = 0;
  EXPECT_EQ(plan(request).code(), absl::StatusCode::kInvalidArgument);
}

TEST(AvailableBytesTest, IsPlausible) { EXPECT_GT(AvailableBytes(), kMiB); }

// What SlabEncoder takes when a pool is made: 8 rooms each way would be too few to notice, so count.
TEST(PlanMemoryTest, OnADeviceBlocksOnTheirWayAreCounted) {
  MemoryRequest request = {.context_tokens = 320, .device_memory = true};
  const auto scratch = [&] {
    return PlanMemory(SmallModel(), {}, kMiB, request, 2 * kGiB)->scratch_bytes;
  };
  const PageLayout layout =
      *PageLayout::Make(SmallModel().MakeKvSpec(KvDtype::kF16).groups[0], 32, 32);
  const std::size_t f16 = scratch();
  request.kv_dtype = KvDtype::kInt8;  // No device encodes it.
  EXPECT_EQ(f16 - scratch(), SlabEncoder::RoomBytes({&layout, 1}));
}

}  // namespace
}  // namespace penstock::engine
