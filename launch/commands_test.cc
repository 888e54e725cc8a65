// SPDX-License-Identifier: Apache-2.0
#include "launch/commands.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "launch/deployment.h"

namespace penstock::launch {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::EndsWith;
using testing::HasSubstr;
using testing::Not;

TEST(CommandsTest, ProcessesOfAHost) {
  const auto cluster = ParseDeployment(
      "models: [{name: m, path: p q}]\nprefill: {cpus: 0-1, kv_bytes: 1MiB, tp_sum: 6}\n"
      "decode: {count: 2, pp: 2, tp: 3, tp_sum: 6, host: b}\n"
      "hosts: {a: 10.0.0.1, b: 10.0.0.2}\nports: {grpc: 70}\ntransfer: [tcp]",
      "f");
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  const auto of_a = PlanProcesses(
      *cluster, 0, {.program = "penstock", .folder = "d", .metrics = false}, "10.0.0.1:70");
  ASSERT_EQ(of_a.size(), 2u);
  EXPECT_EQ(ShellLine(of_a[0].arguments),
            "penstock coordinator --host 10.0.0.1 --ready-file d/coordinator.json --port 70 "
            "--policy cost "
            "--http-port 0 --serve 'm=p q'");
  EXPECT_EQ(
      ShellLine(of_a[1].arguments),
      "penstock prefill --host 10.0.0.1 --ready-file d/prefill-1.json --coordinator 10.0.0.1:70 "
      "--name prefill-1 --model 'p q' --model-name m --cpus 0-1 --kv-bytes 1048576 --kv-dtype f16 "
      "--tp-sum 6 --block-tokens 32 --chunk-tokens 512 --sequences 16 --transfer tcp --no-store");
  EXPECT_THAT(of_a[1].cpus, ElementsAre(0, 1));
  EXPECT_LT(of_a[0].stop_rank, of_a[1].stop_rank);
  const auto of_b = PlanProcesses(*cluster, 1,
                                  {.program = "p",
                                   .folder = "d",
                                   .socket_folder = "s",
                                   .cpus_available = 5,
                                   .model_paths = {{"m", "/m"}}},
                                  "c:1");
  ASSERT_EQ(of_b.size(), 2u);
  EXPECT_THAT(ShellLine(of_b[1].arguments),
              AllOf(HasSubstr("decode --host 10.0.0.2"), HasSubstr("--threads 2"),
                    HasSubstr("--pp 2 --tp 3 --tp-sum 6"), HasSubstr("--model /m"),
                    HasSubstr("--socket-folder s")));
}

TEST(CommandsTest, WhatThoseWhoServeAreTold) {
  const auto cluster = ParseDeployment(
      "model: m\ngateway: 1\nslo: {ttft: 1.5s, tpot: 50ms}\nblock_tokens: 16\n"
      "prefill: {device: paced}\ndecode: {device: paced, page_tokens: 8}",
      "f");
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  CommandOptions options = {.program = "p", .folder = "d"};
  const auto lines = [&] {
    std::vector<std::string> all;
    for (const Process& process : PlanProcesses(*cluster, 0, options, "c:1")) {
      all.push_back(ShellLine(process.arguments));
    }
    return all;
  };
  EXPECT_THAT(lines(), ElementsAre(Not(HasSubstr("--slo")),
                                   HasSubstr("--slo-ttft-ms 1500 --slo-tpot-ms 50 --serve m=m"),
                                   AllOf(HasSubstr("--device paced --block-tokens 16"),
                                         Not(HasSubstr("--page-tokens"))),
                                   HasSubstr("--device paced --block-tokens 16 --page-tokens 8")));
  options.worker_arguments = {"--pace-step-ms", "1"};
  EXPECT_THAT(lines()[2],
              AllOf(HasSubstr("--device paced --block-tokens 16"), EndsWith("--pace-step-ms 1")));
  options.link_bytes = {{"prefill-1", 5}};
  EXPECT_THAT(lines()[2], HasSubstr(" --link-bytes 5 "));
  EXPECT_THAT(lines()[3], Not(HasSubstr("--link-bytes")));
}

TEST(CommandsTest, GatewaysEndFirstAndTheirCoordinatorLast) {
  const auto cluster =
      ParseDeployment("model: m\ngateway: 2\nports: {grpc: 70, coordinator: 60}", "f");
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  const auto processes =
      PlanProcesses(*cluster, 0, {.program = "p", .folder = "d", .metrics = false}, "c:1");
  ASSERT_EQ(processes.size(), 5u);
  std::vector<int> ranks;
  for (const Process& process : processes) ranks.push_back(process.stop_rank);
  EXPECT_THAT(ranks, ElementsAre(3, 0, 0, 1, 1));
  EXPECT_EQ(
      ShellLine(processes[2].arguments),
      "p gateway --host 127.0.0.1 --ready-file d/gateway-2.json --coordinator c:1 --name gateway-2 "
      "--port 71 --http-port 0 --serve m=m");
}

TEST(CommandsTest, ShellLinesAreQuoted) {
  EXPECT_EQ(ShellLine({"a", "", "it's", "$x"}), "a '' 'it'\\''s' '$x'");
  EXPECT_EQ(ShellLine(WithPort({"a", "--port", "0", "--port"}, "--port", 7)), "a --port 7 --port");
}

}  // namespace
}  // namespace penstock::launch
