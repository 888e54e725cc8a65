// SPDX-License-Identifier: Apache-2.0
#include "engine/sharded_runner.h"

#include <algorithm>
#include <system_error>
#include <utility>

#include "base/check.h"
#include "base/check_ok.h"
#include "base/status.h"

namespace penstock::engine {

ShardedRunner::ShardedRunner(const model::Architecture& whole, Device& first,
                             const RunnerOptions& options)
    : vocab_(whole.vocab),
      first_(first),
      options_(options),
      logits_(static_cast<std::size_t>(options.logit_rows_max) *
              static_cast<std::size_t>(whole.vocab)) {}

absl::StatusOr<std::unique_ptr<ShardedRunner>> ShardedRunner::Make(
    const model::Architecture& whole, std::span<const ShardParts> shards, KvPool& pool,
    const RunnerOptions& options) {
  CHECK_GE(shards.size(), 2u);
  auto runner =
      std::unique_ptr<ShardedRunner>(new ShardedRunner(whole, *shards[0].device, options));
  std::vector<std::unique_ptr<transfer::Collectives>> collectives =
      transfer::MakeLocalCollectives(static_cast<std::int32_t>(shards.size()), options.patience);
  for (std::size_t i = 0; i < shards.size(); ++i) {
    const ShardParts& shard = shards[i];
    auto one = std::make_unique<One>();
    one->architecture = ArchitectureOf(whole, shard.weights->shard());
    one->vocab = VocabOf(whole, shard.weights->shard());
    one->collectives = std::move(collectives[i]);
    ASSIGN_OR_RETURN(one->pass, ForwardPass::Make(one->architecture, shard, pool, options,
                                                  one->collectives.get()));
    runner->shards_.push_back(std::move(one));
  }
  for (std::size_t i = 1; i < shards.size(); ++i) {
    try {
      runner->threads_.emplace_back(
          [r = runner.get(), shard = runner->shards_[i].get()] { r->Loop(*shard); });
    } catch (const std::system_error& error) {  // The destructor ends those that started.
      return absl::ResourceExhaustedError(absl::StrCat("cannot start the thread of shard ", i,
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

void ShardedRunner::Loop(const One& shard) {
  for (std::uint64_t done = 0;; ++done) {
    std::span<const SequenceInput> sequences;
    {
      std::unique_lock lock(mutex_);
      // Idle: for as long as nobody asks for a step.
      called_.wait(lock, [&] { return stop_ || step_ > done; });
      if (stop_) return;
      sequences = sequences_;
    }
    RunOne(shard, sequences, {});
    const std::lock_guard lock(mutex_);
    if (--running_ == 0) done_.notify_all();
  }
}

void ShardedRunner::RunOne(const One& shard, std::span<const SequenceInput> sequences,
                           const std::function<void(std::int32_t layer)>& layer_done) {
  shard.pass->Run(sequences, {}, layer_done);
  for (std::int32_t row = 0; row < logit_rows_; ++row) {
    std::ranges::copy(shard.pass->logits(row),
                      logits_.begin() + std::int64_t{row} * vocab_ + shard.vocab.begin);
  }
}

void ShardedRunner::Run(std::span<const SequenceInput> sequences, std::span<TokenDraw> draws,
                        const std::function<void(std::int32_t layer)>& layer_done) {
  logit_rows_ = 0;
  for (const SequenceInput& sequence : sequences) logit_rows_ += sequence.logit_rows;
  CHECK_LE(logit_rows_, options_.logit_rows_max);
  {
    const std::lock_guard lock(mutex_);
    sequences_ = sequences;
    running_ = threads_.size();
    ++step_;
    called_.notify_all();
  }
  std::int32_t stored = 0;  // Layers, by the first shard.
  const auto store = [&](std::int32_t layer) {
    if (stored > 0) layer_done(stored - 1);
    stored = layer + 1;
  };
  RunOne(*shards_[0], sequences, layer_done ? store : std::function<void(std::int32_t)>());
  {
    std::unique_lock lock(mutex_);
    // What is left after the last exchange is no more than the head.
    if (!done_.wait_for(lock, options_.patience, [&] { return running_ == 0; })) {
      CHECK_OK(absl::DeadlineExceededError(
          absl::StrCat(running_, " of ", shards_.size(), " shards did not end step ", step_,
                       " within ", ToMillis(options_.patience), " ms")));
    }
  }
  if (stored > 0) layer_done(stored - 1);
  SampleOnHost(draws);
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
