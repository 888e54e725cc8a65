// SPDX-License-Identifier: Apache-2.0
// Store nodes: what a deployment file says of them, and the files that are made for them.
#include "launch/deployment_stores.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "launch/commands.h"
#include "launch/store_files.h"

namespace penstock::launch {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::MatchesRegex;
using testing::Not;

constexpr const char* kHosts =
    "model: m\nhosts: {a: 10.0.0.1, b: 10.0.0.2, c: 10.0.0.3}\nports: {grpc: 70}\n"
    "coordinator_host: c\nprefill: {host: b}\ndecode: [{host: b}, {host: a}]\n";

std::string Message(const std::string& text) {
  const auto deployment = ParseDeployment(text, "f");
  return deployment.ok() ? "OK" : std::string(deployment.status().message());
}

// "kvstore-1@a".
std::vector<std::string> Stores(const std::string& text) {
  std::vector<std::string> list;
  const auto deployment = ParseDeployment(text, "f");
  EXPECT_TRUE(deployment.ok()) << deployment.status();
  if (!deployment.ok()) return list;
  for (const StoreNode& store : deployment->stores) {
    list.push_back(absl::StrCat(store.name, "@", deployment->hosts[store.host].name));
  }
  return list;
}

TEST(DeploymentStoresTest, OneOnEveryHostThatHasWorkers) {
  const std::string hosts = absl::StrCat(kHosts, "secret_file: s\nkvstore: ");
  EXPECT_THAT(Stores("model: m"), IsEmpty());
  EXPECT_THAT(Stores("model: m\nkvstore: 0"), IsEmpty());
  EXPECT_THAT(Stores("model: m\nkvstore: 2"), ElementsAre("kvstore-1@local", "kvstore-2@local"));
  EXPECT_THAT(Stores("model: m\nkvstore: {}"), ElementsAre("kvstore-1@local"));
  EXPECT_THAT(Stores(hosts + "1"), ElementsAre("kvstore-1@a", "kvstore-2@b"));
  EXPECT_THAT(Stores(hosts + "{disk: d}"), ElementsAre("kvstore-1@a", "kvstore-2@b"));
  EXPECT_THAT(Stores(hosts + "{host: c}"), ElementsAre("kvstore-1@c"));
  EXPECT_THAT(
      Stores(hosts + "[{host: b}, {count: 2}]"),
      ElementsAre("kvstore-1@b", "kvstore-2@a", "kvstore-3@a", "kvstore-4@b", "kvstore-5@b"));
}

TEST(DeploymentStoresTest, EverythingGiven) {
  const auto cluster = ParseDeployment(R"(
model: m
kvstore: {host_bytes: 2GiB, disk: d/e, disk_bytes: 3GiB, policy: lru, write: back,
          admit: second-use, codec: planes, worker_write: back}
block_tokens: 16
secret_file: s
)",
                                       "f");
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  const auto processes =
      PlanProcesses(*cluster, 0, {.program = "p", .folder = "f", .metrics = false}, "c:1");
  ASSERT_EQ(processes.size(), 4u);
  EXPECT_EQ(ShellLine(processes[1].arguments),
            "p kvstore --host 127.0.0.1 --ready-file f/kvstore-1.json --coordinator c:1 --name "
            "kvstore-1 --host-bytes 2147483648 --disk d/e/kvstore-1 --disk-bytes 3221225472 "
            "--write back --policy lru --admit second-use --block-tokens 16 --transfer shm,tcp "
            "--secret-file s");
  EXPECT_EQ(processes[1].role, Role::kStore);
  for (const std::size_t worker : {2u, 3u}) {
    EXPECT_THAT(ShellLine(processes[worker].arguments),
                AllOf(HasSubstr("--secret-file s --store-codec planes --store-write back"),
                      Not(HasSubstr("--no-store"))));
    EXPECT_LT(processes[worker].stop_rank, processes[1].stop_rank);
  }
  EXPECT_THAT(ShellLine(processes[0].arguments), Not(HasSubstr("secret")));
}

TEST(DeploymentStoresTest, CopiesWithALossHaveABudget) {
  const auto processes = PlanProcesses(
      ParseDeployment("model: m\nkvstore: {codec: none, lossy: int8, max_kl: 0.005}", "f").value(),
      0, {.program = "p", .folder = "f", .metrics = false}, "c:1");
  EXPECT_THAT(ShellLine(processes[2].arguments),
              HasSubstr("--store-codec none --store-lossy int8 --max-kl 0.005 --store-write"));
}

TEST(DeploymentStoresTest, WhatIsNotSaidIsLeftToTheNode) {
  const auto processes = PlanProcesses(ParseDeployment("model: m\nkvstore: 1", "f").value(), 0,
                                       {.program = "p", .folder = "f", .metrics = false}, "c:1");
  EXPECT_EQ(ShellLine(processes[1].arguments),
            "p kvstore --host 127.0.0.1 --ready-file f/kvstore-1.json --coordinator c:1 --name "
            "kvstore-1 --policy reuse-density --admit all --block-tokens 32 --transfer shm,tcp "
            "--secret-file f/secret");
}

TEST(DeploymentStoresTest, RemoteTiersAndTenants) {
  const auto cluster = ParseDeployment(R"(
model: m
kvstore: {remote: "10.0.0.9:6379", remote_user: u, remote_password_file: p, remote_write: through,
          tenants: [{salt_file: a.salt, bytes: 1GiB}, {bytes: 5MB}]}
secret_file: s
)",
                                       "f");
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  const auto processes = PlanProcesses(
      *cluster, 0,
      {.program = "p", .folder = "f", .metrics = false, .tenants = {{"a.salt", 0x1a2b3c}}}, "c:1");
  EXPECT_EQ(ShellLine(processes[1].arguments),
            "p kvstore --host 127.0.0.1 --ready-file f/kvstore-1.json --coordinator c:1 --name "
            "kvstore-1 --remote 10.0.0.9:6379 --remote-user u --remote-password-file p "
            "--remote-write through --policy reuse-density --admit all --block-tokens 32 "
            "--quota 001a2b3c=1073741824 --quota 00000000=5000000 --transfer shm,tcp "
            "--secret-file s");
  for (const auto& process : processes) {
    EXPECT_THAT(ShellLine(process.arguments), Not(HasSubstr("a.salt")));
  }
}

TEST(DeploymentStoresTest, FaultsNamePlaceValueAndLimits) {
  struct Wrong {
    const char* text;
    const char* want;
  };
  for (const Wrong& wrong : {
           Wrong{"kvstore: -1", "f:2:10: kvstore must be a whole number from 0 to 16, got \"-1\""},
           Wrong{"kvstore: 17", "whole number from 0 to 16, got \"17\""},
           Wrong{"kvstore: yes", "f:2:10: kvstore must be a whole number"},
           Wrong{"kvstore: []", "f:2:10: kvstore must have 1 to 256 groups, got 0"},
           Wrong{"kvstore: [1]", "f:2:11: must be keys, got \"1\""},
           Wrong{"kvstore: {count: 0}", "f:2:18: count must be a whole number from 1 to 16"},
           Wrong{"kvstore: {host: x}", "f:2:17: no host \"x\"; there are local"},
           Wrong{"kvstore: {dsk: x}", "f:2:11: unknown key \"dsk\"; did you mean disk?"},
           Wrong{"kvstore: {host_bytes: 1 apple}", "f:2:23: host_bytes must be a size"},
           Wrong{"kvstore: {policy: hybrd}",
                 "f:2:19: policy must be one of lru, s3-fifo, hybrid, reuse-density, got "
                 "\"hybrd\"; did you mean hybrid?"},
           Wrong{"kvstore: {disk: x, write: b}",
                 "f:2:27: write must be one of through, back, got \"b\""},
           Wrong{"kvstore: {disk_bytes: 1GB}", "f:2:23: disk_bytes is of disk, which is not here"},
           Wrong{"kvstore: {disk: x, disk_bytes: 319MiB}",
                 "f:2:32: disk_bytes must be at least 320MiB, got 334495744 bytes"},
           Wrong{"kvstore: {write: back}", "f:2:18: write is of disk, which is not here"},
           Wrong{"kvstore: {admit: none}", "f:2:18: admit must be one of all, second-use"},
           Wrong{"kvstore: {codec: int8}",
                 "f:2:18: codec must be one of raw, planes, planes+zstd, auto"},
           Wrong{"prefill: {kv_dtype: int8}\ndecode: {kv_dtype: int8}\nkvstore: {codec: planes}",
                 "f:4:18: codec: workers with kv_dtype int8 take raw, got planes"},
           Wrong{"prefill: {kv_dtype: int8}\ndecode: {kv_dtype: int8}\n"
                 "kvstore: {lossy: k8v4, max_kl: 0.01}",
                 "f:4:18: lossy: workers with kv_dtype int8 take none, got k8v4"},
           Wrong{"kvstore: {codec: none}", "f:2:18: codec: none needs a lossy codec beside it"},
           Wrong{"kvstore: {lossy: int8, max_kl: 0.0}", "lossy: int8 needs max_kl"},
           Wrong{"kvstore: {lossy: int8}", "f:2:18: lossy: int8 needs max_kl, such as 0.005"},
           Wrong{"kvstore: {lossy: planes}", "f:2:18: lossy must be one of none, int8, k8v4"},
           Wrong{"kvstore: {max_kl: 0.06}",
                 "f:2:19: max_kl must be a number from 0 to 0.05, got "
                 "\"0.06\""},
           Wrong{"kvstore: {max_kl: nan}", "f:2:19: max_kl must be a number from 0 to 0.05"},
           Wrong{"kvstore: [{max_kl: 0.01}, {}]", "all groups of kvstore need one max_kl"},
           Wrong{"kvstore: [{codec: planes}, {}]",
                 "f:2:28: all groups of kvstore need one codec; the first has planes, this one has "
                 "raw"},
           Wrong{"kvstore: [{}, {worker_write: back}]",
                 "f:2:15: all groups of kvstore need one worker_write; the first has through, this "
                 "one has back"},
           Wrong{"kvstore: {remote: \"h:1\"}", "f:2:10: remote needs secret_file"},
           Wrong{"kvstore: {remote_user: u}",
                 "f:2:24: remote_user is of remote, which is not here"},
           Wrong{"kvstore: {remote_write: back}", "remote_write is of remote, which is not here"},
           Wrong{"kvstore: {tenants: 3}",
                 "f:2:20: tenants must be a list of 1 to 1024, each with salt_file and bytes"},
           Wrong{"kvstore: {tenants: []}", "tenants must be a list of 1 to 1024"},
           Wrong{"kvstore: {tenants: [{salt_file: a}]}", "f:2:21: a tenant needs bytes, its limit"},
           Wrong{"kvstore: {tenants: [{salt: a, bytes: 1GiB}]}",
                 "unknown key \"salt\"; did you mean salt_file?"},
           Wrong{"kvstore: {tenants: [{bytes: 1}, {bytes: 2}]}",
                 "f:2:33: two tenants have no salt_file"},
           Wrong{"kvstore: {tenants: [{salt_file: a, bytes: 1}, {salt_file: a, bytes: 2}]}",
                 "two tenants have the salt_file a"},
           Wrong{"secret_file: [a]", "f:2:14: secret_file must be a text"},
       }) {
    EXPECT_THAT(Message(absl::StrCat("model: m\n", wrong.text)), HasSubstr(wrong.want))
        << wrong.text;
  }
  std::string many = "model: m\nkvstore: [";
  for (int i = 0; i < 17; ++i) many += "{count: 16}, ";
  EXPECT_THAT(Message(many + "]"),
              HasSubstr("at most 256 store nodes, with this group it has 272"));
}

TEST(DeploymentStoresTest, SeveralHostsNeedASecret) {
  EXPECT_THAT(
      Message(absl::StrCat(kHosts, "kvstore: {host: a}")),
      HasSubstr("f:7:10: with workers and store nodes on 2 hosts kvstore needs secret_file"));
  EXPECT_EQ(Message(absl::StrCat(kHosts, "kvstore: 0")), "OK");
  EXPECT_EQ(Message(kHosts), "OK");
  // Those who would use it are on one.
  const std::string one =
      "model: m\nhosts: {a: 10.0.0.1, b: 10.0.0.2}\nports: {grpc: 70}\nprefill: {host: b}\n"
      "decode: {host: b}\nkvstore: ";
  EXPECT_EQ(Message(one + "1"), "OK");
  EXPECT_THAT(Message(one + "{host: a}"), HasSubstr("needs secret_file"));
}

class StoreFilesTest : public testing::Test {
 protected:
  void SetUp() override {
    root_ = testing::TempDir() + "penstock-stores-XXXXXX";
    ASSERT_NE(::mkdtemp(root_.data()), nullptr);
  }
  void TearDown() override { std::filesystem::remove_all(root_); }
  Deployment Parse(const std::string& rest) const {
    return ParseDeployment(absl::StrCat("model: m\n", rest), "f").value();
  }
  static std::string TextOf(const std::string& path) {
    std::ifstream file(path);
    return {std::istreambuf_iterator<char>(file), {}};
  }

  std::string root_;
};

TEST_F(StoreFilesTest, ASecretForThisUserAlone) {
  const Deployment deployment = Parse("kvstore: 1");
  ASSERT_TRUE(MakeStoreFiles(deployment, 0, root_).ok());
  const std::string path = SecretFile(deployment, 0, root_);
  EXPECT_EQ(path, root_ + "/secret");
  EXPECT_THAT(TextOf(path), MatchesRegex("[0-9a-f]+"));
  EXPECT_EQ(TextOf(path).size(), 64u);
  struct stat status = {};
  ASSERT_EQ(::stat(path.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600u);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(root_), {}), 1);
  const std::string other = root_ + "/other";
  std::filesystem::create_directory(other);
  ASSERT_TRUE(MakeStoreFiles(deployment, 0, other).ok());
  EXPECT_NE(TextOf(path), TextOf(other + "/secret"));
}

// Blocks on disk can be read again by who has the secret alone.
TEST_F(StoreFilesTest, ItStaysWithTheBlocksOnDisk) {
  const std::string disk = root_ + "/a/b";
  const Deployment deployment = Parse(absl::StrCat("kvstore: [{}, {disk: ", disk, "}]"));
  ASSERT_TRUE(MakeStoreFiles(deployment, 0, root_).ok());
  EXPECT_EQ(SecretFile(deployment, 0, root_), disk + "/secret");
  EXPECT_EQ(DiskOf(deployment.stores[0]), "");
  EXPECT_EQ(DiskOf(deployment.stores[1]), disk + "/kvstore-2");
  const std::string secret = TextOf(disk + "/secret");
  ASSERT_TRUE(MakeStoreFiles(deployment, 0, root_).ok());
  EXPECT_EQ(TextOf(disk + "/secret"), secret);
}

TEST_F(StoreFilesTest, OneThatIsNamedIsNotMade) {
  const std::string path = root_ + "/mine";
  const Deployment deployment = Parse(absl::StrCat("kvstore: 1\nsecret_file: ", path));
  ASSERT_TRUE(MakeStoreFiles(deployment, 0, root_).ok());
  EXPECT_EQ(SecretFile(deployment, 0, root_), path);
  EXPECT_TRUE(std::filesystem::is_empty(root_));
  const Deployment none = Parse("secret_file: x");
  ASSERT_TRUE(MakeStoreFiles(none, 0, root_).ok());
  EXPECT_EQ(SecretFile(none, 0, root_), "");
  EXPECT_TRUE(std::filesystem::is_empty(root_));
}

TEST_F(StoreFilesTest, WhatCannotBeMadeIsNamed) {
  std::ofstream(root_ + "/file") << "x";
  const auto made = [&](const std::string& rest, const std::string& folder) {
    return std::string(MakeStoreFiles(Parse(rest), 0, folder).message());
  };
  EXPECT_EQ(made(absl::StrCat("kvstore: {disk: ", root_, "/file/x}"), root_),
            absl::StrCat("cannot make ", root_, "/file/x: Not a directory"));
  EXPECT_EQ(made("kvstore: 1", root_ + "/nowhere"),
            absl::StrCat("cannot make ", root_, "/nowhere/secret: No such file or directory"));
}

}  // namespace
}  // namespace penstock::launch
