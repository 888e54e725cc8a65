// SPDX-License-Identifier: Apache-2.0
#include "kernels/simt_race.h"

#include <gtest/gtest.h>

#include "kernels/cuda_testing.h"
#include "kernels/simt_faulty.h"

namespace penstock::kernels {
namespace {

TEST(SimtRaceTest, CountsBankConflicts) {
  DeviceBuffer<float> y(32);
  for (const auto& [stride, ways] :
       {std::pair{0, 1.0}, {1, 1.0}, {2, 2.0}, {32, 32.0}, {33, 1.0}}) {
    SCOPED_TRACE(stride);
    simt::TakeBankUse();
    LaunchStrided(stride, y.data());
    ASSERT_TRUE(Ran(cudaGetLastError()));
    const std::vector<simt::BankUse> uses = simt::TakeBankUse();
    ASSERT_EQ(uses.size(), 2u);  // The write, whose lanes are side by side, and the read.
    EXPECT_EQ(uses[0].Ways(), ways);
    EXPECT_EQ(uses[1].Ways(), 1.0);
    EXPECT_EQ(uses[0].requests + uses[1].requests, 34u);
    EXPECT_NE(uses[0].where.find("simt_faulty.cu:"), std::string::npos) << uses[0].where;
  }
}

TEST(SimtRaceTest, SeesWideAccessesWhole) {
  DeviceBuffer<float> y(32);
  simt::TakeBankUse();
  LaunchWide(y.data());
  ASSERT_TRUE(Ran(cudaGetLastError()));
  for (const simt::BankUse& use : simt::TakeBankUse()) {
    EXPECT_EQ(use.requests, 1u) << use.where;
    EXPECT_EQ(use.rounds, 4u) << use.where;
    EXPECT_EQ(use.rounds_min, 4u) << use.where;
  }
}

TEST(SimtRaceTest, NothingIsReadBehindTheEnd) {
  DeviceBuffer<float> y(1);
  const DeviceBuffer<float> x(std::vector<float>(10));
  LaunchReading(x.data(), 9, y.data());
  EXPECT_TRUE(Ran(cudaGetLastError()));
  for (const int n : {10, 500}) {
    LaunchReading(x.data(), n, y.data());
    EXPECT_EQ(cudaGetLastError(), cudaErrorLaunchFailure);
    const std::string failure = simt::TakeFailure();
    EXPECT_NE(failure.find("behind the end of a buffer at"), std::string::npos) << failure;
    EXPECT_NE(failure.find("simt_faulty.cu:"), std::string::npos) << failure;
  }
}

TEST(SimtRaceTest, EarlyLaunchesMustWait) {
  DeviceBuffer<float> y(32);
  LaunchTwo(true, y.data());
  EXPECT_TRUE(Ran(cudaGetLastError()));
  LaunchTwo(false, y.data());
  EXPECT_EQ(cudaGetLastError(), cudaErrorLaunchFailure);
  const std::string failure = simt::TakeFailure();
  EXPECT_NE(failure.find("of an earlier launch"), std::string::npos) << failure;
}

}  // namespace
}  // namespace penstock::kernels
