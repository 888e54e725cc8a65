// SPDX-License-Identifier: Apache-2.0
// Runs a model that is split over several devices of this process: one ForwardPass per device, each
// on a thread of its own but the first, which runs on the caller's. The shards of a stage meet in
// the exchanges of every layer; the stages hand on rows, of large batches in portions, so that they
// work side by side: one computes a portion while the next stage computes the one before. The runner
// puts the logits of the last stage's shards together.
//
// A device that stops fails the others within RunnerOptions::patience for each stage. That ends the
// process with its number, as a device that fails does, once RunnerOptions::exchange_failed has heard:
// the sequences' memory is lost.
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
#include "engine/batch_portions.h"
#include "engine/forward.h"
#include "engine/kv_pool.h"
#include "engine/model_parts.h"
#include "engine/pipeline_stage.h"
#include "engine/step_runner.h"
#include "model/architecture.h"
#include "transfer/collectives.h"
#include "transfer/pipe.h"

namespace penstock::engine {

// One thread at a time (the engine's loop).
class ShardedRunner final : public StepRunner {
 public:
  // All parts of a model, as ModelPart counts their devices, two at least; `pool` has memory on
  // each of them. `whole` is the model before it was split. Errors as of ForwardPass::Make.
  // Everything passed in must outlive the result.
  static absl::StatusOr<std::unique_ptr<ShardedRunner>> Make(const model::Architecture& whole,
                                                             std::span<const ShardParts> shards,
                                                             KvPool& pool,
                                                             const RunnerOptions& options);
  ~ShardedRunner() override;

  std::int32_t rows_max() const override { return options_.rows_max; }
  std::int32_t logit_rows_max() const override { return options_.logit_rows_max; }
  // Calls layer_done for a layer as the first shard of its stage has stored the next one's KV of
  // the last portion: no shard passes a layer's exchanges before all have stored its own.
  void Run(std::span<const SequenceInput> sequences, std::span<TokenDraw> draws,
           const std::function<void(std::int32_t layer)>& layer_done) override;
  std::span<const float> logits(std::int32_t i) const override;
  void ForEach(std::int64_t items, absl::FunctionRef<void(std::int64_t)> work) override;

 private:
  struct One {
    ModelPart part;
    model::Architecture architecture;
    PassEnds ends;
    std::unique_ptr<ForwardPass> pass;
    Stream* work = nullptr;  // The pass's.
  };
  struct Stage {
    ShardRange layers;
    std::vector<std::unique_ptr<transfer::Collectives>> shards;  // None where there is one shard.
    std::vector<std::unique_ptr<transfer::Pipe>> after;          // One per shard; none of the last.
    std::size_t running = 0;  // Shards at work on the batch at hand. Guarded by mutex_.
  };
  // A layer of the batch at hand.
  struct Layer {
    bool stored = false;                 // By all shards of its stage,
    std::shared_ptr<const Event> event;  // once this has come, where it is not null.
  };
  ShardedRunner(const model::Architecture& whole, std::span<const ShardParts> shards, KvPool& pool,
                const RunnerOptions& options);
  // What the device of `part` exchanges with others.
  PassEnds EndsOf(const ModelPart& part) const;
  One& At(std::size_t device) { return *devices_[device]; }
  Stage& StageOf(const One& device) {
    return stages_[static_cast<std::size_t>(device.part.stage.index)];
  }
  std::int32_t PortionsOf(std::span<const SequenceInput> sequences) const;
  void Loop(One& device);
  // Its part of the batch at hand.
  void RunOne(One& device);
  void CopyLogits(const One& device, const Portion& portion);
  void SetStored(std::int32_t layer, std::unique_ptr<Event> event);
  // Calls layer_done_ for all layers that are stored by now and come next. With `lock` held, which
  // it lets go for that.
  void TellStored(std::unique_lock<std::mutex>& lock);
  // Until all devices have done with the batch.
  void AwaitOthers();

  const std::int32_t vocab_;
  const std::int32_t shards_of_stage_;
  Device& first_;
  KvPool& pool_;
  const RunnerOptions options_;
  const Duration patience_;  // For all stages together.
  std::vector<Stage> stages_;
  std::vector<std::unique_ptr<One>> devices_;
  std::vector<float> logits_;  // [logit rows, vocab]: each shard writes its columns.
  // The batch at hand, for all devices to read.
  std::vector<Portion> portions_;
  std::int32_t logit_rows_ = 0;
  const std::function<void(std::int32_t layer)>* layer_done_ = nullptr;  // Null: nobody asks.

  std::mutex mutex_;                 // Guards what follows.
  std::condition_variable called_;   // There is a step, or the end.
  std::condition_variable changed_;  // A layer is stored, or nobody runs any more.
  std::vector<Layer> layers_;        // Of the model.
  std::size_t told_ = 0;             // Layers of the batch at hand that the caller was told of.
  std::uint64_t step_ = 0;           // Counts the batches; all devices run each once.
  std::size_t running_ = 0;          // Devices at work on it.
  bool stop_ = false;
  std::vector<std::jthread> threads_;  // Last: joined before the rest goes.
};

}  // namespace penstock::engine
