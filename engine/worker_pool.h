// SPDX-License-Identifier: Apache-2.0
// A KV pool as peers see it: its segments at an endpoint, and where its slabs begin.
#pragma once

#include <cstddef>
#include <functional>
#include <vector>

#include "device/device.h"
#include "engine/group_shard.h"
#include "engine/kv_pool.h"
#include "transfer/handoff_messages.h"
#include "transfer/split_plan.h"

namespace penstock::engine {

struct PeerView {
  std::vector<transfer::PoolGroup> groups;
  std::vector<const std::byte*> bases;  // Of each group, in host memory.
};

// `register_memory` makes a group's memory a segment of an endpoint. The pool must outlive that.
inline PeerView ShowToPeers(
    KvPool& pool, const std::function<transfer::SegmentId(DeviceMemory&)>& register_memory) {
  PeerView view;
  for (std::int32_t g = 0; g < pool.groups(); ++g) {
    DeviceMemory& memory = pool.memory(g);
    view.groups.push_back({.segment = register_memory(memory),
                           .slab_bytes = pool.slab_bytes(g),
                           .side = {.layout = pool.layout(g), .head_begin = 0}});
    view.bases.push_back(memory.data());
  }
  return view;
}

// What a device has of a group's slabs, as peers are told of those in its own memory.
inline transfer::SlabPart SlabPartOf(const GroupShard& shard) {
  return {.first_layer = shard.cache_layers.begin,
          .layers = shard.cache_layers.size(),
          .head_begin = shard.head_begin,
          .kv_heads = shard.layout.group.kv_heads};
}

// A pool in numbers, for the coordinator.
struct PoolShape {
  std::int32_t block_tokens = 0;
  std::size_t block_bytes = 0;  // Of every group together.
  std::size_t pool_bytes = 0;
};
inline PoolShape ShapeOf(const KvPool& pool) {
  PoolShape shape{.block_tokens = pool.block_tokens(), .pool_bytes = pool.stats().bytes_budget};
  for (std::int32_t g = 0; g < pool.groups(); ++g) shape.block_bytes += pool.slab_bytes(g);
  return shape;
}

}  // namespace penstock::engine
