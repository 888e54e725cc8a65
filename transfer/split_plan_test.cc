// SPDX-License-Identifier: Apache-2.0
#include "transfer/split_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace penstock::transfer {
namespace {

constexpr std::int32_t kLayers = 7;
constexpr std::size_t kHeadBytes = std::size_t{16 + 8} * 2 * 32;  // Of one layer of a block.

SideLayout Side(std::int32_t heads, std::int32_t page_tokens) {
  KvGroup group;
  group.cache_layers = kLayers;
  group.kv_heads = heads;
  group.k_dim = 16;
  group.v_dim = 8;
  return {PageLayout::Make(group, 32, page_tokens).value(), 0};
}

struct Shape {
  std::int32_t stages, shards;
};

// As workers split: stage by stage, some of which may have no layer of a group; heads that are fewer
// than shards are had by several.
std::vector<SlabPart> Split(std::int32_t heads, const Shape& shape) {
  std::vector<SlabPart> parts;
  for (std::int32_t s = 0; s < shape.stages; ++s) {
    const std::int32_t first = kLayers * s / shape.stages;
    for (std::int32_t i = 0; i < shape.shards; ++i) {
      SlabPart& part = parts.emplace_back();
      part.first_layer = first;
      part.layers = kLayers * (s + 1) / shape.stages - first;
      part.head_begin =
          shape.shards <= heads ? heads * i / shape.shards : i / (shape.shards / heads);
      part.kv_heads = shape.shards <= heads ? heads / shape.shards : 1;
    }
  }
  return parts;
}

// Where the layer's legs begin: right behind the layers before it that each part has.
void ExpectOffsets(const SplitPlan::Leg& leg, const SlabPart& from, const SlabPart& to,
                   std::int32_t layer) {
  const auto bytes = [layer](const SlabPart& part) {
    return kHeadBytes * static_cast<std::size_t>(part.kv_heads * (layer - part.first_layer));
  };
  EXPECT_EQ(leg.FromOffset(layer), bytes(from));
  EXPECT_EQ(leg.ToOffset(layer), bytes(to));
}

// Which heads came to which part, and how often, over the legs of a layer.
std::map<std::pair<std::size_t, std::int32_t>, int> Came(const SplitPlan& plan, std::int32_t layer,
                                                         const std::vector<SlabPart>& from,
                                                         const std::vector<SlabPart>& to) {
  std::map<std::pair<std::size_t, std::int32_t>, int> came;
  std::size_t bytes = 0;
  for (const SplitPlan::Leg& leg : plan.LegsOf(layer)) {
    const SlabPart& f = from[leg.from];
    const SlabPart& t = to[leg.to];
    EXPECT_TRUE(f.Has(layer) && t.Has(layer));
    ExpectOffsets(leg, f, t, layer);
    EXPECT_EQ(leg.plan.runs().size(), 1u);  // Equal pages: heads lie side by side.
    const ByteRun& run = leg.plan.runs()[0];
    bytes += run.bytes;
    for (std::size_t at = 0; at < run.bytes; at += kHeadBytes) {
      const auto source = f.head_begin + static_cast<std::int32_t>((run.from + at) / kHeadBytes);
      const auto target = t.head_begin + static_cast<std::int32_t>((run.to + at) / kHeadBytes);
      EXPECT_EQ(source, target);
      EXPECT_TRUE(f.HasHead(source));
      ++came[{leg.to, target}];
    }
  }
  EXPECT_EQ(bytes, plan.UnitBytes(layer));
  EXPECT_LE(plan.LegsOf(layer).size(), plan.legs_max());
  return came;
}

// Every head of every layer that a part of the receiver has comes to it once, from one that has it.
TEST(SplitPlanTest, EveryHeadOfEveryLayerComesOnce) {
  const Shape shapes[] = {{1, 1}, {1, 2}, {1, 4}, {1, 8}, {2, 1}, {3, 1}, {2, 2}, {4, 2}, {7, 8}};
  for (const std::int32_t heads : {1, 2, 4, 8}) {
    for (const Shape& a : shapes) {
      for (const Shape& b : shapes) {
        SCOPED_TRACE(testing::Message() << heads << " heads, pp " << a.stages << " tp " << a.shards
                                        << " -> pp " << b.stages << " tp " << b.shards);
        const SideLayout side = Side(heads, 32);
        const std::vector<SlabPart> from = Split(heads, a), to = Split(heads, b);
        const absl::StatusOr<SplitPlan> made = SplitPlan::Make(side, from, side, to);
        ASSERT_TRUE(made.ok()) << made.status();
        std::size_t block_bytes = 0;
        for (std::int32_t layer = 0; layer < kLayers; ++layer) {
          auto came = Came(*made, layer, from, to);
          for (std::size_t p = 0; p < to.size(); ++p) {
            for (std::int32_t head = 0; head < heads; ++head) {
              const bool wants = to[p].Has(layer) && to[p].HasHead(head);
              EXPECT_EQ((came[{p, head}]), wants ? 1 : 0) << "GPU " << p << ", head " << head;
            }
          }
          block_bytes += made->UnitBytes(layer);
        }
        EXPECT_EQ(block_bytes, made->BlockBytes());
      }
    }
  }
}

// Who has a head beside others serves its share of the readers.
TEST(SplitPlanTest, ReadersTakeReplicasInTurn) {
  const SideLayout side = Side(2, 32);
  const std::vector<SlabPart> parts = Split(2, {1, 8});  // Four of each head.
  const SplitPlan plan = SplitPlan::Make(side, parts, side, parts).value();
  std::set<std::size_t> from;
  for (const SplitPlan::Leg& leg : plan.LegsOf(0)) from.insert(leg.from);
  EXPECT_EQ(from.size(), 8u);
}

// Of workers that are not split there is one leg, which is the pair's plan.
TEST(SplitPlanTest, WholeSlabsGoInOneLeg) {
  const SideLayout sender = Side(4, 8), receiver = Side(4, 32);
  const SlabPart whole = WholeOf(sender);
  const SplitPlan plan = SplitPlan::Make(sender, {&whole, 1}, receiver, {&whole, 1}).value();
  const LayerPlan want = LayerPlan::Make(sender, receiver).value();
  for (std::int32_t layer = 0; layer < kLayers; ++layer) {
    ASSERT_EQ(plan.LegsOf(layer).size(), 1u);
    EXPECT_EQ(plan.LegsOf(layer)[0].plan.runs(), want.runs());
    EXPECT_EQ(plan.LegsOf(layer)[0].FromOffset(layer), want.FromOffset(layer));
    EXPECT_EQ(plan.LegsOf(layer)[0].ToOffset(layer), want.ToOffset(layer));
    EXPECT_EQ(plan.UnitBytes(layer), want.unit_bytes());
  }
}

TEST(SplitPlanTest, WhatIsMissingIsNamed) {
  const SideLayout side = Side(4, 32);
  const std::vector<SlabPart> whole = {WholeOf(side)};
  struct Case {
    std::vector<SlabPart> from, to;
    const char* want;
  };
  const Case cases[] = {
      {{{0, 5, 0, 4}}, whole, "no GPU of the sender has KV head 0 of cache layer 5 of a group"},
      {{{0, 7, 0, 2}, {0, 7, 3, 1}},
       whole,
       "no GPU of the sender has KV head 2 of cache layer 0 of a group"},
      {whole, {{0, 3, 0, 4}, {4, 3, 0, 4}}, "no GPU of the receiver has cache layer 3 of a group"},
  };
  for (const Case& c : cases) {
    EXPECT_EQ(SplitPlan::Make(side, c.from, side, c.to).status(),
              absl::FailedPreconditionError(c.want));
  }
  // Each of many parts has one of many heads.
  const SideLayout many = Side(129, 32);
  std::vector<SlabPart> heads;
  for (std::int32_t h = 0; h < 129; ++h) heads.push_back({0, kLayers, h, 1});
  const std::vector<SlabPart> all = {WholeOf(many)};
  EXPECT_EQ(SplitPlan::Make(many, heads, many, all).status(),
            absl::FailedPreconditionError("a layer of a block would go in more than 128 legs"));
}

}  // namespace
}  // namespace penstock::transfer
