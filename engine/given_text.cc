// SPDX-License-Identifier: Apache-2.0
#include "engine/given_text.h"

#include <algorithm>

#include "base/check.h"
#include "base/status.h"

namespace penstock::engine {
namespace {

absl::Status TooLittle(const KvPool& pool, std::int32_t tokens, std::int32_t at) {
  return absl::ResourceExhaustedError(
      absl::StrCat("a text of ", tokens, " tokens needs ", BytesToHold(pool, tokens),
                   " bytes of KV; the pool has ", pool.stats().bytes_budget, ", of which ",
                   pool.bytes_available(), " were left at token ", at));
}

void IgnoreRow(std::int32_t, std::span<const float>) {}

}  // namespace

absl::Status GivenText::Feed(std::span<const TokenId> tokens) {
  return Run(tokens, Rows::kNone, IgnoreRow);
}

absl::Status GivenText::Score(std::span<const TokenId> tokens, Row row) {
  return Run(tokens, Rows::kInOrder, row);
}

absl::Status GivenText::ScoreAtOnce(std::span<const TokenId> tokens, Row row) {
  return Run(tokens, Rows::kAtOnce, row);
}

absl::Status GivenText::Run(std::span<const TokenId> tokens, Rows rows, Row row) {
  const std::int32_t rows_max = rows == Rows::kNone
                                    ? runner_.rows_max()
                                    : std::min(runner_.rows_max(), runner_.logit_rows_max());
  CHECK_GT(rows_max, 0);
  const std::int32_t before = position_;
  const std::int32_t all = before + static_cast<std::int32_t>(tokens.size());
  const std::int32_t block_tokens = pool_.block_tokens();
  while (position_ < all) {
    std::int32_t end = std::min(all, position_ + rows_max);
    for (std::int32_t b = position_ / block_tokens; b * block_tokens < end; ++b) {
      if (!blocks_.Extend(b)) end = b * block_tokens;
    }
    if (end <= position_) return TooLittle(pool_, all, position_);
    const std::int32_t count = end - position_;
    const SequenceInput input{.tokens = tokens.subspan(static_cast<std::size_t>(position_ - before),
                                                       static_cast<std::size_t>(count)),
                              .position = position_,
                              .blocks = blocks_.views(),
                              .logit_rows = rows == Rows::kNone ? 0 : count};
    runner_.Run({&input, 1}, {}, {});
    if (rows == Rows::kInOrder) {
      for (std::int32_t i = 0; i < count; ++i) row(position_ + i, runner_.logits(i));
    } else if (rows == Rows::kAtOnce) {
      runner_.ForEach(count, [&](std::int64_t i) {
        const auto at = static_cast<std::int32_t>(i);
        row(position_ + at, runner_.logits(at));
      });
    }
    position_ = end;
    blocks_.DropInvisible(position_);
  }
  return absl::OkStatus();
}

void GivenText::ShareFrom(const GivenText& other) {
  CHECK_EQ(position_, 0);
  CHECK_EQ(other.position_ % pool_.block_tokens(), 0);
  blocks_.ShareFrom(other.blocks_);
  position_ = other.position_;
}

absl::Status GivenText::StartAt(std::int32_t position) {
  CHECK_EQ(position_, 0);
  CHECK_EQ(position % pool_.block_tokens(), 0);
  blocks_.StartAtVisible(position);
  if (!blocks_.ExtendTo(position / pool_.block_tokens() - 1)) {
    blocks_.Release();
    return TooLittle(pool_, position, 0);
  }
  position_ = position;
  return absl::OkStatus();
}

}  // namespace penstock::engine
