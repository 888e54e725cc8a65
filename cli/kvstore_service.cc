// SPDX-License-Identifier: Apache-2.0
// penstock kvstore: one store node, until a signal ends it.
#include <unistd.h>

#include <charconv>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "CLI/App.hpp"
#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status.h"
#include "cli/commands.h"
#include "cli/deployment_file.h"
#include "cli/member_service.h"
#include "device/cpu_device.h"
#include "kvstore/eviction.h"
#include "kvstore/node/store_member.h"
#include "kvstore/node/store_node.h"
#include "kvstore/node/store_service.h"
#include "launch/values.h"
#include "rpc/server.h"

namespace penstock::cli {
namespace {

struct KvstoreFlags {
  MemberFlags member;
  std::uint64_t host_bytes = 0;  // 0: DefaultStoreBytes.
  std::string disk;
  std::uint64_t disk_bytes = std::uint64_t{8} << 30;
  std::string policy = "reuse-density";
  std::string write = "through";
  std::string admit = "all";
  std::uint32_t block_tokens = 32;
  std::vector<std::string> quotas;
  std::string remote;
  std::string remote_user;
  std::string remote_password_file;
  std::string remote_write = "back";
};

absl::StatusOr<kvstore::RedisLinkOptions> RemoteOf(const KvstoreFlags& flags) {
  kvstore::RedisLinkOptions options = {.address = flags.remote, .user = flags.remote_user};
  if (flags.remote.empty()) {
    if (flags.remote_user.empty() && flags.remote_password_file.empty()) return options;
    return absl::InvalidArgumentError("--remote-user and --remote-password-file need --remote");
  }
  if (flags.member.secret_file.empty()) {
    return absl::InvalidArgumentError(
        "--remote needs --secret-file: whoever can write to that server could pass off frames as "
        "the cluster's");
  }
  if (!flags.remote_password_file.empty()) {
    ASSIGN_OR_RETURN(options.password,
                     ReadPrivateFile("--remote-password-file", flags.remote_password_file, 1));
    // As editors leave it.
    while (options.password.ends_with('\n')) options.password.pop_back();
  }
  return options;
}

// "1a2b3c4d=4GiB": a tenant's number and its bytes.
absl::StatusOr<std::pair<std::uint32_t, std::uint64_t>> QuotaOf(const std::string& text) {
  const std::size_t equals = text.find('=');
  const auto fail = [&] {
    return absl::InvalidArgumentError(
        absl::StrCat("--quota must be TENANT=BYTES, such as 1a2b3c4d=4GiB, got '", text, "'"));
  };
  if (equals == std::string::npos) return fail();
  std::uint32_t tenant = 0;
  const char* const begin = text.data();
  const auto [end, error] = std::from_chars(begin, begin + equals, tenant, 16);
  if (error != std::errc() || end != begin + equals || equals != 8) return fail();
  const absl::StatusOr<std::int64_t> bytes = launch::ParseBytes(text.substr(equals + 1));
  if (!bytes.ok()) return fail();
  return std::pair(tenant, static_cast<std::uint64_t>(*bytes));
}

absl::StatusOr<int> RunKvstore(const KvstoreFlags& flags) {
  BlockSignals();
  SetLogLevel(LogLevel::kInfo);
  ASSIGN_OR_RETURN(transfer::Endpoint::Options endpoint, MakeEndpoint(flags.member, "kvstore"));
  ASSIGN_OR_RETURN(std::vector<std::byte> secret, ReadSecret(flags.member.secret_file));
  kvstore::StoreNode::Options options;
  options.endpoint = std::move(endpoint);
  options.server.secret = std::move(secret);
  options.host_bytes = flags.host_bytes != 0 ? flags.host_bytes : DefaultStoreBytes();
  options.host.policy = options.tiers.disk_policy = flags.policy;
  options.host.block_tokens = options.tiers.block_tokens = flags.block_tokens;
  options.disk_directory = flags.disk;
  options.disk_bytes = flags.disk_bytes;
  options.tiers.disk_through = flags.write == "through";
  options.tiers.second_use = flags.admit == "second-use";
  options.tiers.remote_through = flags.remote_write == "through";
  for (const std::string& quota : flags.quotas) {
    ASSIGN_OR_RETURN(options.tiers.quotas.emplace_back(), QuotaOf(quota));
  }
  ASSIGN_OR_RETURN(options.remote, RemoteOf(flags));
  const TracePart trace(flags.member.trace, "kvstore", options.endpoint.self.name);
  options.tiers.spans = trace.spans();
  ASSIGN_OR_RETURN(const std::unique_ptr<CpuDevice> device, CpuDevice::Make({.threads = 1}));
  ASSIGN_OR_RETURN(const std::unique_ptr<kvstore::StoreNode> node,
                   kvstore::StoreNode::Start(*device, options));
  const std::unique_ptr<grpc::Service> store = kvstore::MakeStoreService(*node);
  ASSIGN_OR_RETURN(const std::unique_ptr<rpc::Server> server,
                   rpc::Server::Start({.host = flags.member.host, .port = flags.member.port},
                                      {store.get(), trace.service()}));
  const MemberInfo info = {.role = "kvstore",
                           .name = options.endpoint.self.name,
                           .epoch = options.endpoint.self.epoch,
                           .transfer_address = node->transfer_address()};
  RETURN_IF_ERROR(TakePart<kvstore::StoreMember>(
      flags.member, *node, *server, info,
      {.name = info.name,
       .block_tokens = static_cast<std::int32_t>(flags.block_tokens),
       .endpoint = server->address(),
       .transfer_address = info.transfer_address,
       .transfer_epoch = info.epoch,
       .device = absl::StrCat("host memory", flags.disk.empty() ? "" : ", disk",
                              flags.remote.empty() ? "" : ", remote"),
       .pid = static_cast<std::uint64_t>(::getpid())}));
  return kExitOk;
}

}  // namespace

void RegisterKvstore(CLI::App& app, Run& run) {
  const auto flags = std::make_shared<KvstoreFlags>();
  CLI::App* const sub = app.add_subcommand(
      "kvstore", "A store node: keeps KV blocks of its host's workers in memory and on disk");
  AddMemberFlags(*sub, "kvstore", flags->member);
  constexpr const char* kTiers = "Tiers";
  sub->add_option("--host-bytes", flags->host_bytes, "Host memory, such as 4GiB")
      ->transform(CLI::AsSizeValue(false))
      ->default_str("1 GiB, or half of what is free where that is less")
      ->group(kTiers);
  sub->add_option("--disk", flags->disk,
                  "Directory of the disk tier, made where it is not there; this node's alone. "
                  "Without it there is none")
      ->group(kTiers);
  sub->add_option("--disk-bytes", flags->disk_bytes, "Of its files at most")
      ->transform(CLI::AsSizeValue(false))
      ->capture_default_str()
      ->group(kTiers);
  const auto names = kvstore::EvictionPolicyNames();
  sub->add_option("--policy", flags->policy, "What a full tier lets go of first")
      ->check(CLI::IsMember(std::vector<std::string>(names.begin(), names.end())))
      ->capture_default_str()
      ->group(kTiers);
  sub->add_option("--write", flags->write,
                  "When blocks are written to disk: as they come (through), or as memory lets go "
                  "of them (back)")
      ->check(CLI::IsMember({"through", "back"}))
      ->capture_default_str()
      ->group(kTiers);
  sub->add_option("--admit", flags->admit,
                  "Which blocks are kept: all, or those that were asked for before (second-use)")
      ->check(CLI::IsMember({"all", "second-use"}))
      ->capture_default_str()
      ->group(kTiers);
  sub->add_option(
         "--quota", flags->quotas,
         "TENANT=BYTES, for some tenants: of memory, and as much of the disk. Where one is "
         "full, who is over pays first. TENANT is what `penstock store tenant` prints")
      ->group(kTiers);
  sub->add_option("--remote", flags->remote,
                  "A server that speaks the Redis protocol, HOST:PORT or unix:PATH: takes what the "
                  "tiers here let go of, for all nodes that use it. Needs --secret-file")
      ->group(kTiers);
  sub->add_option("--remote-user", flags->remote_user, "Of the server's ACL; else the default one")
      ->group(kTiers);
  sub->add_option("--remote-password-file", flags->remote_password_file,
                  "File with its password, for this user alone")
      ->group(kTiers);
  sub->add_option("--remote-write", flags->remote_write,
                  "When blocks are put there: as the tiers here let go of them (back), or as they "
                  "come (through)")
      ->check(CLI::IsMember({"through", "back"}))
      ->capture_default_str()
      ->group(kTiers);
  sub->add_option("--block-tokens", flags->block_tokens, "As the workers'")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str()
      ->group(kTiers);
  sub->callback([flags, &run] { run = [flags] { return RunKvstore(*flags); }; });
}

}  // namespace penstock::cli
