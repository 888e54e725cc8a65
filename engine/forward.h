// SPDX-License-Identifier: Apache-2.0
// One forward pass over a batch of rows: new tokens of any number of sequences, each at its own
// position, some of them chunks of prompts and some single decode steps. Written against
// kernels/ops.h: it runs on whatever device that has.
//
// The logits of a row depend on its sequence's tokens alone (D3): not on the other rows of the
// batch, nor on how the sequence was cut into passes.
//
// Run queues the whole pass, draws from its logits (engine/logit_rows.h), and waits once, at its end.
// A device may do a decode step by a recording of an earlier one (Ops::Repeat); not a shard's, which
// waits for others, nor one whose layers somebody is told of.
//
// The pass of one stage of a model (engine/pipeline_stage.h) takes the rows of the residual stream
// from the stage before and gives them, as its layers leave them, to the next one; the first stage
// begins with the tokens, the last one ends with the logits. All run the same batches in one order.
//
// The pass of one shard of a model (engine/tensor_shard.h) computes its heads, its part of the MLP
// and the logits of its rows of the vocabulary. It exchanges three things with the passes of the
// other shards, each of which runs the same batch at the same time: rows of the embedding, and the
// partial sums of attention's output and of the MLP.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/kv_pool.h"
#include "engine/model_parts.h"
#include "engine/step_runner.h"
#include "engine/weights.h"
#include "kernels/ops.h"
#include "model/architecture.h"
#include "transfer/collectives.h"
#include "transfer/pipe.h"

namespace penstock::engine {

// What a pass exchanges with others, null where it has none: with the other shards of its stage,
// with the stage before, and with the next one.
struct PassEnds {
  transfer::Collectives* shards = nullptr;
  transfer::Pipe* before = nullptr;
  transfer::Pipe* after = nullptr;
};

// One thread at a time (the engine's loop).
class ForwardPass final : public StepRunner {
 public:
  // RESOURCE_EXHAUSTED when scratch memory cannot be had. Everything passed in must outlive the
  // result. `architecture` is what the device has of the model (ArchitectureOf its part); the pool
  // is of the whole model's MakeKvSpec, and of the devices of all parts.
  static absl::StatusOr<std::unique_ptr<ForwardPass>> Make(const model::Architecture& architecture,
                                                           const ShardParts& shard, KvPool& pool,
                                                           const RunnerOptions& options,
                                                           const PassEnds& ends);
  ~ForwardPass() override;

  std::size_t scratch_bytes() const;
  std::int32_t rows_max() const override { return options_.rows_max; }
  std::int32_t logit_rows_max() const override { return options_.logit_rows_max; }
  // The pass of one shard or stage of several has no draws.
  void Run(std::span<const SequenceInput> sequences, std::span<TokenDraw> draws,
           const std::function<void(std::int32_t layer)>& layer_done) override;
  // Of the shard's rows of the vocabulary; of the last stage alone.
  std::span<const float> logits(std::int32_t i) const override;
  void ForEach(std::int64_t items, absl::FunctionRef<void(std::int64_t)> work) override {
    device_.ForEachOnHost(items, work);
  }

 private:
  struct Buffers;
  ForwardPass(const model::Architecture& architecture, const ShardParts& shard, KvPool& pool,
              const RunnerOptions& options, const PassEnds& ends);
  // The rows that a layer works on: all of the batch, in the model's last layer those whose logits
  // are wanted.
  struct Live {
    float* x;  // [rows, d_model], the residual stream
    float* q;  // [rows, qo_heads * head_dim]
    std::int32_t rows;
    const std::vector<std::vector<kernels::SequenceRows>>* sequences;  // One list per group.
    std::uint64_t batch;                                               // KvBatch::batch
  };
  // Lays out the batch at hand: the tokens, and by group the rows of each sequence.
  void Take(std::span<const SequenceInput> sequences);
  void Compute(std::int32_t rows, const std::function<void(std::int32_t layer)>& layer_done);
  std::size_t ResidualBytes(std::int32_t rows) const;
  // The residual stream as the first own layer takes it.
  void Begin(std::int32_t rows);
  void Embed(std::int32_t rows);
  void StoreKv(std::size_t layer, const Live& live);
  kernels::KvBatch KvOf(std::size_t layer, const Live& live) const;
  Live KeepLogitRows();
  void Attend(std::size_t layer, const Live& live);
  void FeedForward(std::size_t layer, const Live& live);
  // x += in * w^T, through `post_norm` where there is one. `w` are the shard's partial sums.
  void AddProjected(const kernels::Activations& in, const Live& live,
                    std::span<const kernels::PackedMatrix> w, const float* post_norm);
  // The shard's partial sums, into its places in `sums`: [all partial sums, rows, d_model].
  void MakeSums(const kernels::Activations& in, std::int32_t rows,
                std::span<const kernels::PackedMatrix> w, float* sums);
  // A place for [shards, ...] floats, in which the shard writes its part before GatherShards. Good
  // until the next but one.
  float* PlaceToGather();
  // Brings every shard's part of `all`, [shards, floats], to every shard.
  void GatherShards(float* all, std::size_t floats);
  // Ends the process, where there is something to end it for: a device that failed, this one or
  // another, has lost every sequence.
  void MustGoOn(const absl::Status& exchanged);
  void Head(const Live& live);

  const model::Architecture& architecture_;
  const Weights& weights_;
  Device& device_;
  kernels::Ops& ops_;
  KvPool& pool_;
  const RunnerOptions options_;
  const PassEnds ends_;
  const std::int32_t first_layer_;  // Of the own ones, in the whole model.
  const std::unique_ptr<Buffers> buffers_;
};

}  // namespace penstock::engine
