// SPDX-License-Identifier: Apache-2.0
#include "kvstore/host/leases.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace penstock::kvstore {
namespace {

using std::chrono::nanoseconds;
using std::chrono::seconds;

constexpr MonoTime kStart = MonoTime() + seconds(100);

TEST(LeasesTest, RenewWorksUntilTheEnd) {
  struct Case {
    const char* name;
    Duration after;
    absl::StatusCode want;
  };
  for (const Case& c :
       {Case{"at once", nanoseconds(0), absl::StatusCode::kOk},
        Case{"last nanosecond", seconds(5) - nanoseconds(1), absl::StatusCode::kOk},
        Case{"exactly at the end", seconds(5), absl::StatusCode::kFailedPrecondition}}) {
    SCOPED_TRACE(c.name);
    Leases leases(seconds(5), 10);
    const LeaseId lease = leases.Grant(7, kStart).value();
    EXPECT_EQ(leases.Renew(lease, kStart + c.after).code(), c.want);
    EXPECT_EQ(leases.next(),
              kStart + seconds(5) + (c.want == absl::StatusCode::kOk ? c.after : nanoseconds(0)));
  }
}

TEST(LeasesTest, EndInTheOrderOfTheirEnds) {
  Leases leases(seconds(5), 10);
  EXPECT_EQ(leases.next(), MonoTime::max());
  EXPECT_EQ(leases.PopEnded(kStart), std::nullopt);
  const LeaseId first = leases.Grant(1, kStart).value();
  const LeaseId second = leases.Grant(2, kStart + seconds(1)).value();
  const LeaseId third = leases.Grant(1, kStart + seconds(2)).value();
  EXPECT_TRUE(leases.Renew(first, kStart + seconds(3)).ok());
  EXPECT_EQ(leases.size(), 3u);
  EXPECT_EQ(leases.next(), kStart + seconds(6));
  EXPECT_EQ(leases.PopEnded(kStart + seconds(5)), std::nullopt);
  EXPECT_EQ(leases.PopEnded(kStart + seconds(7)), 2u);
  EXPECT_EQ(leases.End(third), 1u);
  EXPECT_EQ(leases.End(third), std::nullopt);
  EXPECT_EQ(leases.End(second), std::nullopt);
  EXPECT_TRUE(absl::IsFailedPrecondition(leases.Renew(second, kStart + seconds(7))));
  EXPECT_EQ(leases.PopEnded(kStart + seconds(7)), std::nullopt);
  EXPECT_EQ(leases.PopEnded(kStart + seconds(8)), 1u);
  EXPECT_EQ(leases.size(), 0u);
}

TEST(LeasesTest, RefusesMoreThanItsMost) {
  Leases leases(seconds(5), 2);
  const LeaseId lease = leases.Grant(1, kStart).value();
  EXPECT_TRUE(leases.Grant(1, kStart).ok());
  const absl::Status full = leases.Grant(1, kStart).status();
  EXPECT_TRUE(absl::IsResourceExhausted(full));
  EXPECT_THAT(full.ToString(), testing::HasSubstr("2 leases are live, of 2 at most"));
  EXPECT_EQ(leases.End(lease), 1u);
  const LeaseId later = leases.Grant(1, kStart).value();
  EXPECT_NE(later, lease);
}

}  // namespace
}  // namespace penstock::kvstore
