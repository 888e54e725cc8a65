// SPDX-License-Identifier: Apache-2.0
#include "launch/deployment.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "launch/commands.h"
#include "launch/schema.h"
#include "launch/values.h"

namespace penstock::launch {
namespace {

using std::chrono::hours;
using std::chrono::milliseconds;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

std::string FileText(const std::string& path) {
  std::ifstream file(absl::StrCat(PENSTOCK_SOURCE_DIR, "/", path));
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

std::string Message(std::string_view text) {
  const auto deployment = ParseDeployment(text, "f.yaml");
  if (deployment.ok()) return "OK";
  EXPECT_EQ(deployment.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(deployment.status().message());
}

TEST(DeploymentTest, SmallestFile) {
  const auto cluster = ParseDeployment("model: smollm2\nprefill: 2\ndecode: 1\n", "f.yaml");
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  ASSERT_EQ(cluster->workers.size(), 3u);
  EXPECT_EQ(cluster->workers[1].name, "prefill-2");
  EXPECT_EQ(cluster->workers[2].name, "decode-1");
  EXPECT_EQ(cluster->workers[2].sequences, 16);
  EXPECT_EQ(cluster->workers[2].kv_dtype, "f16");
  EXPECT_EQ(cluster->models[0].name, "smollm2");
  EXPECT_TRUE(cluster->gateway_inside());
  EXPECT_EQ(cluster->policy, "cost");
  EXPECT_THAT(cluster->transfer, ElementsAre("nccl", "shm", "tcp"));
  EXPECT_EQ(cluster->hosts[0].address, "127.0.0.1");
  EXPECT_EQ(cluster->CoordinatorAddress(), std::nullopt);
  EXPECT_EQ(ParseDeployment("model: x", "f")->workers.size(), 2u);  // One line does.
}

TEST(DeploymentTest, DecodeWorkersMayBeAlone) {
  const auto cluster = ParseDeployment("model: smollm2\nprefill: 0\ndecode: 2\n", "f.yaml");
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  ASSERT_EQ(cluster->workers.size(), 2u);
  EXPECT_EQ(cluster->workers[0].role, Role::kDecode);
}

TEST(DeploymentTest, Etcd) {
  EXPECT_TRUE(ParseDeployment("model: x", "f")->etcd.empty());
  const auto one = ParseDeployment("model: x\netcd: 127.0.0.1:2379", "f");
  ASSERT_TRUE(one.ok()) << one.status();
  EXPECT_THAT(one->etcd, ElementsAre("127.0.0.1:2379"));
  EXPECT_EQ(one->etcd_prefix, "/penstock/");
  const auto two =
      ParseDeployment("model: x\netcd: [a:1, '[fd00::1]:2']\netcd_prefix: /mine/", "f");
  ASSERT_TRUE(two.ok()) << two.status();
  EXPECT_THAT(two->etcd, ElementsAre("a:1", "[fd00::1]:2"));
  const auto processes = PlanProcesses(*two, 0, {.program = "p"}, "");
  EXPECT_THAT(ShellLine(processes[0].arguments),
              HasSubstr("--etcd a:1,[fd00::1]:2 --etcd-prefix /mine/"));
  EXPECT_THAT(ShellLine(processes[1].arguments), Not(HasSubstr("etcd"))) << "a worker";
  for (const char* bad : {"[]", "a", "a:", ":1", "'a:0'", "'a:65536'", "'a:x'", "'a b:1'",
                          "'a,b:1'", "http://a:1", "{a: 1}", "[[a:1]]"}) {
    EXPECT_THAT(Message(absl::StrCat("model: x\netcd: ", bad)), HasSubstr("f.yaml:2:")) << bad;
  }
}

TEST(DeploymentTest, CoordinatorsThatStandBy) {
  const auto cluster = ParseDeployment("model: x\netcd: a:1\nstandby: [b:2, c:3]", "f");
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  const auto processes = PlanProcesses(*cluster, 0, {.program = "p"}, "d:4");
  EXPECT_THAT(ShellLine(processes[1].arguments), HasSubstr("--coordinator d:4,b:2,c:3 "));
  EXPECT_THAT(Message("model: x\nstandby: b:2"), HasSubstr("f.yaml:2:10: standby needs etcd"));
}

TEST(DeploymentTest, ModelsAreNamedAfterTheirFiles) {
  for (const auto& [path, name] : {std::pair("smollm2", "smollm2"), std::pair("a/b c.gguf", "b-c"),
                                   std::pair("a/Qwen3-0.6B/", "Qwen3-0.6B"),
                                   std::pair("/", "model"), std::pair("-x", "model")}) {
    EXPECT_EQ(ParseDeployment(absl::StrCat("model: ", path), "f")->models[0].name, name);
  }
}

TEST(DeploymentTest, EverythingGiven) {
  const auto cluster = ParseDeployment(R"(
models: [{name: chat, path: chat.gguf}, {name: code, path: code.gguf}]
hosts: {a: 10.0.0.1, b: "fd00::1"}
coordinator_host: b
gateway: {count: 2, host: a}
prefill:
  - {model: chat, count: 2, cpus: 0-3, host: b}
  - {model: code, threads: 3, kv_bytes: 1.5GiB, context_tokens: 4096, chunk_tokens: 256}
decode: {sequences: 4, kv_dtype: f16, page_tokens: 8}
block_tokens: 16
policy: round-robin
transfer: [tcp]
ports: {grpc: 7001, http: 8001, coordinator: 7000}
slo: {ttft: 500ms, tpot: 1h}
)",
                                       "f.yaml");
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  ASSERT_EQ(cluster->workers.size(), 5u);
  EXPECT_THAT(cluster->workers[0].cpus, ElementsAre(0, 1));
  EXPECT_THAT(cluster->workers[1].cpus, ElementsAre(2, 3));
  EXPECT_EQ(cluster->workers[1].host, 1u);
  EXPECT_EQ(cluster->workers[2].name, "prefill-3");
  EXPECT_EQ(cluster->workers[2].model, 1u);
  EXPECT_EQ(cluster->workers[2].kv_bytes, 1610612736);
  EXPECT_EQ(cluster->workers[3].name, "decode-1");
  EXPECT_EQ(cluster->workers[3].model, 0u);
  EXPECT_EQ(cluster->workers[4].model, 1u);  // A group without a model is for each.
  ASSERT_EQ(cluster->gateways.size(), 2u);
  EXPECT_EQ(cluster->gateways[1].grpc_port, 7002);
  EXPECT_EQ(cluster->gateways[1].http_port, 8002);
  EXPECT_EQ(cluster->CoordinatorAddress(), "[fd00::1]:7000");
  EXPECT_EQ(cluster->block_tokens, 16);
  EXPECT_EQ(cluster->workers[3].page_tokens, 8);
  EXPECT_EQ(cluster->workers[3].device, "cpu");
  EXPECT_EQ(cluster->slo_ttft, milliseconds(500));
  EXPECT_EQ(cluster->slo_tpot, hours(1));
}

struct Wrong {
  const char* text;
  const char* want;
};

TEST(DeploymentTest, FaultsNamePlaceValueAndLimits) {
  const Wrong wrongs[] = {
      {"", "f.yaml:1:1: model is missing"},
      {"a", "f.yaml:1:1: must be keys, got \"a\""},
      {"model: [a]", "f.yaml:1:8: model must be a text without control characters, got a list"},
      {"model: \"a\\x07b\"",
       "f.yaml:1:8: model must be a text without control characters, got \"a\\007b\""},
      {"model: a\nprefil: 1", "f.yaml:2:1: unknown key \"prefil\"; did you mean prefill?"},
      {"model: a\nxyzzy: 1", "f.yaml:2:1: unknown key \"xyzzy\"; there are model, models"},
      {"model: a\nmodels: []", "f.yaml:2:9: model and models are both here"},
      {"models: []", "f.yaml:1:9: models must be a list of 1 to 64 models, got 0"},
      {"models: [{name: a}]", "f.yaml:1:10: this model's path is missing"},
      {"models: [{name: a b, path: c}]", "f.yaml:1:17: name must be a name of 1 to 64 letters"},
      {"models:\n- {name: a, path: c}\n- {name: a, path: d}",
       "f.yaml:3:10: the model \"a\" is here for the second time; the first is in line 2"},
      {"model: a\ndecode: 0", "f.yaml:2:9: decode must be a whole number from 1 to 256, got \"0\""},
      {"model: a\nprefill: 1e3", "f.yaml:2:10: prefill must be a whole number from 0 to 256"},
      {"model: a\nprefill: []", "f.yaml:2:10: prefill must have 1 to 256 groups, got 0"},
      {"model: a\nprefill:\n  count: 300",
       "f.yaml:3:10: count must be a whole number from 1 to 256, got \"300\""},
      {"model: a\nprefill: {host: b}", "f.yaml:2:17: no host \"b\"; there are local"},
      {"model: a\nprefill: {model: b}", "f.yaml:2:18: no model \"b\"; there are a"},
      {"model: a\nprefill: {threads: -1}",
       "f.yaml:2:20: threads must be a whole number from 1 to 1024"},
      {"model: a\nprefill: {threads: 1, cpus: 0}", "f.yaml:2:20: threads and cpus are both here"},
      {"model: a\nprefill: {count: 2, cpus: 0-2}",
       "f.yaml:2:27: 3 CPUs do not divide evenly among 2 workers"},
      {"model: a\nprefill: {cpus: 0-9999}",
       "f.yaml:2:17: cpus must be CPU numbers below 1024, each once"},
      {"model: a\nprefill: {cpus: [0, 0]}",
       "f.yaml:2:17: cpus must be CPU numbers below 1024, each once"},
      {"model: a\nprefill: {kv_bytes: 12 apples}",
       "f.yaml:2:21: kv_bytes must be a size from 1 to 1e15 bytes"},
      {"model: a\nprefill: {kv_dtype: f61}",
       "f.yaml:2:21: kv_dtype must be one of f16, bf16, f32, int8, got \"f61\""},
      {"model: a\nprefill: {kv_dtype: f32}",
       "f.yaml:1:1: all workers of the model a need one kv_dtype; prefill-1 has f32, decode-1 has "
       "f16"},
      {"model: a\nprefill: [{count: 256}, {count: 256}, {count: 256}, {count: 256}]",
       "f.yaml:1:1: a deployment has at most 1024 workers, with this group it has 1025"},
      {"models: [{name: a, path: a}, {name: b, path: b}]\nprefill: {model: a}",
       "f.yaml:1:30: the model b has 0 prefill and 1 decode workers"},
      {"model: a\ngateway: outside",
       "f.yaml:2:10: gateway must be inside, a count from 1 to 256, or keys, got \"outside\""},
      {"model: a\ngateway: insde", "did you mean inside?"},
      {"model: a\npolicy: costs",
       "f.yaml:2:9: policy must be one of cost, least-loaded, round-robin, got \"costs\"; did you "
       "mean cost?"},
      {"model: a\ntransfer: shm",
       "f.yaml:2:11: transfer must be a list of nccl, shm, ucx, tcp, each at most once, got "
       "\"shm\""},
      {"model: a\ntransfer: [shm, shm]",
       "f.yaml:2:11: transfer must be a list of nccl, shm, ucx, tcp"},
      {"model: a\ntransfer: [nccl]", "f.yaml:2:11: transfer has nccl alone: name shm, ucx or tcp"},
      {"model: a\nhosts: {a: example.com}", "f.yaml:2:12: an address must be numeric"},
      {"model: a\nhosts: [a]", "f.yaml:2:8: hosts must be names with addresses"},
      {"model: a\nhosts: {a b: 10.0.0.1}", "f.yaml:2:9: a host must be a name"},
      {"model: a\nhosts: {a: 10.0.0.1, b: 10.0.0.2}",
       "with 2 hosts the others must know the coordinator's port: ports.grpc must be given"},
      {"model: a\nhosts: {a: 10.0.0.1, b: 10.0.0.2}\nports: {grpc: 5}\nprefill: {host: "
       "b}\ntransfer: [shm]",
       "f.yaml:5:11: workers of the model a are on 2 hosts, and shm works within one: transfer "
       "needs tcp"},
      {"model: a\nports: {grpc: 65536}",
       "f.yaml:2:15: grpc must be a whole number from 0 to 65535, got \"65536\""},
      {"model: a\nports: {grpc: 80, http: 80}",
       "f.yaml:2:8: port 80 of host local is given to the coordinator and to HTTP"},
      {"model: a\nports: {coordinator: 80}",
       "f.yaml:2:22: with the gateway inside the coordinator there is one gRPC port: ports.grpc"},
      {"model: a\ngateway: 2\nports: {grpc: 65535}",
       "gateway 2 of a host would have the grpc port 65536, above 65535"},
      {"model: a\ngateway: 2\nports: {grpc: 80, http: 81}",
       "port 81 of host local is given to gateway-1's HTTP and to gateway-2"},
      {"model: a\nblock_tokens: 48", "f.yaml:2:15: block_tokens must be a power of two, got 48"},
      {"model: a\nblock_tokens: 16\ndecode: {page_tokens: 32}",
       "f.yaml:3:23: page_tokens must be a divisor of block_tokens, which is 16, got 32"},
      {"model: a\ndecode: {device: paced}",
       "all workers of the model a need one device; prefill-1 has cpu, decode-1 has paced"},
      {"model: a\nprefill: {device: \"cuda:N\"}",
       "device must be one of cpu, cuda, paced, cuda:N,M,... with numbers from 0 to 63, got "
       "\"cuda:N\""},
      {"model: a\nprefill: {device: \"cuda:64\"}",
       "device must be one of cpu, cuda, paced, cuda:N,M,... with numbers from 0 to 63, got "
       "\"cuda:64\""},
      {"model: a\nprefill: {device: pace}", "got \"pace\"; did you mean paced?"},
      {"model: a\nprefill: {device: cuda, numerics: quick}",
       "f.yaml:2:35: numerics must be one of exact, fast, got \"quick\""},
      {"model: a\nprefill: {numerics: fast}",
       "f.yaml:2:21: numerics fast are for device cuda, got device cpu: its numerics must be "
       "exact"},
      {"model: a\nprefill: {device: paced, numerics: fast}",
       "numerics fast are for device cuda, got device paced"},
      {"model: a\nprefill: {device: cuda, numerics: fast}\ndecode: {device: cuda}",
       "all workers of the model a need one numerics; prefill-1 has fast, decode-1 has exact"},
      {"model: a\nprefill: {tp_sum: 65}",
       "f.yaml:2:19: tp_sum must be a whole number from 1 to 64, got \"65\""},
      {"model: a\nprefill: {tp_sum: 6}",
       "all workers of the model a need one tp_sum; prefill-1 has 6, decode-1 has 1"},
      {"model: a\nprefill: {device: paced, tp_sum: 6}",
       "f.yaml:2:34: a paced worker computes nothing: its tp_sum must be 1, got 6"},
      {"model: a\nprefill: {device: paced, tp: 2}",
       "f.yaml:2:30: a paced worker computes nothing: its tp must be 1, got 2"},
      {"model: a\nprefill: {device: paced, pp: 2}",
       "f.yaml:2:30: a paced worker computes nothing: its pp must be 1, got 2"},
      {"model: a\nprefill: {pp: 0}",
       "f.yaml:2:15: pp must be a whole number from 1 to 64, got \"0\""},
      {"model: a\nprefill: {tp: 65}",
       "f.yaml:2:15: tp must be a whole number from 1 to 64, got \"65\""},
      {"model: a\nprefill: {tp: 3, tp_sum: 4}",
       "f.yaml:2:15: tp must be a divisor of tp_sum, which is 4, got 3"},
      {"model: a\nprefill: {tp: 4}\ndecode: {tp: 2}",
       "all workers of the model a need one tp_sum; prefill-1 has 4, decode-1 has 2"},
      {"model: a\nprefill: {tp: 4, device: 'cuda:0,1'}",
       "f.yaml:2:26: device cuda:0,1 names 2 GPUs, and tp is 4: each shard takes one"},
      {"model: a\nprefill: {tp: 2, device: 'cuda:1,1'}",
       "f.yaml:2:26: device cuda:1,1 names GPU 1 twice: shards share none"},
      {"model: a\nprefill: {tp: 2, count: 2, device: 'cuda:0,1,2,2'}",
       "f.yaml:2:36: device cuda:2,2 names GPU 2 twice: shards share none"},
      {"model: a\nprefill: {tp: 2, count: 2, device: 'cuda:0,1,2'}",
       "f.yaml:2:36: device names 3 GPUs: the 2 workers of this group, with a tp of 2, share 2 or "
       "take 4"},
      {"model: a\nprefill: {tp: 2, pp: 2, device: 'cuda:0,1'}",
       "f.yaml:2:33: device cuda:0,1 names 2 GPUs, and tp is 2 and pp 2: each shard of each stage "
       "takes one"},
      {"model: a\nprefill: {pp: 3, count: 2, device: 'cuda:0,1,2,3'}",
       "f.yaml:2:36: device names 4 GPUs: the 2 workers of this group, with a tp of 1 and a pp of "
       "3, share 3 or take 6"},
      {"model: a\nslo: {ttft: 5}",
       "f.yaml:2:13: ttft must be a time from 1us to 24h with its unit"},
      {"model: a\nslo: 5", "f.yaml:2:6: must be keys, got \"5\""},
      {"model: a\nmodel: b",
       "f.yaml:2:1: the key \"model\" is here for the second time; the first is in line 1"},
      {"model: &x a", "anchors (&name) are not taken here"},
      {"model: *x", "f.yaml:1:8: not YAML: "},
      {"model: !!int 5", "tags are not taken here"},
      {"model: a\n---\nmodel: b", "one document is wanted, here a second one begins"},
      {"? [a]\n: 1", "a key must be a word, got a list"},
      {"model: a\n\tprefill: 1", "f.yaml:2:"},
      {"model: \"a", "f.yaml:1:"},
  };
  for (const Wrong& wrong : wrongs)
    EXPECT_THAT(Message(wrong.text), HasSubstr(wrong.want)) << wrong.text;
}

TEST(DeploymentTest, NoNumberOfAGpuIsGuessed) {
  for (const char* device : {"cuda:64", "cuda:N", "cuda:"}) {
    const std::string message = Message(absl::StrCat("model: a\ndecode: {device: '", device, "'}"));
    EXPECT_THAT(message, HasSubstr("device must be one of")) << device;
    EXPECT_THAT(message, Not(HasSubstr("did you mean"))) << device;
  }
}

TEST(DeploymentTest, ListsAllFaultsInTheirOrder) {
  const std::string message = Message(
      "model: smollm2\npolicy: cots\nprefill: {count: x, thread: 1}\ndecode: 0\nmodel: twice\n"
      "slo: {ttft: never}\n");
  EXPECT_THAT(message, StartsWith("f.yaml:2:9: policy"));
  const std::vector<std::string> lines = {
      "f.yaml:2:9: policy",
      "\nf.yaml:3:18: count",
      "\nf.yaml:3:21: unknown key \"thread\"; did you mean threads?",
      "\nf.yaml:4:9: decode",
      "\nf.yaml:5:1: the key \"model\"",
      "\nf.yaml:6:13: ttft"};
  std::size_t at = 0;
  for (const std::string& line : lines) {
    const std::size_t found = message.find(line, at);
    ASSERT_NE(found, std::string::npos) << line << " is not after " << at << " in\n" << message;
    at = found + line.size();
  }
  EXPECT_EQ(std::count(message.begin(), message.end(), '\n'), 5);
}

TEST(DeploymentTest, HostileFilesAreRefused) {
  std::string bomb = "a: &a [x, x]\n";
  for (char c = 'b'; c <= 'z'; ++c) {
    const char before = static_cast<char>(c - 1);
    bomb += absl::StrCat(std::string(1, c), ": &", std::string(1, c), " [*", std::string(1, before),
                         ", *", std::string(1, before), "]\n");
  }
  EXPECT_THAT(Message(bomb), HasSubstr("anchors"));
  EXPECT_THAT(Message("model: " + std::string(17, '[') + std::string(17, ']')),
              HasSubstr("nest at most 16 deep"));
  for (const char* open : {"[", "{", "- ", "{a: "}) {
    std::string deep;
    for (int i = 0; i < 20000; ++i) deep += open;
    EXPECT_THAT(Message(deep), StartsWith("f.yaml:")) << open;
  }
  EXPECT_THAT(Message("model: " + std::string(5000, 'x')),
              HasSubstr("a value has at most 4096 bytes, this one has 5000"));
  EXPECT_THAT(Message(std::string(300000, ' ')),
              HasSubstr("at most 262144 bytes, this one has 300000"));
  std::string many = "model: a\nmodels: [";
  for (int i = 0; i < 20000; ++i) many += "a,";
  EXPECT_THAT(Message(many + "]"), HasSubstr("at most 16384 values"));
  std::string unknown = "model: a\n";
  for (int i = 0; i < 1000; ++i) absl::StrAppend(&unknown, "k", i, ": 1\n");
  EXPECT_THAT(Message(unknown), HasSubstr("and 900 more"));
  EXPECT_THAT(Message(std::string("model: a\0b", 10)), Not(HasSubstr(std::string(1, '\0'))));
}

TEST(DeploymentTest, WorkersOnSeveralGpus) {
  const auto devices = [](const char* group) {
    const auto cluster =
        ParseDeployment(absl::StrCat("model: a\nprefill: {tp_sum: 4}\ndecode: ", group), "f.yaml");
    std::vector<std::string> all;
    EXPECT_TRUE(cluster.ok()) << cluster.status();
    if (!cluster.ok()) return all;
    for (const Worker& worker : cluster->workers) {
      if (worker.role == Role::kDecode) {
        all.push_back(absl::StrCat(worker.device, " tp ", worker.tp, " of ", worker.tp_sum));
      }
    }
    return all;
  };
  EXPECT_THAT(devices("{tp: 4, device: cuda}"), ElementsAre("cuda tp 4 of 4"));
  EXPECT_THAT(devices("{tp: 2, tp_sum: 4}"), ElementsAre("cpu tp 2 of 4"));
  EXPECT_THAT(devices("{tp: 2, tp_sum: 4, count: 2, device: 'cuda:3,1'}"),
              ElementsAre("cuda:3,1 tp 2 of 4", "cuda:3,1 tp 2 of 4"));
  EXPECT_THAT(devices("{tp: 2, tp_sum: 4, count: 2, device: 'cuda:0,1,2,3'}"),
              ElementsAre("cuda:0,1 tp 2 of 4", "cuda:2,3 tp 2 of 4"));
  // Stages, of workers that need not be alike.
  EXPECT_THAT(devices("{tp: 2, pp: 2, tp_sum: 4, count: 2, device: 'cuda:0,1,2,3,4,5,6,7'}"),
              ElementsAre("cuda:0,1,2,3 tp 2 of 4", "cuda:4,5,6,7 tp 2 of 4"));
  EXPECT_THAT(devices("{pp: 3, tp_sum: 4, device: cuda}"), ElementsAre("cuda tp 1 of 4"));
  EXPECT_THAT(devices("{tp_sum: 4, count: 3, device: 'cuda:2,0,1'}"),
              ElementsAre("cuda:2 tp 1 of 4", "cuda tp 1 of 4", "cuda:1 tp 1 of 4"));
}

TEST(DeploymentTest, TheFilesOfDeployAreGood) {
  for (const char* file :
       {"deploy/local.yaml", "deploy/local-gpu-standin.yaml", "deploy/1x8-h100-4p4d.yaml",
        "deploy/2x8-h100-tp4.yaml", "deploy/1x8-a100-pcie-tp2-pp2.yaml"}) {
    const auto cluster = ParseDeployment(FileText(file), file);
    EXPECT_TRUE(cluster.ok()) << cluster.status();
  }
}

TEST(SchemaTest, TheReferenceIsInDeploy) {
  EXPECT_THAT(FileText("deploy/README.md"), HasSubstr(SchemaReference()))
      << "put there what `penstock up --help-file` prints";
}

TEST(ValuesTest, Sizes) {
  for (const auto& [text, want] :
       {std::pair("1", 1), std::pair("4096", 4096), std::pair("1.5kB", 1500),
        std::pair("2MiB", 2097152), std::pair("1 GB", 1000000000)}) {
    EXPECT_EQ(*ParseBytes(text), want) << text;
  }
  for (const char* bad :
       {"", "0", "-1", "B", "1..5MB", "1e3", "9999999TiB", "1mb", "1 MB ", "0x10", "nan", "inf"}) {
    EXPECT_FALSE(ParseBytes(bad).ok()) << bad;
  }
}

TEST(ValuesTest, Times) {
  EXPECT_EQ(*ParseDuration("250ms"), milliseconds(250));
  EXPECT_EQ(*ParseDuration("1.5 s"), milliseconds(1500));
  EXPECT_EQ(*ParseDuration("24h"), hours(24));
  for (const char* bad : {"", "5", "25h", "-1s", "0s", "1d", "s"})
    EXPECT_FALSE(ParseDuration(bad).ok()) << bad;
}

TEST(ValuesTest, CpusBothWays) {
  for (const char* text : {"0", "0,2", "0-3", "0,2,4-7,9"})
    EXPECT_EQ(CpusToString(*ParseCpus(text)), text);
  EXPECT_EQ(CpusToString({}), "");
  for (const char* bad :
       {"", "a", "0,", "3-1", "0,0", "0-2,1", "-1", "1024", "99999999999999999999"}) {
    EXPECT_FALSE(ParseCpus(bad).ok()) << bad;
  }
}

}  // namespace
}  // namespace penstock::launch
