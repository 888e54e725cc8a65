// SPDX-License-Identifier: Apache-2.0
// How a model is split over devices that compute every step together (tensor parallel); over some
// that do so one after the other: engine/pipeline_stage.h. A shard has
// some of the query heads with the KV heads that they read, some of the MLP's inner columns, and
// some rows of the vocabulary; norms are everybody's. Where there are more shards than KV heads,
// several have the same one.
//
// The two products that read what is split (attention's output, the MLP's down) are sums over it.
// They are made as `sums` partial sums, each over an equal run of columns, which all shards get and
// add in ascending order. So the bits depend on `sums` alone, a number of the deployment that is
// part of the name of the numerics, and not on how many shards divide it. One sum is a plain
// product.
//
// Plain values; any thread.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "model/architecture.h"
#include "model/tensor.h"

namespace penstock::engine {

struct TensorShard {
  std::int32_t index = 0;   // Of this shard.
  std::int32_t shards = 1;  // Of the model.
  std::int32_t sums = 1;    // Partial sums of all shards together.

  std::int32_t own_sums() const { return sums / shards; }
};

// [begin, end) of what is split.
struct ShardRange {
  std::int32_t begin = 0;
  std::int32_t end = 0;
  std::int32_t size() const { return end - begin; }
};

// INVALID_ARGUMENT with both numbers where the model cannot be split so: shards from 1 to 64 that
// divide `sums` (up to 64), the query heads and the MLP; that divide the KV heads, or are divided
// by them; and partial sums that end on a block of the weights' format, or on 8 columns of plain
// floats.
absl::Status CheckSplit(const model::Architecture& architecture, const model::ModelTensors& tensors,
                        std::int32_t shards, std::int32_t sums);

// Of the whole model: what `shard` has.
ShardRange QoHeadsOf(const model::Architecture& architecture, const TensorShard& shard);
ShardRange KvHeadsOf(std::int32_t kv_heads, const TensorShard& shard);
ShardRange FfnOf(const model::Architecture& architecture, const TensorShard& shard);
ShardRange VocabOf(const model::Architecture& architecture, const TensorShard& shard);
// Which of `shards` shards has the row of a token.
std::int32_t VocabShardOf(std::int32_t token, std::int32_t vocab, std::int32_t shards);

// The model as one of the shards sees it: its heads and its part of the MLP. d_model and vocab are
// the whole model's. Shards are alike but for rows of the vocabulary, of which the last one has
// the most.
model::Architecture ArchitectureOf(const model::Architecture& whole, const TensorShard& shard);

// What `sums` adds to the name of the numerics: "-tp6"; nothing for one.
std::string NumericsSuffix(std::int32_t sums);

}  // namespace penstock::engine
