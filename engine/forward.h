// SPDX-License-Identifier: Apache-2.0
// One forward pass over a batch of rows: new tokens of any number of sequences, each at its own
// position, some of them chunks of prompts and some single decode steps. Written against
// kernels/ops.h: it runs on whatever device that has.
//
// The logits of a row depend on its sequence's tokens alone (D3): not on the other rows of the
// batch, nor on how the sequence was cut into passes.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/kv_pool.h"
#include "engine/weights.h"
#include "kernels/ops.h"
#include "model/architecture.h"

namespace penstock::engine {

// The new tokens of one sequence, and the blocks that hold (and will hold) its KV.
struct SequenceInput {
  std::span<const TokenId> tokens;  // At positions position, position + 1, ...
  std::int32_t position = 0;
  struct Blocks {
    std::span<const SlabRef> slabs;  // slabs[i] is block first_block + i.
    std::int32_t first_block = 0;
  };
  std::span<const Blocks>
      blocks;  // One per group of the pool; cover all positions that are written or visible.
  bool wants_logits = false;  // Of the last token.
};

// One thread at a time (the engine's loop). `device`, `ops`, `weights`, `pool` and `architecture`
// must outlive it.
class ForwardPass {
 public:
  struct Options {
    std::int32_t rows_max = 512;       // Token rows of one pass: bounds the scratch memory.
    std::int32_t logit_rows_max = 64;  // Of those, rows whose logits are asked for.
    bool float_activations = false;    // Every product in float (weights widened to F32).
  };
  // RESOURCE_EXHAUSTED when scratch memory cannot be had.
  static absl::StatusOr<std::unique_ptr<ForwardPass>> Make(const model::Architecture& architecture,
                                                           const Weights& weights, Device& device,
                                                           kernels::Ops& ops, KvPool& pool,
                                                           const Options& options);
  ~ForwardPass();

  const Options& options() const { return options_; }
  std::size_t scratch_bytes() const;

  // Runs the pass. Calls layer_done(layer), unless it is null, when the KV of all rows for that
  // model layer is on its way in stream order (what a prefill worker ships while the next layer
  // computes). Token ids must be in range and the row limits kept (CHECKed).
  void Run(std::span<const SequenceInput> sequences,
           const std::function<void(std::int32_t layer)>& layer_done);

  // Logits of the i-th sequence that wanted them in the last Run, [vocab], host memory; valid until
  // the next Run.
  std::span<const float> logits(std::int32_t i) const;

 private:
  struct Buffers;
  ForwardPass(const model::Architecture& architecture, const Weights& weights, kernels::Ops& ops,
              KvPool& pool, const Options& options);

  const model::Architecture& architecture_;
  const Weights& weights_;
  kernels::Ops& ops_;
  KvPool& pool_;
  const Options options_;
  std::unique_ptr<Buffers> buffers_;
};

}  // namespace penstock::engine
