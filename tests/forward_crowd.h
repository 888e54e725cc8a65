// SPDX-License-Identifier: Apache-2.0
// A batch of all sorts, for tests of how a model may be split.
#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <vector>

#include "tests/forward_harness.h"

namespace penstock::tests {

// Chunks and single tokens of several sequences in one pass, one of which reuses blocks of another,
// and one whose logits nobody wants: each row is that of `reference`, which `tokens`, 100 at least,
// have alone.
inline void ExpectACrowdsRows(ForwardHarness& harness, const std::vector<TokenId>& tokens,
                              const Logits& reference) {
  const auto part = [&](std::size_t begin, std::size_t end) {
    return std::vector<TokenId>(tokens.begin() + static_cast<std::ptrdiff_t>(begin),
                                tokens.begin() + static_cast<std::ptrdiff_t>(end));
  };
  ForwardHarness::Sequence first = harness.NewSequence();
  ForwardHarness::Sequence silent = harness.NewSequence();
  ForwardHarness::Sequence late = harness.NewSequence();
  EXPECT_TRUE(harness.Run({{&silent, part(0, 40), 0}}).empty());
  EXPECT_EQ(RowsThatDiffer(harness.Run({{&first, part(0, 70), 3}, {&silent, part(40, 41), 0}}),
                           reference, 67),
            0);
  ForwardHarness::Sequence shared = harness.Share(first, 64);
  for (std::size_t step = 0; step < 4; ++step) {
    const Logits rows = harness.Run({{&late, part(step * 20, step * 20 + 20), 1},
                                     {&first, part(70 + step, 71 + step), 1},
                                     {&shared, part(64 + step * 9, 73 + step * 9), 2},
                                     {&silent, part(41 + step, 42 + step), 1}});
    ASSERT_EQ(rows.size(), 5u);
    EXPECT_EQ(RowsThatDiffer({rows[0]}, reference, step * 20 + 19), 0);
    EXPECT_EQ(RowsThatDiffer({rows[1]}, reference, 70 + step), 0);
    EXPECT_EQ(RowsThatDiffer({rows[2], rows[3]}, reference, 71 + step * 9), 0);
    EXPECT_EQ(RowsThatDiffer({rows[4]}, reference, 41 + step), 0);
  }
}

}  // namespace penstock::tests
