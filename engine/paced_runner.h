// SPDX-License-Identifier: Apache-2.0
// A model that computes nothing and takes the time of one that does: for clusters larger than the
// machine they are tried on, and for measuring what is not the model. Memory, transfers and
// messages are the real ones: every token writes the KV of all layers and heads, layer by layer, as
// its time passes.
//
// The next token is a pure function of those before it, read back from the KV: of one row in every
// 16 positions that are visible, in another layer and head each time, and of the row before. So
// blocks that were lost, mixed up or damaged show in the answer, as with a real model, and an
// answer has the same tokens however it was batched, chunked, reused, moved or split.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/time.h"
#include "engine/kv_pool.h"
#include "engine/step_runner.h"

namespace penstock::engine {

// What a pass takes: `step`, `sequence` for each that adds one token, and the tokens of all others
// at `prefill_tokens_per_s`.
struct Pace {
  double prefill_tokens_per_s = 8000;
  Duration step = std::chrono::milliseconds(8);
  Duration sequence = std::chrono::microseconds(200);

  // INVALID_ARGUMENT naming the field, its value and the limits: a rate of 1 to 1e9, times of 0 to
  // 10 seconds.
  absl::Status Validate() const;
  Duration Of(std::span<const SequenceInput> sequences) const;
};

// One thread at a time (the engine's loop).
class PacedRunner final : public StepRunner {
 public:
  struct Options {
    Pace pace = {};
    std::int32_t vocab = 0;
    std::int32_t rows_max = 0;
    std::int32_t logit_rows_max = 0;
  };
  // Returns at a time or later.
  using WaitUntil = std::function<void(MonoTime when)>;

  // Pool and clock outlive the runner; the pool is in host memory.
  PacedRunner(KvPool& pool, const Options& options, const Clock& clock, WaitUntil wait_until);
  PacedRunner(KvPool& pool, const Options& options);  // Real time.

  std::int32_t rows_max() const override { return options_.rows_max; }
  std::int32_t logit_rows_max() const override { return options_.logit_rows_max; }
  void Run(std::span<const SequenceInput> sequences, std::span<TokenDraw> draws,
           const std::function<void(std::int32_t layer)>& layer_done) override;
  std::span<const float> logits(std::int32_t i) const override;
  void ForEach(std::int64_t items, absl::FunctionRef<void(std::int64_t)> work) override;

 private:
  // A row of K and its V: the value of one token in one layer and head.
  struct Row {
    std::byte* k = nullptr;
    std::byte* v = nullptr;
    std::byte* k_scale = nullptr;  // Empty where the dtype has none.
    std::byte* v_scale = nullptr;
  };
  Row RowAt(const SequenceInput& sequence, KvLayerRef layer, std::int32_t head,
            std::int32_t position) const;
  std::uint64_t Read(const SequenceInput& sequence, KvLayerRef layer, std::int32_t head,
                     std::int32_t position) const;
  void AppendValues(const SequenceInput& sequence);
  void Write(const SequenceInput& sequence, std::size_t first_value, KvLayerRef layer);
  std::uint64_t Digest(const SequenceInput& sequence, std::int32_t position) const;
  void SetLogits(std::size_t row, std::uint64_t digest);

  KvPool& pool_;
  const Options options_;
  const Clock& clock_;
  const WaitUntil wait_until_;
  std::vector<std::uint64_t> values_;  // Of the rows of this pass, in their order.
  std::vector<float> logits_;          // [logit_rows_max, vocab]: one is high, the others low.
  std::vector<std::size_t> high_;      // Which; by row.
  std::size_t logit_rows_ = 0;         // Of the last pass.
};

}  // namespace penstock::engine
