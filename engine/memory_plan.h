// SPDX-License-Identifier: Apache-2.0
// How much memory a model needs on this machine, or on its GPUs, decided before anything is loaded,
// so that too little of it is an error with numbers and not a killed process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "base/kv_spec.h"
#include "engine/pipeline_stage.h"
#include "model/architecture.h"

namespace penstock::engine {

struct MemoryRequest {
  KvDtype kv_dtype = KvDtype::kF16;
  // Of whole slabs, as KvPool counts, however many devices share them. 0: what the rest of this asks
  // for.
  std::size_t kv_bytes = 0;
  std::int32_t context_tokens = 0;  // Of one sequence. 0: the model's, or what a modest pool holds.
  std::int32_t shared_tokens = 0;   // Of those, a prompt that all sequences share.
  std::int32_t sequences = 1;
  std::int32_t chunk_tokens = 512;  // Prompt tokens computed at once.
  std::int32_t logit_rows = 1;      // Rows of logits wanted at once.
  std::int32_t block_tokens = 32;   // As PageLayout.
  std::int32_t page_tokens = 32;    // As PageLayout; peers may have others.
  // It is for a device's own memory, which is committed at once, so that each of the pool's groups
  // takes all of kv_bytes, and holds what the kernels keep between their steps, too.
  bool device_memory = false;
  std::size_t links_bytes = 0;  // Of each device's memory: for what moves KV from it and to it.
  bool fast_products = false;   // Those of kernels/fast_products.h are made there, too.
};

struct MemoryPlan {
  // Of one part of a model, on its device; scratch_bytes are an upper bound of what a step needs
  // beside the others. In device memory every group that it has of the pool takes kv_bytes.
  std::size_t weights_bytes = 0;
  std::size_t kv_bytes = 0;
  std::size_t scratch_bytes = 0;
  std::size_t links_bytes = 0;
  std::size_t pool_bytes = 0;  // KvPool's: what kv_bytes hold on all devices, in whole slabs.
  std::int32_t context_tokens = 0;

  std::size_t device_bytes() const {
    return weights_bytes + kv_bytes + scratch_bytes + links_bytes;
  }
};

// Slabs that one sequence of `tokens` holds at most, with prompts computed in chunks: layers with a
// window let go of what lies behind it.
std::size_t SequenceKvBytes(const model::Architecture& architecture, const MemoryRequest& request,
                            std::int32_t tokens);

// What this process may still use: the kernel's estimate, and less where a cgroup says so.
// SIZE_MAX when the system does not tell.
std::size_t AvailableBytes();

// For one part of `whole`, with its weights, where available_bytes are free for it. Without kv_bytes
// and context_tokens the pool is for one context of the model, cut to what fits in 1 GiB or half of
// what the weights leave, whichever is less. INVALID_ARGUMENT: context_tokens beyond the model's, or
// another count below 1. RESOURCE_EXHAUSTED: weights, pool, scratch and links together
// exceed available_bytes.
absl::StatusOr<MemoryPlan> PlanMemory(const model::Architecture& whole, const ModelPart& part,
                                      std::size_t weights_bytes, const MemoryRequest& request,
                                      std::size_t available_bytes);

// For every stage of `whole`, by the largest of its shards: a plan each, with the same pool and
// context, those of the stage that holds least. `parts`: those shards, and the bytes of their
// weights. As PlanMemory.
struct StageWeights {
  ModelPart part;
  std::size_t bytes = 0;
};
absl::StatusOr<std::vector<MemoryPlan>> PlanStages(const model::Architecture& whole,
                                                   std::span<const StageWeights> parts,
                                                   const MemoryRequest& request,
                                                   std::size_t available_bytes);

}  // namespace penstock::engine
