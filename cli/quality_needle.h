// SPDX-License-Identifier: Apache-2.0
// Needles in a haystack: a number of five digits, told somewhere in a long text and asked for behind
// it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "base/key.h"
#include "engine/given_text.h"
#include "model/tokenizer.h"

namespace penstock::cli {

inline constexpr std::int32_t kNeedlePromptTokensMin = 128;
inline constexpr std::int32_t kNeedleAnswerTokensMax = 64;  // Of question and answer.

struct NeedlePrompt {
  std::vector<TokenId> prompt;    // The text with the needle in it.
  std::vector<TokenId> question;  // Goes on behind it,
  std::vector<TokenId> answer;    // and this.
};

// Needle `i` of `needles`: at a share of i / (needles - 1) of a prompt of prompt_tokens (at least
// kNeedlePromptTokensMin), made of the first of `haystack`, which has as many. The same number for
// the same i. INVALID_ARGUMENT where the tokenizer takes too many tokens for the sentences.
absl::StatusOr<NeedlePrompt> MakeNeedlePrompt(const model::Tokenizer& tokenizer,
                                              std::span<const TokenId> haystack,
                                              std::int32_t prompt_tokens, std::int32_t i,
                                              std::int32_t needles);

struct NeedleAnswer {
  bool correct = false;  // Each token of the answer was the likeliest.
  double nll = 0;        // Mean of the answer's tokens, in nats.
};
// Feeds question and answer to `prompt`, which is the needle's. Errors as GivenText::Feed; INTERNAL
// where logits are not finite.
absl::StatusOr<NeedleAnswer> AskForNeedle(engine::GivenText& prompt, const NeedlePrompt& needle);

class NeedleTally {
 public:
  // An answer, and that of the full cache to the same question.
  void Add(const NeedleAnswer& answer, const NeedleAnswer& full) {
    correct_ += answer.correct && full.correct ? 1 : 0;
    nll_ += answer.nll;
    ++count_;
  }
  std::int32_t correct() const { return correct_; }  // Of those that the full cache got right.
  double mean_nll() const { return nll_ / count_; }

 private:
  std::int32_t correct_ = 0, count_ = 0;
  double nll_ = 0;
};

}  // namespace penstock::cli
