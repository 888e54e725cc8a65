// SPDX-License-Identifier: Apache-2.0
// How a model is split by layers over devices that compute every step one after the other (pipeline
// parallel): a stage has consecutive layers and their KV, the first one the embedding too, the last
// one the head. Every stage may be split into shards beside (engine/tensor_shard.h), all into as
// many. What a model computes does not depend on the stages: they leave no trace in bits or names.
//
// Plain values; any thread.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "base/kv_spec.h"
#include "engine/tensor_shard.h"
#include "model/architecture.h"

namespace penstock::engine {

struct PipelineStage {
  std::int32_t index = 0;   // Of this stage.
  std::int32_t stages = 1;  // Of the model.

  bool first() const { return index == 0; }
  bool last() const { return index + 1 == stages; }
};

// What one device has of a model: a shard of a stage.
struct ModelPart {
  PipelineStage stage;
  TensorShard shard;

  // Devices are counted stage by stage.
  std::int32_t device() const { return stage.index * shard.shards + shard.index; }
};
// Of the model in `stages` stages of `shards` shards: what device number `device` has.
ModelPart PartOf(std::int32_t device, std::int32_t stages, std::int32_t shards, std::int32_t sums);

// INVALID_ARGUMENT with both numbers: stages from 1 to 64, and no more than layers.
absl::Status CheckStages(const model::Architecture& architecture, std::int32_t stages);

// Those of `layers` layers that a stage has: their numbers differ by one at most.
ShardRange LayersOf(std::int32_t layers, const PipelineStage& stage);

// The cache layers of a group that each stage has, some none: [stages]. Cache layers are numbered
// in the order of the layers that first use them. INVALID_ARGUMENT where layers of two stages share
// one.
absl::StatusOr<std::vector<ShardRange>> CacheLayersOf(const KvSpec& spec, std::int32_t group,
                                                      std::int32_t stages);

// The model as one device sees it: its shard's, of its own layers.
model::Architecture ArchitectureOf(const model::Architecture& whole, const ModelPart& part);

}  // namespace penstock::engine
