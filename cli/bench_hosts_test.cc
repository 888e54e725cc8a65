// SPDX-License-Identifier: Apache-2.0
#include "cli/bench_hosts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace penstock::cli {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

launch::Deployment Parse(const std::string& text) {
  return launch::ParseDeployment(text, "test.yaml").value();
}

TEST(BenchHostsTest, Counts) {
  EXPECT_THAT(*ParseHostCounts("1,2,4", 4), ElementsAre(1, 2, 4));
  for (const char* wrong : {"", "0", "5", "1,", "x", "-1"}) {
    const absl::Status status = ParseHostCounts(wrong, 4).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << wrong;
    EXPECT_THAT(std::string(status.message()), HasSubstr("from 1 to 4"));
  }
}

TEST(BenchHostsTest, CommandsOnAHost) {
  const launch::Host host = {.name = "b", .address = "10.0.0.2"};
  EXPECT_THAT(*CommandOn("ssh {host}", host, {"/bin/penstock", "up"}),
              ElementsAre("ssh", "b", "/bin/penstock", "up"));
  EXPECT_THAT(*CommandOn(" ssh  -p 22 me@{address} ", host, {"x"}),
              ElementsAre("ssh", "-p", "22", "me@10.0.0.2", "x"));
  EXPECT_THAT(*CommandOn("ip netns exec t-{host}", host, {"x"}),
              ElementsAre("ip", "netns", "exec", "t-b", "x"));
  EXPECT_THAT(std::string(CommandOn("ssh b", host, {"x"}).status().message()), HasSubstr("{host}"));
  for (const char* word : {"a b", "$HOME", "x;y", "", "'", "~x"}) {
    EXPECT_EQ(CommandOn("ssh {host}", host, {word}).status().code(),
              absl::StatusCode::kInvalidArgument)
        << word;
  }
}

TEST(BenchHostsTest, WhereClientsGo) {
  EXPECT_EQ(*FrontAddress(Parse("model: m\nports: {grpc: 7000}\n")), "127.0.0.1:7000");
  EXPECT_EQ(*FrontAddress(Parse("model: m\nhosts: {a: 10.0.0.1, b: fd00::2}\n"
                                "ports: {coordinator: 7000, grpc: 7001}\ngateway: {host: b}\n")),
            "[fd00::2]:7001");
  EXPECT_FALSE(FrontAddress(Parse("model: m\n")).ok());
  EXPECT_FALSE(FrontAddress(Parse("model: m\ngateway: 1\nports: {coordinator: 7000}\n")).ok());
}

TEST(BenchHostsTest, WholeIsEveryWorkerAndEveryPairOfAModel) {
  const launch::Deployment deployment = Parse("model: m\nprefill: 1\ndecode: 2\n");
  launch::ClusterState state;
  EXPECT_EQ(NotWhole(deployment, state),
            "prefill-1, decode-1, decode-2, 2 pairs of workers that are not verified");
  for (const char* name : {"prefill-1", "decode-1", "decode-2"}) {
    state.workers.push_back({.name = name, .state = "ready"});
  }
  state.pairs = {{.prefill = "prefill-1", .decode = "decode-1", .verified = true},
                 {.prefill = "prefill-1", .decode = "decode-2", .verified = false}};
  EXPECT_EQ(NotWhole(deployment, state), "1 pairs of workers that are not verified");
  state.pairs[1].verified = true;
  EXPECT_EQ(NotWhole(deployment, state), "");
  state.workers[2].state = "away";
  EXPECT_EQ(NotWhole(deployment, state), "decode-2");
}

TEST(BenchHostsTest, WorkersOfDifferentModelsAreNoPair) {
  const launch::Deployment deployment =
      Parse("models: [{name: x, path: x}, {name: y, path: y}]\nprefill: 1\ndecode: 1\n");
  EXPECT_THAT(NotWhole(deployment, {}), HasSubstr(", 2 pairs of workers"));
}

}  // namespace
}  // namespace penstock::cli
