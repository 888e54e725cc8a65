// SPDX-License-Identifier: Apache-2.0
// For tests: a "model" whose KV and logits are hashes. The value of a token is a hash of itself and
// of all values it may see, kept in the slabs like KV, one per group; the logits are a hash of the
// last token's values. So a block that was mixed up, lost, shared while written, or let go too
// early, gives other tokens than FakeModel computes without any blocks.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <span>
#include <vector>

#include "base/check.h"
#include "engine/block_table.h"
#include "engine/kv_pool.h"
#include "engine/step_runner.h"

namespace penstock::engine {

inline std::uint64_t MixHash(std::uint64_t x) {  // splitmix64's finalizer.
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// What a slab holds for one position.
struct FakeValue {
  std::uint64_t value = 0;
  std::uint64_t position = 0;
};

inline std::uint64_t FakeValueOf(TokenId token, std::int32_t position, std::uint64_t sum_seen,
                                 std::size_t group) {
  const auto n = static_cast<std::uint64_t>(token) * 0x9e3779b97f4a7c15u;
  return MixHash(MixHash(n + static_cast<std::uint64_t>(position)) ^ MixHash(sum_seen + group));
}

inline void FakeLogits(std::uint64_t hash, std::span<float> logits) {
  for (std::size_t i = 0; i < logits.size(); ++i) {
    logits[i] = static_cast<float>(MixHash(hash + i * 0x9e3779b97f4a7c15u) % 4096) / 512;
  }
}

// The same without blocks: tokens in, logits of the last one out.
class FakeModel {
 public:
  FakeModel(const KvSpec& spec, std::int32_t vocab)
      : spec_(spec), values_(spec.groups.size()), logits_(static_cast<std::size_t>(vocab)) {}

  std::span<const float> Feed(std::span<const TokenId> tokens) {
    for (const TokenId token : tokens) {
      std::uint64_t hash = 0;
      for (std::size_t g = 0; g < values_.size(); ++g) {
        std::vector<std::uint64_t>& values = values_[g];
        const auto window = static_cast<std::size_t>(spec_.groups[g].window_tokens);
        std::size_t first = 0;
        if (window != 0 && values.size() >= window) first = values.size() - window + 1;
        std::uint64_t sum = 0;
        for (std::size_t p = first; p < values.size(); ++p) sum += values[p];
        values.push_back(FakeValueOf(token, static_cast<std::int32_t>(values.size()), sum, g));
        hash = MixHash(hash + values.back());
      }
      FakeLogits(hash, logits_);
    }
    return logits_;
  }

 private:
  const KvSpec spec_;
  std::vector<std::vector<std::uint64_t>> values_;
  std::vector<float> logits_;
};

class FakeStepRunner final : public StepRunner {
 public:
  FakeStepRunner(KvPool& pool, std::int32_t vocab, std::int32_t rows_max,
                 std::int32_t logit_rows_max)
      : pool_(pool), vocab_(vocab), rows_max_(rows_max), logit_rows_max_(logit_rows_max) {}

  std::int32_t rows_max() const override { return rows_max_; }
  std::int32_t logit_rows_max() const override { return logit_rows_max_; }
  std::span<const float> logits(std::int32_t i) const override {
    return logits_.at(static_cast<std::size_t>(i));
  }
  void Run(std::span<const SequenceInput> sequences, std::span<TokenDraw> draws,
           const std::function<void(std::int32_t layer)>& layer_done) override {
    logits_.clear();
    last_run_.clear();
    std::int32_t rows = 0;
    for (const SequenceInput& sequence : sequences) {
      last_run_.push_back({sequence.position, static_cast<std::int32_t>(sequence.tokens.size())});
      CHECK(!sequence.tokens.empty());
      CHECK_EQ(sequence.blocks.size(), static_cast<std::size_t>(pool_.groups()));
      for (std::int32_t t = 0; t < static_cast<std::int32_t>(sequence.tokens.size()); ++t) {
        RunRow(sequence, t);
        ++rows;
      }
    }
    CHECK_LE(rows, rows_max_);
    // One layer a group.
    for (std::int32_t g = 0; layer_done && g < pool_.groups(); ++g) layer_done(g);
    CHECK_LE(logits_.size(), static_cast<std::size_t>(logit_rows_max_));
    SampleOnHost(draws);
  }
  void ForEach(std::int64_t items, absl::FunctionRef<void(std::int64_t)> work) override {
    for (std::int64_t i = 0; i < items; ++i) work(i);
  }
  // From now on the logits after `token` are not finite.
  void BreakOn(TokenId token) { broken_token_ = token; }

  struct Chunk {
    std::int32_t position;
    std::int32_t rows;
    bool operator==(const Chunk&) const = default;
  };
  const std::vector<Chunk>& last_run() const { return last_run_; }

 private:
  FakeValue* ValueAt(const SequenceInput& sequence, std::int32_t g, std::int32_t position,
                     bool for_writing) {
    const SequenceInput::Blocks& blocks = sequence.blocks[static_cast<std::size_t>(g)];
    const std::int32_t i = position / pool_.block_tokens() - blocks.first_block;
    CHECK(i >= 0 && i < static_cast<std::int32_t>(blocks.slabs.size()));
    const SlabRef slab = blocks.slabs[static_cast<std::size_t>(i)];
    if (for_writing) CHECK_EQ(pool_.refs(g, slab), 1);
    CHECK_GE(pool_.layout(g).block_bytes() / sizeof(FakeValue),
             static_cast<std::size_t>(pool_.block_tokens()));
    const kernels::SlabPools pools = pool_.pools(g);
    std::byte* const bytes = pools.base[slab.pool] + slab.index * pools.stride_bytes[slab.pool];
    return reinterpret_cast<FakeValue*>(bytes) + position % pool_.block_tokens();
  }

  void RunRow(const SequenceInput& sequence, std::int32_t t) {
    const std::int32_t position = sequence.position + t;
    const TokenId token = sequence.tokens[static_cast<std::size_t>(t)];
    CHECK(token >= 0 && token < vocab_);
    std::uint64_t hash = 0;
    for (std::int32_t g = 0; g < pool_.groups(); ++g) {
      const std::int32_t window = pool_.layout(g).group.window_tokens;
      const std::int32_t first = window == 0 ? 0 : std::max(0, position - window + 1);
      std::uint64_t sum = 0;
      for (std::int32_t p = first; p < position; ++p) {
        const FakeValue* seen = ValueAt(sequence, g, p, false);
        sum += seen->position == static_cast<std::uint64_t>(p) ? seen->value : 1;
      }
      const std::uint64_t value = FakeValueOf(token, position, sum, static_cast<std::size_t>(g));
      *ValueAt(sequence, g, position, true) = {value, static_cast<std::uint64_t>(position)};
      hash = MixHash(hash + value);
    }
    const auto rows = static_cast<std::int32_t>(sequence.tokens.size());
    if (rows - t > sequence.logit_rows) return;
    logits_.emplace_back(static_cast<std::size_t>(vocab_));
    FakeLogits(hash, logits_.back());
    if (token == broken_token_) {
      std::fill(logits_.back().begin(), logits_.back().end(), std::nanf(""));
    }
  }

  KvPool& pool_;
  const std::int32_t vocab_;
  const std::int32_t rows_max_;
  const std::int32_t logit_rows_max_;
  TokenId broken_token_ = -1;
  std::vector<std::vector<float>> logits_;
  std::vector<Chunk> last_run_;
};

}  // namespace penstock::engine
