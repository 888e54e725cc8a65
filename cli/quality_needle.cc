// SPDX-License-Identifier: Apache-2.0
#include "cli/quality_needle.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "engine/divergence.h"
#include "kernels/sampling.h"

namespace penstock::cli {
namespace {

constexpr char kQuestion[] = "\n\nWhat is the pass key? The pass key is";

std::vector<TokenId> Encode(const model::Tokenizer& tokenizer, const std::string& text) {
  return tokenizer.Encode(text, {.parse_special = false, .add_bos = false});
}

std::string NumberOf(std::int32_t i) {
  std::mt19937 random(static_cast<std::uint32_t>(i) + 1);
  return absl::StrCat(10000 + random() % 90000);
}

}  // namespace

absl::StatusOr<NeedlePrompt> MakeNeedlePrompt(const model::Tokenizer& tokenizer,
                                              std::span<const TokenId> haystack,
                                              std::int32_t prompt_tokens, std::int32_t i,
                                              std::int32_t needles) {
  const std::string number = NumberOf(i);
  const std::vector<TokenId> told =
      Encode(tokenizer, absl::StrCat("\n\nThe pass key is ", number,
                                     ". Remember it: the pass key is ", number, ".\n\n"));
  NeedlePrompt needle;
  needle.question = Encode(tokenizer, kQuestion);
  needle.answer = Encode(tokenizer, absl::StrCat(kQuestion, " ", number));
  // Both begin the same, however the tokenizer cuts digits and spaces.
  const auto [at, other] = std::ranges::mismatch(needle.question, needle.answer);
  needle.question.erase(at, needle.question.end());
  needle.answer.erase(needle.answer.begin(), other);
  const std::size_t asked = needle.question.size() + needle.answer.size();
  const std::size_t told_max = kNeedlePromptTokensMin / 2;
  if (told.size() > told_max || asked > kNeedleAnswerTokensMax || needle.question.empty() ||
      needle.answer.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "needles: sentences of at most ", told_max, " and ", kNeedleAnswerTokensMax,
        " tokens, this model's tokenizer makes ", told.size(), " and ", asked, " of them"));
  }
  // The first token stays the first: it may be the model's mark of a beginning.
  const std::size_t hay = static_cast<std::size_t>(prompt_tokens) - told.size();
  const auto share = needles > 1 ? static_cast<double>(i) / (needles - 1) : 0.5;
  const auto depth = 1 + static_cast<std::size_t>(share * static_cast<double>(hay - 1));
  const auto add = [&](std::span<const TokenId> tokens) {
    needle.prompt.insert(needle.prompt.end(), tokens.begin(), tokens.end());
  };
  add(haystack.first(depth));
  add(told);
  add(haystack.subspan(depth, hay - depth));
  return needle;
}

absl::StatusOr<NeedleAnswer> AskForNeedle(engine::GivenText& prompt, const NeedlePrompt& needle) {
  std::vector<TokenId> seen = needle.question;
  seen.insert(seen.end(), needle.answer.begin(), needle.answer.end());
  seen.pop_back();  // The last one is only ever predicted.
  const std::size_t before = needle.question.size() - 1;
  RETURN_IF_ERROR(prompt.Feed(std::span(seen).first(before)));
  const std::int32_t begin = prompt.position();
  NeedleAnswer answer{.correct = true, .nll = 0};
  RETURN_IF_ERROR(prompt.Score(
      std::span(seen).subspan(before), [&](std::int32_t position, std::span<const float> logits) {
        const TokenId want = needle.answer[static_cast<std::size_t>(position - begin)];
        answer.nll += engine::Compare(logits, logits, want).p_nll;
        answer.correct = answer.correct && kernels::ArgMax(logits).index == want;
      }));
  answer.nll /= static_cast<double>(needle.answer.size());
  if (std::isfinite(answer.nll)) return answer;
  return absl::InternalError("the model gave logits that are not finite");
}

}  // namespace penstock::cli
