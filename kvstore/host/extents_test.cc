// SPDX-License-Identifier: Apache-2.0
#include "kvstore/host/extents.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <utility>
#include <vector>

#include "base/seed_testing.h"

namespace penstock::kvstore {
namespace {

TEST(ExtentsTest, FirstFitFromTheLowestAddress) {
  Extents extents(10);
  EXPECT_EQ(extents.Take(11), std::nullopt);
  EXPECT_EQ(extents.Take(3), 0u);
  EXPECT_EQ(extents.Take(2), 3u);
  EXPECT_EQ(extents.Take(5), 5u);
  EXPECT_EQ(extents.Take(1), std::nullopt);
  EXPECT_EQ(extents.free(), 0u);
  EXPECT_EQ(extents.runs(), 0u);
  extents.Give(0, 3);
  extents.Give(5, 5);
  EXPECT_EQ(extents.runs(), 2u);
  EXPECT_EQ(extents.longest(), 5u);
  EXPECT_EQ(extents.Take(4), 5u);  // The lower one is too short.
  EXPECT_EQ(extents.Take(2), 0u);
  EXPECT_EQ(extents.Take(2), std::nullopt);  // Two are free, in two places.
  EXPECT_EQ(extents.free(), 2u);
}

TEST(ExtentsTest, JoinsWhatIsFreeOnBothSides) {
  for (const auto& order : std::vector<std::vector<std::uint64_t>>{
           {0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}}) {
    Extents extents(3);
    for (std::uint64_t page = 0; page < 3; ++page) EXPECT_EQ(extents.Take(1), page);
    for (const std::uint64_t page : order) extents.Give(page, 1);
    EXPECT_EQ(extents.runs(), 1u);
    EXPECT_EQ(extents.longest(), 3u);
    EXPECT_EQ(extents.Take(3), 0u);
  }
}

TEST(ExtentsTest, WithoutPages) {
  Extents extents(0);
  EXPECT_EQ(extents.longest(), 0u);
  EXPECT_EQ(extents.Take(1), std::nullopt);
}

TEST(ExtentsDeathTest, NothingIsFreedTwice) {
  Extents extents(8);
  ASSERT_EQ(extents.Take(6), 0u);
  EXPECT_DEATH(extents.Give(5, 2), "");  // Page 6 is free.
  EXPECT_DEATH(extents.Give(6, 1), "");
  EXPECT_DEATH(extents.Give(0, 9), "");
  EXPECT_DEATH(extents.Give(UINT64_MAX, 2), "");
  extents.Give(2, 2);
  EXPECT_DEATH(extents.Give(1, 2), "");
  EXPECT_DEATH(extents.Give(3, 1), "");
}

// One flag for each page.
class Plain {
 public:
  explicit Plain(std::uint64_t pages) : taken_(pages) {}

  // Of all runs of free pages: what they have, first to last.
  std::vector<std::pair<std::uint64_t, std::uint64_t>> Runs() const {
    std::vector<std::pair<std::uint64_t, std::uint64_t>> runs;
    for (std::uint64_t page = 0; page < taken_.size(); ++page) {
      if (taken_[page]) continue;
      if (page == 0 || taken_[page - 1]) runs.emplace_back(page, 0);
      ++runs.back().second;
    }
    return runs;
  }
  std::optional<std::uint64_t> Take(std::uint64_t pages) {
    for (const auto& [first, length] : Runs()) {
      if (length < pages) continue;
      Mark(first, pages, true);
      return first;
    }
    return std::nullopt;
  }
  void Mark(std::uint64_t first, std::uint64_t pages, bool taken) {
    std::fill_n(taken_.begin() + static_cast<std::ptrdiff_t>(first), pages, taken);
  }

 private:
  std::vector<bool> taken_;
};

TEST(ExtentsTest, AgreesWithModel) {
  for (std::uint64_t seed = 1; seed <= 100 && !HasFailure(); ++seed) {
    const RunningSeed running(seed);
    std::mt19937_64 random(seed);
    const auto draw = [&](std::uint64_t least, std::uint64_t most) {
      return std::uniform_int_distribution<std::uint64_t>(least, most)(random);
    };
    const std::uint64_t pages = draw(1, 200);
    const std::uint64_t most = draw(1, 20);
    Extents extents(pages);
    Plain plain(pages);
    std::vector<std::pair<std::uint64_t, std::uint64_t>> taken;
    for (int step = 0; step < 1000 && !HasFailure(); ++step) {
      if (draw(0, 99) < 55 || taken.empty()) {
        const std::uint64_t want = draw(1, most);
        const auto got = extents.Take(want);
        ASSERT_EQ(got, plain.Take(want));
        if (got) taken.emplace_back(*got, want);
      } else {
        std::swap(taken[draw(0, taken.size() - 1)], taken.back());
        auto& [first, count] = taken.back();
        // Whole, or its front first.
        const std::uint64_t part = draw(0, 4) == 0 ? draw(1, count) : count;
        extents.Give(first, part);
        plain.Mark(first, part, false);
        first += part;
        count -= part;
        if (count == 0) taken.pop_back();
      }
      std::uint64_t free = 0, longest = 0;
      const auto runs = plain.Runs();
      for (const auto& [first, length] : runs) {
        free += length;
        longest = std::max(longest, length);
      }
      ASSERT_EQ(extents.free(), free);
      ASSERT_EQ(extents.longest(), longest);
      ASSERT_EQ(extents.runs(), runs.size());
    }
  }
}

}  // namespace
}  // namespace penstock::kvstore
