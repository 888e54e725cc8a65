// SPDX-License-Identifier: Apache-2.0
#include "engine/pipeline_stage.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"

namespace penstock::engine {
namespace {

// The last one of every `period` layers is full, the others have a window.
model::Architecture Layers(std::size_t layers, std::size_t period = 1) {
  model::Architecture a;
  a.qo_heads = a.kv_heads = 4;
  a.head_dim = 8;
  a.ffn_dim = 64;
  a.vocab = 100;
  for (std::size_t i = 0; i < layers; ++i) {
    a.layers.push_back({.window_tokens = (i + 1) % period == 0 ? 0 : 64, .rope = 0});
  }
  return a;
}

TEST(PipelineStageTest, WhatCannotBeSplitIsSaidWithBothNumbers) {
  EXPECT_TRUE(CheckStages(Layers(5), 1).ok());
  EXPECT_TRUE(CheckStages(Layers(5), 5).ok());
  EXPECT_EQ(CheckStages(Layers(5), 6),
            absl::InvalidArgumentError("pipeline parallel: 6 stages are more than the 5 layers"));
  EXPECT_EQ(CheckStages(Layers(5), 0),
            absl::InvalidArgumentError(
                "pipeline parallel: the number of stages must be from 1 to 64, got 0"));
  EXPECT_EQ(CheckStages(Layers(500), 65).code(), absl::StatusCode::kInvalidArgument);
}

TEST(PipelineStageTest, StagesTileTheModel) {
  for (const std::size_t period : {std::size_t{1}, std::size_t{6}}) {
    const model::Architecture whole = Layers(26, period);
    const KvSpec spec = whole.MakeKvSpec(KvDtype::kF16);
    for (const std::int32_t stages : {1, 2, 3, 5, 26}) {
      SCOPED_TRACE(absl::StrCat("period=", period, " stages=", stages));
      std::vector<std::int32_t> cache_layers(spec.groups.size());  // Counted up.
      std::int32_t layer = 0;
      for (std::int32_t s = 0; s < stages; ++s) {
        const ModelPart part = PartOf(2 * s + 1, stages, /*shards=*/2, /*sums=*/4);
        EXPECT_EQ(part.device(), 2 * s + 1);
        EXPECT_EQ(part.stage.index, s);
        EXPECT_EQ(part.shard.index, 1);
        EXPECT_EQ(part.stage.first(), s == 0);
        EXPECT_EQ(part.stage.last(), s == stages - 1);
        const ShardRange layers = LayersOf(26, part.stage);
        EXPECT_EQ(layers.begin, layer);
        EXPECT_GE(layers.size(), 26 / stages);
        EXPECT_LE(layers.size(), (26 + stages - 1) / stages);
        const model::Architecture own = ArchitectureOf(whole, part);
        ASSERT_EQ(own.layers.size(), static_cast<std::size_t>(layers.size()));
        EXPECT_EQ(own.kv_heads, 2);
        for (const model::LayerSpec& l : own.layers) {
          const KvLayerRef cache = spec.layers[static_cast<std::size_t>(layer)];
          EXPECT_EQ(l.window_tokens, whole.layers[static_cast<std::size_t>(layer++)].window_tokens);
          const ShardRange range =
              (*CacheLayersOf(spec, cache.group, stages))[static_cast<std::size_t>(s)];
          EXPECT_EQ(cache.cache_layer, cache_layers[static_cast<std::size_t>(cache.group)]++);
          EXPECT_TRUE(range.begin <= cache.cache_layer && cache.cache_layer < range.end);
        }
      }
      EXPECT_EQ(layer, 26);
    }
  }
}

TEST(PipelineStageTest, LayersThatShareKvAreOfOneStage) {
  // The later half of six layers has the KV of the third one.
  KvSpec spec = {.groups = {{.cache_layers = 3, .kv_heads = 1, .k_dim = 8, .v_dim = 8}},
                 .layers = {{0, 0}, {0, 1}, {0, 2}, {0, 2}, {0, 2}, {0, 2}}};
  EXPECT_EQ(CacheLayersOf(spec, 0, 2).status(),
            absl::InvalidArgumentError("pipeline parallel: layer 3 has the KV of layer 2, and of 2 "
                                       "stages, number 1 begins with layer 3"));
  // Each pair one, which two stages of four layers do not part.
  spec.layers = {{0, 0}, {0, 0}, {0, 1}, {0, 1}};
  spec.groups[0].cache_layers = 2;
  const auto ranges = CacheLayersOf(spec, 0, 2);
  ASSERT_TRUE(ranges.ok()) << ranges.status();
  EXPECT_EQ((*ranges)[0].end, 1);
  EXPECT_EQ((*ranges)[1].begin, 1);
  EXPECT_EQ((*ranges)[1].end, 2);
  EXPECT_FALSE(CacheLayersOf(spec, 0, 4).ok());
  EXPECT_TRUE(CacheLayersOf(spec, 0, 1).ok());
}

}  // namespace
}  // namespace penstock::engine
