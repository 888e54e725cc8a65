// SPDX-License-Identifier: Apache-2.0
#include "engine/batch_portions.h"

#include <algorithm>

#include "base/check.h"

namespace penstock::engine {
namespace {

// Tokens [begin, end) of a sequence's new ones.
SequenceInput TokensOf(const SequenceInput& whole, std::int32_t begin, std::int32_t end) {
  const auto tokens = static_cast<std::int32_t>(whole.tokens.size());
  SequenceInput run = whole;
  run.tokens =
      whole.tokens.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin));
  run.position += begin;
  // Those of the last tokens are wanted.
  const std::int32_t wanted = tokens - whole.logit_rows;
  run.logit_rows = std::max(end - std::max(begin, wanted), 0);
  return run;
}

}  // namespace

std::vector<Portion> CutRows(std::span<const SequenceInput> sequences, std::int32_t portions) {
  CHECK_GE(portions, 1);
  std::int64_t rows = 0;
  for (const SequenceInput& s : sequences) rows += std::ssize(s.tokens);
  const std::int64_t count = std::min<std::int64_t>(portions, rows);
  std::vector<Portion> all;
  std::int64_t done = 0;  // Rows.
  std::int32_t logits = 0;
  for (const SequenceInput& s : sequences) {
    const auto tokens = static_cast<std::int32_t>(s.tokens.size());
    for (std::int32_t begin = 0; begin < tokens;) {
      // Portion p ends at row rows * (p + 1) / count.
      if (all.empty() || done == rows * std::ssize(all) / count) {
        all.push_back({.sequences = {}, .logit_begin = logits});
      }
      const std::int64_t left = rows * std::ssize(all) / count - done;
      const auto end = static_cast<std::int32_t>(std::min<std::int64_t>(tokens, begin + left));
      const SequenceInput run = TokensOf(s, begin, end);
      all.back().sequences.push_back(run);
      all.back().logit_rows += run.logit_rows;
      logits += run.logit_rows;
      done += end - begin;
      begin = end;
    }
  }
  return all;
}

}  // namespace penstock::engine
