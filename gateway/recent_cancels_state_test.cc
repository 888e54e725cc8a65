// SPDX-License-Identifier: Apache-2.0
#include "gateway/recent_cancels_state.h"

#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace penstock::gateway {
namespace {

using std::chrono::seconds;
using Ids = std::vector<std::string>;

constexpr MonoTime kStart = MonoTime() + seconds(100);

TEST(RecentCancelsTest, AreKeptForAWhile) {
  RecentCancels cancels({.kept_for = seconds(10)});
  cancels.Add("a", kStart);
  cancels.Add("b", kStart + seconds(1));
  EXPECT_EQ(cancels.Kept(kStart + seconds(10) - Duration(1)), (Ids{"a", "b"}));
  EXPECT_EQ(cancels.Kept(kStart + seconds(10)), (Ids{"b"}));  // As often as it is asked.
  EXPECT_EQ(cancels.Kept(kStart + seconds(11)), Ids());
}

TEST(RecentCancelsTest, ANameThatIsUsedAgainIsNotCancelled) {
  RecentCancels cancels;
  for (const char* id : {"a", "b", "a"}) cancels.Add(id, kStart);
  cancels.Remove("a");
  cancels.Remove("c");
  EXPECT_EQ(cancels.Kept(kStart), (Ids{"b"}));
}

TEST(RecentCancelsTest, TheOldestAreDropped) {
  RecentCancels cancels({.kept_max = 2});
  for (const char* id : {"a", "b", "c"}) cancels.Add(id, kStart);
  EXPECT_EQ(cancels.Kept(kStart), (Ids{"b", "c"}));
}

}  // namespace
}  // namespace penstock::gateway
