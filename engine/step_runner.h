// SPDX-License-Identifier: Apache-2.0
// What the batching engine asks of a model: run a batch of new tokens, draw the next ones from their
// logits or hand the logits over.
// ForwardPass is the real one; tests put a fake behind it whose tokens show every block that was
// mixed up.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "absl/functional/function_ref.h"
#include "base/key.h"
#include "engine/sampler.h"
#include "kernels/ops.h"

namespace penstock::engine {

using kernels::SlabRef;

// The new tokens of one sequence, and the blocks that hold (and will hold) its KV.
struct SequenceInput {
  struct Blocks {
    std::span<const SlabRef> slabs;  // slabs[i] is block first_block + i.
    std::int32_t first_block = 0;
  };
  std::span<const TokenId> tokens;  // At positions position, position + 1, ...
  std::int32_t position = 0;
  std::span<const Blocks>
      blocks;  // One per group of the pool; cover all positions written or visible.
  std::int32_t logit_rows = 0;  // The logits of the last so many tokens are wanted.
};

class StepRunner {
 public:
  virtual ~StepRunner() = default;

  // At most so many token rows, and so many logit rows among them, in one Run.
  virtual std::int32_t rows_max() const = 0;
  virtual std::int32_t logit_rows_max() const = 0;

  // Sets `sampled` of each draw; their rows count as those of logits(). Token ids and rows must be in
  // range and the row limits kept (CHECKed). Calls layer_done(layer), unless
  // it is empty, when the KV of all rows for that model layer is on its way: it is there behind what
  // KvPool::Written gives meanwhile (what a prefill worker ships while the next layer computes).
  virtual void Run(std::span<const SequenceInput> sequences, std::span<TokenDraw> draws,
                   const std::function<void(std::int32_t layer)>& layer_done) = 0;

  // Row i of all the logits that the last Run was asked for, in the order of its sequences:
  // [vocab], host memory; valid until the next Run. Not of a row that a draw has, whose logits may
  // never have left the device.
  virtual std::span<const float> logits(std::int32_t i) const = 0;

  // Calls work(i) once for every i in [0, items), between two Runs, on whatever threads there are.
  virtual void ForEach(std::int64_t items, absl::FunctionRef<void(std::int64_t)> work) = 0;

 protected:
  // Draws from logits(): for a runner that has all of them on the host.
  void SampleOnHost(std::span<TokenDraw> draws) {
    ForEach(std::ssize(draws), [&](std::int64_t i) {
      TokenDraw& draw = draws[static_cast<std::size_t>(i)];
      SampleToken(logits(draw.row), draw);
    });
  }
};

}  // namespace penstock::engine
