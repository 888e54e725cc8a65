// SPDX-License-Identifier: Apache-2.0
#include "engine/sharded_runner.h"

#include <algorithm>
#include <system_error>
#include <utility>

#include "base/check.h"
#include "base/check_ok.h"
#include "base/status.h"

namespace penstock::engine {
namespace {

// What is lost where the stages do not all have work, at the begin and the end of a batch, is one
// part in so many.
constexpr std::int32_t kPortionsPerStage = 4;

}  // namespace

ShardedRunner::ShardedRunner(const model::Architecture& whole, std::span<const ShardParts> shards,
                             KvPool& pool, const RunnerOptions& options)
    : vocab_(whole.vocab),
      shards_of_stage_(shards[0].weights->shard().shards),
      first_(*shards[0].device),
      pool_(pool),
      options_(options),
      patience_(options.patience * shards[0].weights->part().stage.stages),
      stages_(static_cast<std::size_t>(shards[0].weights->part().stage.stages)),
      logits_(static_cast<std::size_t>(options.logit_rows_max) *
              static_cast<std::size_t>(whole.vocab)),
      layers_(whole.layers.size()) {
  const auto count = static_cast<std::int32_t>(stages_.size());
  for (std::int32_t s = 0; s < count; ++s) {
    Stage& stage = stages_[static_cast<std::size_t>(s)];
    stage.layers =
        LayersOf(static_cast<std::int32_t>(whole.layers.size()), {.index = s, .stages = count});
    // A stage is as far as its slowest shard, which may wait for the stages before it.
    if (shards_of_stage_ > 1) {
      std::vector<Device*> devices;
      for (std::int32_t i = 0; i < shards_of_stage_; ++i) {
        devices.push_back(shards[static_cast<std::size_t>(s * shards_of_stage_ + i)].device);
      }
      stage.shards = options.collectives
                         ? options.collectives(devices, patience_)
                         : transfer::MakeLocalCollectives(shards_of_stage_, patience_);
    }
    for (std::int32_t i = 0; s + 1 < count && i < shards_of_stage_; ++i) {
      stage.after.push_back(transfer::MakeLocalPipe(s, patience_));
    }
  }
}

PassEnds ShardedRunner::EndsOf(const ModelPart& part) const {
  const auto stage = static_cast<std::size_t>(part.stage.index);
  const auto shard = static_cast<std::size_t>(part.shard.index);
  PassEnds ends;
  if (shards_of_stage_ > 1) ends.shards = stages_[stage].shards[shard].get();
  if (!part.stage.first()) ends.before = stages_[stage - 1].after[shard].get();
  if (!part.stage.last()) ends.after = stages_[stage].after[shard].get();
  return ends;
}

absl::StatusOr<std::unique_ptr<ShardedRunner>> ShardedRunner::Make(
    const model::Architecture& whole, std::span<const ShardParts> shards, KvPool& pool,
    const RunnerOptions& options) {
  CHECK_GE(shards.size(), 2u);
  auto runner = std::unique_ptr<ShardedRunner>(new ShardedRunner(whole, shards, pool, options));
  CHECK_EQ(shards.size(),
           runner->stages_.size() * static_cast<std::size_t>(runner->shards_of_stage_));
  for (std::size_t i = 0; i < shards.size(); ++i) {
    const ShardParts& shard = shards[i];
    auto one = std::make_unique<One>();
    one->part = shard.weights->part();
    CHECK_EQ(static_cast<std::size_t>(one->part.device()), i);
    one->architecture = ArchitectureOf(whole, one->part);
    one->ends = runner->EndsOf(one->part);
    one->work = &shard.ops->stream();
    ASSIGN_OR_RETURN(one->pass,
                     ForwardPass::Make(one->architecture, shard, pool, options, one->ends));
    runner->devices_.push_back(std::move(one));
  }
  for (std::size_t i = 1; i < shards.size(); ++i) {
    try {
      runner->threads_.emplace_back(
          [r = runner.get(), device = runner->devices_[i].get()] { r->Loop(*device); });
    } catch (const std::system_error& error) {  // The destructor ends those that started.
      return absl::ResourceExhaustedError(absl::StrCat("cannot start the thread of device ", i,
                                                       " of ", shards.size(), ": ", error.what()));
    }
  }
  return runner;
}

ShardedRunner::~ShardedRunner() {
  const std::lock_guard lock(mutex_);
  stop_ = true;
  called_.notify_all();
}

void ShardedRunner::Loop(One& device) {
  for (std::uint64_t done = 0;; ++done) {
    {
      std::unique_lock lock(mutex_);
      // Idle: for as long as nobody asks for a step.
      called_.wait(lock, [&] { return stop_ || step_ > done; });
      if (stop_) return;
    }
    RunOne(device);
  }
}

void ShardedRunner::RunOne(One& device) {
  Stage& stage = StageOf(device);
  // Of a layer that one shard has stored. All of several have once its exchanges are done, behind
  // which the next one's event is.
  std::unique_ptr<Event> event;
  const auto store = [&](std::int32_t layer) {
    std::unique_ptr<Event> next = device.work->Record();
    if (shards_of_stage_ > 1) event = std::exchange(next, nullptr);
    if (layer > stage.layers.begin) SetStored(layer - 1, std::move(event));
    event = std::move(next);
  };
  const bool asked = layer_done_ != nullptr && device.part.shard.index == 0;
  for (const Portion& portion : portions_) {
    const bool last = &portion == &portions_.back();
    device.pass->Run(portion.sequences, {},
                     asked && last ? store : std::function<void(std::int32_t)>());
    if (device.part.stage.last()) CopyLogits(device, portion);
  }
  const std::lock_guard lock(mutex_);
  if (--stage.running == 0) {
    layers_[static_cast<std::size_t>(stage.layers.end) - 1].stored = true;
    changed_.notify_all();
  }
  if (--running_ == 0) changed_.notify_all();
}

void ShardedRunner::CopyLogits(const One& device, const Portion& portion) {
  const ShardRange vocab = VocabOf(device.architecture, device.part.shard);
  for (std::int32_t row = 0; row < portion.logit_rows; ++row) {
    const std::int64_t to = std::int64_t{portion.logit_begin + row} * vocab_ + vocab.begin;
    std::ranges::copy(device.pass->logits(row), logits_.begin() + to);
  }
}

void ShardedRunner::SetStored(std::int32_t layer, std::unique_ptr<Event> event) {
  const bool callers = layer < stages_[0].layers.end;
  std::unique_lock lock(mutex_);
  Layer& at = layers_[static_cast<std::size_t>(layer)];
  at.stored = true;
  at.event = std::move(event);
  changed_.notify_all();
  // The first stage's first shard runs on the caller's thread.
  if (callers) TellStored(lock);
}

void ShardedRunner::TellStored(std::unique_lock<std::mutex>& lock) {
  while (told_ < layers_.size() && layers_[told_].stored) {
    const auto layer = static_cast<std::int32_t>(told_);
    pool_.set_stored(std::move(layers_[told_++].event));
    lock.unlock();
    (*layer_done_)(layer);
    lock.lock();
  }
  pool_.set_stored(nullptr);
}

std::int32_t ShardedRunner::PortionsOf(std::span<const SequenceInput> sequences) const {
  if (stages_.size() == 1) return 1;
  std::size_t rows = 0;
  for (const SequenceInput& sequence : sequences) rows += sequence.tokens.size();
  const auto most = static_cast<std::int32_t>(stages_.size()) * kPortionsPerStage;
  return std::clamp(static_cast<std::int32_t>(rows) / options_.portion_rows_min, 1, most);
}

void ShardedRunner::Run(std::span<const SequenceInput> sequences, std::span<TokenDraw> draws,
                        const std::function<void(std::int32_t layer)>& layer_done) {
  portions_ = CutRows(sequences, PortionsOf(sequences));
  logit_rows_ = 0;
  for (const Portion& portion : portions_) logit_rows_ += portion.logit_rows;
  CHECK_LE(logit_rows_, options_.logit_rows_max);
  if (portions_.empty()) return;
  layer_done_ = layer_done ? &layer_done : nullptr;
  {
    const std::lock_guard lock(mutex_);
    for (Layer& layer : layers_) layer = {};
    told_ = 0;
    running_ = devices_.size();
    for (Stage& stage : stages_) stage.running = static_cast<std::size_t>(shards_of_stage_);
    ++step_;
    called_.notify_all();
  }
  RunOne(At(0));
  AwaitOthers();
  SampleOnHost(draws);
}

void ShardedRunner::AwaitOthers() {
  std::unique_lock lock(mutex_);
  const auto next_is_stored = [&] {
    return layer_done_ != nullptr && told_ < layers_.size() && layers_[told_].stored;
  };
  for (;;) {
    if (next_is_stored()) TellStored(lock);
    if (running_ == 0 && !next_is_stored()) return;
    if (changed_.wait_for(lock, patience_, [&] { return running_ == 0 || next_is_stored(); })) {
      continue;
    }
    const absl::Status late = absl::DeadlineExceededError(
        absl::StrCat(running_, " of ", devices_.size(), " devices did not end step ", step_,
                     " within ", ToMillis(patience_), " ms"));
    lock.unlock();
    if (options_.exchange_failed) options_.exchange_failed(late);
    CHECK_OK(late);
  }
}

std::span<const float> ShardedRunner::logits(std::int32_t i) const {
  CHECK(i >= 0 && i < logit_rows_);
  return std::span(logits_).subspan(static_cast<std::size_t>(i) * static_cast<std::size_t>(vocab_),
                                    static_cast<std::size_t>(vocab_));
}

void ShardedRunner::ForEach(std::int64_t items, absl::FunctionRef<void(std::int64_t)> work) {
  first_.ForEachOnHost(items, work);
}

}  // namespace penstock::engine
