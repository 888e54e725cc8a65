// SPDX-License-Identifier: Apache-2.0
#include "launch/only_hosts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

namespace penstock::launch {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr const char* kHosts = "hosts: {a: 10.0.0.1, b: 10.0.0.2, c: 10.0.0.3}\n";

Deployment Parse(const std::string& text) {
  return ParseDeployment(absl::StrCat(kHosts, text), "test.yaml").value();
}

// "prefill-1@a".
std::vector<std::string> Workers(const Deployment& deployment) {
  std::vector<std::string> list;
  for (const Worker& worker : deployment.workers) {
    list.push_back(absl::StrCat(worker.name, "@", deployment.hosts[worker.host].name));
  }
  return list;
}

TEST(OnlyHostsTest, WhatStaysKeepsItsName) {
  const Deployment whole = Parse(
      "model: m\nports: {grpc: 7000}\ncoordinator_host: b\n"
      "prefill: [{host: a, count: 2}, {host: b}, {host: c}]\n"
      "decode: [{host: a}, {host: b, count: 2}, {host: c}]\n");
  // In the order of the file, however they are given.
  const Deployment left = OnlyHosts(whole, {"c", "b"}).value();
  EXPECT_THAT(Workers(left),
              ElementsAre("prefill-3@b", "prefill-4@c", "decode-2@b", "decode-3@b", "decode-4@c"));
  EXPECT_EQ(left.CoordinatorAddress(), "10.0.0.2:7000");
  EXPECT_EQ(left.coordinator_host, 0u);
  EXPECT_EQ(Workers(OnlyHosts(whole, {"a", "b", "c"}).value()), Workers(whole));
  EXPECT_EQ(OnlyHosts(whole, {"b"})->hosts.size(), 1u);
}

TEST(OnlyHostsTest, StoreNodesStayWithTheirHosts) {
  const Deployment whole = Parse(
      "model: m\nports: {grpc: 7000}\nkvstore: 1\nsecret_file: s\n"
      "prefill: [{host: a}, {host: b}, {host: c}]\ndecode: [{host: a}, {host: c}]\n");
  ASSERT_EQ(whole.stores.size(), 3u);
  const Deployment left = OnlyHosts(whole, {"a", "c"}).value();
  ASSERT_EQ(left.stores.size(), 2u);
  EXPECT_EQ(left.stores[1].name, "kvstore-3");
  EXPECT_EQ(left.stores[1].host, 1u);
}

TEST(OnlyHostsTest, GatewaysStayWithTheirHosts) {
  const Deployment whole = Parse(
      "model: m\nports: {coordinator: 7000}\ngateway: [{host: b}, {host: a}]\n"
      "prefill: [{host: a}]\ndecode: [{host: a}]\n");
  const Deployment left = OnlyHosts(whole, {"a"}).value();
  ASSERT_EQ(left.gateways.size(), 1u);
  EXPECT_EQ(left.gateways[0].name, "gateway-2");
  EXPECT_EQ(left.gateways[0].host, 0u);
}

TEST(OnlyHostsTest, SaysAllThatIsWrong) {
  const Deployment whole = Parse(
      "models: [{name: x, path: x}, {name: y, path: y}]\nports: {coordinator: 7000}\n"
      "gateway: {host: a}\nprefill: [{host: a, model: x}, {host: c, model: y}]\n"
      "decode: [{host: a}, {host: b, model: y}]\n");
  struct Case {
    std::vector<std::string> names;
    std::vector<const char*> want;
  };
  for (const Case& c : std::vector<Case>{
           {{}, {"no host is left"}},
           {{"a", "d", "a"}, {"no host 'd'; there are a, b, c", "the host 'a' is given twice"}},
           {{"b"},
            {"the coordinator is on 'a', which is left out", "no gateway is left",
             "the model x has no prefill worker left", "the model x has no decode worker left",
             "the model y has no prefill worker left"}},
           {{"a", "b"}, {"the model y has no prefill worker left"}},
       }) {
    const absl::Status status = OnlyHosts(whole, c.names).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    for (const char* want : c.want) EXPECT_THAT(std::string(status.message()), HasSubstr(want));
  }
  EXPECT_TRUE(OnlyHosts(whole, {"a", "c"}).ok());
}

TEST(OnlyHostsTest, DecodeWorkersAloneAreEnoughWhereThatIsMeant) {
  const Deployment whole =
      Parse("model: m\nports: {grpc: 7000}\nprefill: 0\ndecode: [{host: a}, {host: b}]\n");
  EXPECT_THAT(Workers(OnlyHosts(whole, {"a"}).value()), ElementsAre("decode-1@a"));
}

}  // namespace
}  // namespace penstock::launch
