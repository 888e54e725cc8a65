// SPDX-License-Identifier: Apache-2.0
#include "engine/pipeline_stage.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"

namespace penstock::engine {
namespace {

constexpr std::int32_t kStagesMax = 64;

// The first layer that uses the cache layer of `layer`.
std::size_t FirstUser(const KvSpec& spec, std::size_t layer) {
  const KvLayerRef cache = spec.layers[layer];
  const auto same = [&](const KvLayerRef& other) {
    return other.group == cache.group && other.cache_layer == cache.cache_layer;
  };
  return static_cast<std::size_t>(std::ranges::find_if(spec.layers, same) - spec.layers.begin());
}

}  // namespace

ModelPart PartOf(std::int32_t device, std::int32_t stages, std::int32_t shards, std::int32_t sums) {
  return {.stage = {.index = device / shards, .stages = stages},
          .shard = {.index = device % shards, .shards = shards, .sums = sums}};
}

absl::Status CheckStages(const model::Architecture& architecture, std::int32_t stages) {
  RETURN_IF_ERROR(CheckRange("pipeline parallel: the number of stages", stages, 1, kStagesMax));
  if (static_cast<std::size_t>(stages) <= architecture.layers.size()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("pipeline parallel: ", stages,
                                                 " stages are more than the ",
                                                 architecture.layers.size(), " layers"));
}

ShardRange LayersOf(std::int32_t layers, const PipelineStage& stage) {
  const auto at = [&](std::int64_t i) {
    return static_cast<std::int32_t>(layers * i / stage.stages);
  };
  return {at(stage.index), at(stage.index + 1)};
}

absl::StatusOr<std::vector<ShardRange>> CacheLayersOf(const KvSpec& spec, std::int32_t group,
                                                      std::int32_t stages) {
  if (stages == 1) {
    return std::vector<ShardRange>{{0, spec.groups[static_cast<std::size_t>(group)].cache_layers}};
  }
  std::vector<ShardRange> all;
  std::int32_t end = 0;
  for (std::int32_t s = 0; s < stages; ++s) {
    const ShardRange layers =
        LayersOf(static_cast<std::int32_t>(spec.layers.size()), {.index = s, .stages = stages});
    const std::int32_t begin = end;
    for (auto l = static_cast<std::size_t>(layers.begin); std::cmp_less(l, layers.end); ++l) {
      const KvLayerRef cache = spec.layers[l];
      if (cache.group != group) continue;
      if (cache.cache_layer < begin) {
        return absl::InvalidArgumentError(absl::StrCat(
            "pipeline parallel: layer ", l, " has the KV of layer ", FirstUser(spec, l),
            ", and of ", stages, " stages, number ", s, " begins with layer ", layers.begin));
      }
      CHECK_LE(cache.cache_layer, end);
      end = std::max(end, cache.cache_layer + 1);
    }
    all.push_back({begin, end});
  }
  return all;
}

model::Architecture ArchitectureOf(const model::Architecture& whole, const ModelPart& part) {
  model::Architecture own = ArchitectureOf(whole, part.shard);
  const ShardRange layers = LayersOf(static_cast<std::int32_t>(whole.layers.size()), part.stage);
  own.layers.assign(whole.layers.begin() + layers.begin, whole.layers.begin() + layers.end);
  return own;
}

}  // namespace penstock::engine
