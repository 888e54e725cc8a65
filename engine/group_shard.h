// SPDX-License-Identifier: Apache-2.0
// One group of a pool as one of its devices has it, with the KV heads of its shard and the cache
// layers of its stage (maybe none), and where these lie in slabs of the whole model's, as which the
// host and its peers see the pool.
//
// Plain values but for the memory; any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "base/kv_spec.h"
#include "device/device.h"
#include "engine/tensor_shard.h"

namespace penstock::engine {

// Bytes that lie together in both slabs, counted from the begin of each.
struct SlabRun {
  std::size_t on_device = 0;
  std::size_t in_whole = 0;
  std::size_t bytes = 0;
  bool operator==(const SlabRun&) const = default;
};

struct GroupShard {
  // Without memory; `whole` has the heads of all shards, and the cache layers of all stages, of
  // which the shard's are `layers`.
  GroupShard(const PageLayout& whole, const TensorShard& shard, const ShardRange& layers);

  std::byte* At(std::uint32_t slab) const { return base + slab * slab_bytes; }
  // Of one of the whole's cache layers, or of all, as far as it has them. Ascending, neighbours
  // merged: one run where it has all heads.
  std::vector<SlabRun> Runs(const PageLayout& whole,
                            std::optional<std::int32_t> cache_layer = {}) const;

  PageLayout layout;            // Of its own heads and cache layers.
  std::size_t slab_bytes = 0;   // 0 where it has no layer.
  ShardRange cache_layers;      // Of the whole.
  std::int32_t head_begin = 0;  // The first of them in the whole.
  // No shard before it has the same heads: what the host sees of them is this one's.
  bool first = true;
  std::unique_ptr<DeviceMemory> memory;  // Slab i at i * slab_bytes. Null where it has no layer.
  std::byte* base = nullptr;
};

}  // namespace penstock::engine
