// SPDX-License-Identifier: Apache-2.0
// Runs a model that is split over several devices of this process: one ForwardPass per shard, each
// on a thread of its own but the first, which runs on the caller's. They meet in the exchanges of
// every layer; the runner puts their logits together.
//
// A shard that stops fails the others within RunnerOptions::patience. That ends the process with
// its number, as a device that fails does: the sequences' memory is lost.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/forward.h"
#include "engine/kv_pool.h"
#include "engine/model_parts.h"
#include "engine/step_runner.h"
#include "model/architecture.h"
#include "transfer/collectives.h"

namespace penstock::engine {

// One thread at a time (the engine's loop).
class ShardedRunner final : public StepRunner {
 public:
  // All shards of a model, by number, two at least; `pool` has memory on the device of each, in
  // that order. `whole` is the model before it was split. Errors as of ForwardPass::Make.
  // Everything passed in must outlive the result.
  static absl::StatusOr<std::unique_ptr<ShardedRunner>> Make(const model::Architecture& whole,
                                                             std::span<const ShardParts> shards,
                                                             KvPool& pool,
                                                             const RunnerOptions& options);
  ~ShardedRunner() override;

  std::int32_t rows_max() const override { return options_.rows_max; }
  std::int32_t logit_rows_max() const override { return options_.logit_rows_max; }
  // Calls layer_done for a layer as the first shard has stored the next one's KV: no shard passes a
  // layer's exchanges before all have stored its own.
  void Run(std::span<const SequenceInput> sequences, std::span<TokenDraw> draws,
           const std::function<void(std::int32_t layer)>& layer_done) override;
  std::span<const float> logits(std::int32_t i) const override;
  void ForEach(std::int64_t items, absl::FunctionRef<void(std::int64_t)> work) override;

 private:
  struct One {
    model::Architecture architecture;
    std::unique_ptr<transfer::Collectives> collectives;
    std::unique_ptr<ForwardPass> pass;
    ShardRange vocab;
  };
  ShardedRunner(const model::Architecture& whole, Device& first, const RunnerOptions& options);
  void Loop(const One& shard);
  void RunOne(const One& shard, std::span<const SequenceInput> sequences,
              const std::function<void(std::int32_t layer)>& layer_done);

  const std::int32_t vocab_;
  Device& first_;
  const RunnerOptions options_;
  std::vector<std::unique_ptr<One>> shards_;
  std::vector<float> logits_;    // [logit rows, vocab]: each shard writes its columns.
  std::int32_t logit_rows_ = 0;  // Of the batch at hand.

  std::mutex mutex_;                // Guards what follows.
  std::condition_variable called_;  // There is a step, or the end.
  std::condition_variable done_;    // Nobody runs any more.
  std::span<const SequenceInput> sequences_;
  std::uint64_t step_ = 0;   // Counts the batches; all shards run each once.
  std::size_t running_ = 0;  // Other threads at work on it.
  bool stop_ = false;
  std::vector<std::jthread> threads_;  // Last: joined before the rest goes.
};

}  // namespace penstock::engine
