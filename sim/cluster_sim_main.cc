// SPDX-License-Identifier: Apache-2.0
// Replays one seed of cluster_sim_test, and tells what happened:
//
//   cluster_sim --seed N [--quiet]
#include <cstdint>
#include <cstdio>
#include <functional>
#include <string>

#include "CLI/CLI.hpp"
#include "gtest/gtest.h"
#include "sim/cluster_sim.h"

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  CLI::App app("Replays one seed of the cluster's simulation");
  std::uint32_t seed = 0;
  bool quiet = false;
  app.add_option("--seed", seed, "The seed that a failure printed")->required();
  app.add_flag("--quiet", quiet, "Only the result");
  CLI11_PARSE(app, argc, argv);
  std::function<void(const std::string&)> log = [](const std::string& line) {
    std::printf("%s\n", line.c_str());
  };
  if (quiet) log = nullptr;
  const penstock::sim::ClusterResult result =
      penstock::sim::RunCluster(seed, penstock::sim::FaultsOf(seed), log);
  const bool failed = testing::UnitTest::GetInstance()->Failed();
  std::printf(
      "seed %u: %d requests, %d answered, %d of those on more than one attempt, %d fetches, at "
      "rest "
      "after %.2f s: %s\n",
      seed, result.requests, result.answered, result.resumed, result.fetches,
      penstock::ToSeconds(result.rest), failed ? "FAILED" : "all is well");
  return failed ? 1 : 0;
}
