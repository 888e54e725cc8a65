// SPDX-License-Identifier: Apache-2.0
// A deployment file: what a cluster is made of, and where. Read once, checked whole: every fault is
// listed with its place, so that one look mends them all. The keys are in schema.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "base/time.h"
#include "launch/yaml.h"

namespace penstock::launch {

enum class Role { kCoordinator, kGateway, kPrefill, kDecode, kStore };
std::string_view ToString(Role role);  // "coordinator", "gateway", ...: also the subcommand.

struct Model {
  std::string name = {};
  std::string path = {};  // As written.
  Mark at = {};
};

struct Host {
  std::string name = {};
  std::string address = {};  // Numeric; what its processes listen on.
};

// One worker process. Indices are into Deployment's lists; 0 is "not said".
struct Worker {
  Role role = Role::kPrefill;
  std::string name = {};  // "prefill-1": numbered over the whole file, so alike on every host.
  std::size_t model = 0;
  std::size_t host = 0;
  int threads = 0;
  std::vector<int> cpus = {};
  std::int64_t kv_bytes = 0;
  std::string kv_dtype = {};
  std::string numerics = {};
  std::string device = {};
  bool any_gpus = false;    // `device` is "cuda", and whoever starts the worker chooses which.
  std::int64_t pp = 1;      // Stages.
  std::int64_t tp = 1;      // Shards of each; `device` names as many GPUs in all, or is "cuda".
  std::int64_t tp_sum = 1;  // Partial sums, a multiple of `tp`.
  std::int64_t page_tokens = 0;
  std::int64_t context_tokens = 0;
  std::int64_t chunk_tokens = 0;
  std::int64_t sequences = 0;
  Mark at = {};  // Of its group.
};

// What a tenant may have of a store node.
struct TenantQuota {
  std::string salt_file = {};  // As written; empty: those without a salt.
  std::int64_t bytes = 0;
};

// One store node.
struct StoreNode {
  std::string name = {};  // "kvstore-1".
  std::size_t host = 0;
  std::int64_t host_bytes = 0;  // 0: not said.
  std::string disk = {};        // Of its group, as written: it has a folder there. Empty: none.
  std::int64_t disk_bytes = 0;
  std::string policy = {};
  std::string write = {};
  std::string admit = {};
  std::string remote = {};  // Of a server, as written; empty: none.
  std::string remote_user = {};
  std::string remote_password_file = {};  // As written.
  std::string remote_write = {};
  std::vector<TenantQuota> tenants = {};
  Mark at = {};  // Of its group.
};

struct Gateway {
  std::string name = {};  // "gateway-1".
  std::size_t host = 0;
  std::uint16_t grpc_port = 0;
  std::uint16_t http_port = 0;
  Mark at = {};
};

struct Deployment {
  std::vector<Model> models;  // At least one; each has a prefill and a decode worker.
  std::vector<Host> hosts;    // At least one.
  std::vector<Worker> workers;
  std::vector<StoreNode> stores;  // Empty: workers keep blocks nowhere.
  std::string store_codec;        // Of all workers.
  std::string store_lossy;
  std::string store_max_kl;
  std::string store_write;
  // As written. Empty: none, or penstock up makes one: workers and stores are on one host then.
  std::string secret_file;
  std::vector<Gateway> gateways;  // Of their own; empty: one inside the coordinator.
  std::size_t coordinator_host = 0;
  std::uint16_t coordinator_port = 0;
  std::uint16_t http_port = 0;     // Of a gateway inside.
  std::uint16_t metrics_port = 0;  // Of the coordinator.
  std::string policy;
  std::int64_t block_tokens = 0;      // A power of two.
  std::vector<std::string> transfer;  // Best first.
  std::vector<std::string> etcd;      // "host:port" of its members; empty: there is none.
  std::string etcd_prefix;
  std::vector<std::string> standby;  // Of further coordinators, started by hand.
  Duration slo_ttft{};               // 0: none.
  Duration slo_tpot{};

  bool gateway_inside() const { return gateways.empty(); }
  // "10.0.0.1:50051"; nothing where the port is to be found.
  std::optional<std::string> CoordinatorAddress() const;
};

// INVALID_ARGUMENT: what ToString of all faults says, each line "FILE:LINE:COLUMN: what".
absl::StatusOr<Deployment> ParseDeployment(std::string_view text, std::string_view file);

// "[::1]:80" and "10.0.0.1:80".
std::string JoinAddress(std::string_view address, std::uint16_t port);

}  // namespace penstock::launch
