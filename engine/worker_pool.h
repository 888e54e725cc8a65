// SPDX-License-Identifier: Apache-2.0
// A KV pool as peers see it: its segments at an endpoint, and where its slabs begin.
#pragma once

#include <cstddef>
#include <functional>
#include <vector>

#include "device/device.h"
#include "engine/kv_pool.h"
#include "transfer/handoff_messages.h"

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

}  // namespace penstock::engine
