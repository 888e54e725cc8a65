// SPDX-License-Identifier: Apache-2.0
#include "engine/perplexity.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <vector>

#include "base/check.h"
#include "base/status.h"
#include "kernels/sampling.h"

namespace penstock::engine {
namespace {

// The KV blocks of one window of the text; layers with a sliding window keep only theirs.
class WindowBlocks {
 public:
  explicit WindowBlocks(KvPool& pool)
      : pool_(pool), groups_(static_cast<std::size_t>(pool.groups())) {}
  ~WindowBlocks() {
    for (std::int32_t group = 0; group < pool_.groups(); ++group) {
      for (const SlabRef slab : groups_[static_cast<std::size_t>(group)].slabs) {
        pool_.Release(group, slab);
      }
    }
  }
  WindowBlocks(const WindowBlocks&) = delete;
  WindowBlocks& operator=(const WindowBlocks&) = delete;

  // Makes room for positions [begin, end), after everything before `begin` was computed.
  absl::Status Advance(std::int32_t begin, std::int32_t end) {
    for (std::int32_t group = 0; group < pool_.groups(); ++group) {
      Group& held = groups_[static_cast<std::size_t>(group)];
      const std::int32_t window = pool_.layout(group).group.window_tokens;
      while (window > 0 && !held.slabs.empty() &&
             (held.first_block + 1) * pool_.block_tokens() <= begin - window + 1) {
        pool_.Release(group, held.slabs.front());
        held.slabs.erase(held.slabs.begin());
        ++held.first_block;
      }
      while ((held.first_block + static_cast<std::int64_t>(held.slabs.size())) *
                 pool_.block_tokens() <
             end) {
        const std::optional<SlabRef> slab = pool_.Allocate(group);
        if (!slab.has_value()) {
          return absl::ResourceExhaustedError(
              absl::StrCat("a window of ", end, " tokens does not fit into the KV pool of ",
                           pool_.stats().bytes_budget, " bytes; raise --kv-bytes"));
        }
        held.slabs.push_back(*slab);
      }
    }
    return absl::OkStatus();
  }

  std::vector<SequenceInput::Blocks> View() const {
    std::vector<SequenceInput::Blocks> view;
    for (const Group& group : groups_) view.push_back({group.slabs, group.first_block});
    return view;
  }

 private:
  struct Group {
    std::vector<SlabRef> slabs;
    std::int32_t first_block = 0;
  };
  KvPool& pool_;
  std::vector<Group> groups_;
};

// Adds the negative log-likelihoods of window[first_scored..] to `sum`.
absl::Status ScoreWindow(ForwardPass& pass, KvPool& pool, std::span<const TokenId> window,
                         std::int32_t first_scored, absl::FunctionRef<bool(std::int32_t)> progress,
                         double* sum) {
  WindowBlocks blocks(pool);
  // The logits at position p score token p + 1; the last position's score none.
  const auto positions = static_cast<std::int32_t>(window.size()) - 1;
  for (std::int32_t begin = 0; begin < positions;) {
    const bool scoring = begin + 1 >= first_scored;
    // Whatever comes before the first scored token needs no logits, and goes in larger chunks.
    const std::int32_t end =
        scoring ? std::min(begin + std::min(pass.logit_rows_max(), pass.rows_max()), positions)
                : std::min({begin + pass.rows_max(), first_scored - 1, positions});
    RETURN_IF_ERROR(blocks.Advance(begin, end));
    const std::vector<SequenceInput::Blocks> view = blocks.View();
    const SequenceInput input = {.tokens = window.subspan(static_cast<std::size_t>(begin),
                                                          static_cast<std::size_t>(end - begin)),
                                 .position = begin,
                                 .blocks = view,
                                 .logit_rows = scoring ? end - begin : 0};
    pass.Run({&input, 1}, {});
    for (std::int32_t i = 0; scoring && i < end - begin; ++i) {
      const std::span<const float> logits = pass.logits(i);
      const TokenId next = window[static_cast<std::size_t>(begin + i + 1)];
      const double surprise = kernels::LogSumExp(logits) - logits[static_cast<std::size_t>(next)];
      if (!std::isfinite(surprise)) {
        return absl::InternalError(
            absl::StrCat("the model gave no usable logits at token ", begin + i + 1));
      }
      *sum += surprise;
    }
    begin = end;
    if (!progress(end)) return absl::CancelledError("interrupted");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Perplexity> ScoreText(LocalModel& model, std::span<const TokenId> tokens,
                                     std::int32_t context_tokens, std::int32_t stride_tokens,
                                     absl::FunctionRef<bool(std::int64_t)> progress) {
  const auto count = static_cast<std::int64_t>(tokens.size());
  if (count < 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("a text needs at least 2 tokens to be scored, got ", count));
  }
  if (stride_tokens < 1 || stride_tokens > context_tokens) {
    return absl::InvalidArgumentError(absl::StrCat(
        "stride is ", stride_tokens, ", must be 1 to the context of ", context_tokens, " tokens"));
  }
  for (const TokenId token : tokens) {
    if (token < 0 || token >= model.architecture().vocab) {
      return absl::InvalidArgumentError(absl::StrCat(
          "token ", token, " is outside the vocabulary of ", model.architecture().vocab));
    }
  }
  ASSIGN_OR_RETURN(const std::unique_ptr<KvPool> pool, model.MakePool());
  ASSIGN_OR_RETURN(const std::unique_ptr<ForwardPass> pass, model.MakeForwardPass(*pool));
  double sum = 0;
  std::int64_t scored_to = 1;  // Tokens before this one are scored; the first never is.
  for (std::int64_t begin = 0; scored_to < count; begin += stride_tokens) {
    const std::int64_t end = std::min<std::int64_t>(begin + context_tokens, count);
    RETURN_IF_ERROR(ScoreWindow(
        *pass, *pool,
        tokens.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin)),
        static_cast<std::int32_t>(scored_to - begin),
        [&](std::int32_t done) { return progress(begin + done); }, &sum));
    scored_to = end;
  }
  return Perplexity{std::exp(sum / static_cast<double>(count - 1)), count - 1};
}

}  // namespace penstock::engine
