// SPDX-License-Identifier: Apache-2.0
#include "engine/batch_portions.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"

namespace penstock::engine {
namespace {

using testing::ElementsAre;

// One new token of a batch: whose it is, where, and whether its logits are wanted.
struct Row {
  std::size_t sequence;
  TokenId token;
  std::int32_t position;
  bool wanted;
  bool operator==(const Row&) const = default;
};
// `sequence` is told by the blocks, which nobody else has.
std::vector<Row> RowsOf(std::span<const SequenceInput> sequences,
                        const SequenceInput::Blocks* blocks) {
  std::vector<Row> rows;
  for (const SequenceInput& s : sequences) {
    for (std::size_t i = 0; i < s.tokens.size(); ++i) {
      rows.push_back(
          {static_cast<std::size_t>(s.blocks.data() - blocks), s.tokens[i],
           s.position + static_cast<std::int32_t>(i),
           std::cmp_greater_equal(i + static_cast<std::size_t>(s.logit_rows), s.tokens.size())});
    }
  }
  return rows;
}

std::vector<std::size_t> SizesOf(std::span<const Portion> portions) {
  std::vector<std::size_t> sizes;
  for (const Portion& p : portions) sizes.push_back(RowsOf(p.sequences, nullptr).size());
  return sizes;
}

TEST(CutRowsTest, AsEvenAsCanBe) {
  const std::vector<TokenId> tokens(10);
  SequenceInput one, two[2];
  one.tokens = two[1].tokens = tokens;
  two[0].tokens = std::span(tokens).first(3);
  EXPECT_THAT(SizesOf(CutRows({&one, 1}, 1)), ElementsAre(10));
  EXPECT_THAT(SizesOf(CutRows({&one, 1}, 4)), ElementsAre(2, 3, 2, 3));
  EXPECT_THAT(SizesOf(CutRows({&one, 1}, 99)), testing::SizeIs(10));
  EXPECT_THAT(SizesOf(CutRows(two, 2)), ElementsAre(6, 7));
  EXPECT_TRUE(CutRows({}, 4).empty());
  const SequenceInput none;
  EXPECT_TRUE(CutRows({&none, 1}, 4).empty());
}

TEST(CutRowsTest, NoRowIsLostOrMoved) {
  for (std::uint32_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed=", seed));
    std::mt19937 random(seed);
    std::vector<TokenId> tokens(40);
    std::iota(tokens.begin(), tokens.end(), 0);
    const std::vector<SequenceInput::Blocks> blocks(random() % 6);
    std::vector<SequenceInput> batch;
    for (const SequenceInput::Blocks& own : blocks) {
      const auto count = random() % 40;
      batch.push_back({.tokens = std::span(tokens).subspan(random() % (40 - count), count),
                       .position = static_cast<std::int32_t>(random() % 100),
                       .blocks = {&own, 1},
                       .logit_rows = static_cast<std::int32_t>(random() % (count + 1))});
    }
    const auto portions = static_cast<std::int32_t>(random() % 9 + 1);
    std::vector<Row> rows;
    std::int32_t logits = 0;
    for (const Portion& portion : CutRows(batch, portions)) {
      const std::vector<Row> own = RowsOf(portion.sequences, blocks.data());
      rows.insert(rows.end(), own.begin(), own.end());
      EXPECT_EQ(portion.logit_begin, logits);
      EXPECT_EQ(portion.logit_rows, std::ranges::count(own, true, &Row::wanted));
      logits += portion.logit_rows;
    }
    EXPECT_EQ(rows, RowsOf(batch, blocks.data()));
  }
}

}  // namespace
}  // namespace penstock::engine
