// SPDX-License-Identifier: Apache-2.0
#include "engine/group_shard.h"

#include <algorithm>

namespace penstock::engine {

GroupShard::GroupShard(const PageLayout& whole, const TensorShard& shard, const ShardRange& layers)
    : layout(whole), cache_layers(layers) {
  const ShardRange heads = KvHeadsOf(whole.group.kv_heads, shard);
  layout.group.kv_heads = heads.size();
  layout.group.cache_layers = layers.size();
  slab_bytes = layout.slab_bytes();
  head_begin = heads.begin;
  const TensorShard before = {.index = shard.index - 1, .shards = shard.shards, .sums = shard.sums};
  first = shard.index == 0 || KvHeadsOf(whole.group.kv_heads, before).begin != heads.begin;
}

std::vector<SlabRun> GroupShard::Runs(const PageLayout& whole,
                                      std::optional<std::int32_t> cache_layer) const {
  const std::int32_t begin = std::max(cache_layer.value_or(0), cache_layers.begin);
  const std::int32_t end =
      cache_layer.has_value() ? std::min(*cache_layer + 1, cache_layers.end) : cache_layers.end;
  const std::size_t bytes = layout.PageOffset(1, 0, 0);  // Of its heads in one layer.
  std::vector<SlabRun> runs;
  for (std::int32_t layer = begin; layer < end; ++layer) {
    const SlabRun run = {.on_device = layout.PageOffset(layer - cache_layers.begin, 0, 0),
                         .in_whole = whole.PageOffset(layer, head_begin, 0),
                         .bytes = bytes};
    if (!runs.empty() && runs.back().in_whole + runs.back().bytes == run.in_whole) {
      runs.back().bytes += bytes;
    } else {
      runs.push_back(run);
    }
  }
  return runs;
}

}  // namespace penstock::engine
