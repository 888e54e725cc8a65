// SPDX-License-Identifier: Apache-2.0
// Thousands of small clusters, each with its own faults. What fails prints its seed and how to see
// it again.
#include "sim/cluster_sim.h"

#include <cstdint>

#include "absl/strings/str_cat.h"
#include "base/seed_testing.h"
#include "gtest/gtest.h"

namespace penstock::sim {
namespace {

// Sanitizers see in a few what a release build sees in all.
#if defined(PENSTOCK_SANITIZED)
constexpr std::uint32_t kSeeds = 200;
#else
constexpr std::uint32_t kSeeds = 5000;
#endif
constexpr std::uint32_t kShards = 20;

class ClusterSimTest : public testing::TestWithParam<std::uint32_t> {};

TEST_P(ClusterSimTest, EveryRequestEndsOnceAndNothingIsHeld) {
  int requests = 0;
  int answered = 0;
  int fetches = 0;
  for (std::uint32_t seed = GetParam(); seed < kSeeds; seed += kShards) {
    const RunningSeed running(seed,
                              {.replay = absl::StrCat("build/sim/cluster_sim --seed ", seed)});
    const ClusterFaults faults = FaultsOf(seed);
    const ClusterResult result = RunCluster(seed, faults, nullptr);
    if (HasFailure()) return;
    requests += result.requests;
    answered += result.answered;
    fetches += result.fetches;
  }
  // Half of the runs have stores, and one request in four fetches; but of a sanitizer's ten runs it
  // may be one that has, and of their faults most may be of the kinds that end many requests.
  const bool few = kSeeds / kShards < 100;
  EXPECT_GT(answered, few ? requests / 4 : requests / 2);
  EXPECT_GT(fetches, few ? 0 : requests / 8);
}

INSTANTIATE_TEST_SUITE_P(Shard, ClusterSimTest, testing::Range(std::uint32_t{0}, kShards));

TEST(ClusterSimTest, WithoutFaultsEveryRequestIsAnswered) {
  for (std::uint32_t seed = 0; seed < 40; ++seed) {
    const RunningSeed running(seed);
    const ClusterResult result = RunCluster(seed, {}, nullptr);
    // One in ten may be given less time than it takes.
    EXPECT_GE(result.answered, result.requests * 8 / 10);
    if (HasFailure()) return;
  }
}

TEST(ClusterSimTest, TheSameSeedGivesTheSameRun) {
  for (std::uint32_t seed = 1; seed < 12; ++seed) {
    const RunningSeed running(seed);
    const ClusterFaults faults = FaultsOf(seed);
    EXPECT_EQ(RunCluster(seed, faults, nullptr).hash, RunCluster(seed, faults, nullptr).hash);
  }
}

}  // namespace
}  // namespace penstock::sim
