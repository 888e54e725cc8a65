// SPDX-License-Identifier: Apache-2.0
// Where a pool's slabs lie in the memory of GPUs, for those who tell of them, or write them, over
// kind nccl: a slab has the same number on all of them, and everywhere its part of the bytes.
#pragma once

#include <cstddef>
#include <vector>

#include "base/check.h"
#include "transfer/handoff_messages.h"
#include "transfer/unit_sums.h"

namespace penstock::transfer {

// On one GPU.
struct GpuSlabs {
  struct Group {
    PoolPart part;              // The segment where peers read it.
    std::byte* base = nullptr;  // Of slab 0. Null where it has no layer.
  };
  std::vector<Group> groups;  // As in the pool.
  UnitSums* sums = nullptr;   // Of who tells of them: computes there, and outlives the user.
};

// The pool as peers see it there; `gpus` as lanes count them.
inline std::vector<PoolGroup> OnGpus(std::vector<PoolGroup> pool,
                                     const std::vector<GpuSlabs>& gpus) {
  for (std::size_t g = 0; g < pool.size(); ++g) {
    pool[g].parts.clear();
    for (const GpuSlabs& gpu : gpus) {
      CHECK_EQ(gpu.groups.size(), pool.size());
      pool[g].parts.push_back(gpu.groups[g].part);
    }
  }
  return pool;
}

}  // namespace penstock::transfer
