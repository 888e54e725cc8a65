// SPDX-License-Identifier: Apache-2.0
#include "base/seed_testing.h"

#include <chrono>
#include <future>
#include <string>

#include "gtest/gtest-spi.h"
#include "gtest/gtest.h"

namespace penstock {
namespace {

TEST(RunningSeedTest, AFailureNamesTheSeed) {
  EXPECT_NONFATAL_FAILURE(
      {
        const RunningSeed running(4711, {.replay = "sim --seed 4711"});
        ADD_FAILURE() << "wrong";
      },
      "seed 4711; to replay it: sim --seed 4711");
}

TEST(RunningSeedTest, ARunThatHangsNamesTheSeed) {
  std::promise<std::string> said;
  const RunningSeed running(17, {.patience = std::chrono::milliseconds(1),
                                 .say = [&](const std::string& line) { said.set_value(line); }});
  EXPECT_EQ(said.get_future().get(), "still running: seed 17");
}

TEST(RunningSeedTest, OthersSayNothing) {
  int said = 0;
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    const RunningSeed running(seed, {.say = [&](const std::string&) { ++said; }});
  }
  EXPECT_EQ(said, 0);
}

}  // namespace
}  // namespace penstock
