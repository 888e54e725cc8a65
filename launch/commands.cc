// SPDX-License-Identifier: Apache-2.0
#include "launch/commands.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/device_name.h"
#include "base/status.h"
#include "launch/store_files.h"
#include "launch/values.h"

namespace penstock::launch {
namespace {

class Planner {
 public:
  Planner(const Deployment& deployment, std::size_t host, const CommandOptions& options,
          std::string_view coordinator)
      : deployment_(deployment), host_(host), options_(options), coordinator_(coordinator) {}

  Process Coordinator() const {
    const bool inside = deployment_.gateway_inside();
    Process process = Begin(Role::kCoordinator, "coordinator", inside ? 0 : 3);
    Add(process, "--port", absl::StrCat(deployment_.coordinator_port));
    Add(process, "--policy", deployment_.policy);
    if (!deployment_.etcd.empty()) {
      Add(process, "--etcd", absl::StrJoin(deployment_.etcd, ","));
      Add(process, "--etcd-prefix", deployment_.etcd_prefix);
    }
    if (inside) {
      if (options_.http) Add(process, "--http-port", absl::StrCat(deployment_.http_port));
      AddServed(process);
    }
    return process;
  }

  Process OfGateway(const Gateway& gateway) const {
    Process process = Begin(Role::kGateway, gateway.name, 0);
    AddCoordinators(process);
    Add(process, "--name", gateway.name);
    Add(process, "--port", absl::StrCat(gateway.grpc_port));
    if (options_.http) Add(process, "--http-port", absl::StrCat(gateway.http_port));
    AddServed(process);
    return process;
  }

  Process OfStore(const StoreNode& store) const {
    Process process = Begin(Role::kStore, store.name, 2);
    AddCoordinators(process);
    Add(process, "--name", store.name);
    if (store.host_bytes != 0) Add(process, "--host-bytes", absl::StrCat(store.host_bytes));
    if (const std::string disk = DiskOf(store); !disk.empty()) {
      Add(process, "--disk", disk);
      Add(process, "--disk-bytes", absl::StrCat(store.disk_bytes));
      Add(process, "--write", store.write);
    }
    if (!store.remote.empty()) {
      Add(process, "--remote", store.remote);
      if (!store.remote_user.empty()) Add(process, "--remote-user", store.remote_user);
      if (!store.remote_password_file.empty()) {
        Add(process, "--remote-password-file", store.remote_password_file);
      }
      Add(process, "--remote-write", store.remote_write);
    }
    Add(process, "--policy", store.policy);
    Add(process, "--admit", store.admit);
    Add(process, "--block-tokens", absl::StrCat(deployment_.block_tokens));
    for (const TenantQuota& tenant : store.tenants) {
      std::uint32_t number = 0;
      if (!tenant.salt_file.empty()) {
        const auto known = options_.tenants.find(tenant.salt_file);
        if (known == options_.tenants.end()) continue;
        number = known->second;
      }
      Add(process, "--quota", absl::StrFormat("%08x=%d", number, tenant.bytes));
    }
    AddTransfer(process, false);
    return process;
  }

  Process OfWorker(const Worker& worker) const {
    Process process = Begin(worker.role, worker.name, 1);
    const Model& model = deployment_.models[worker.model];
    AddCoordinators(process);
    Add(process, "--name", worker.name);
    Add(process, "--model", PathOf(model));
    Add(process, "--model-name", model.name);
    if (worker.cpus.empty()) {
      Add(process, "--threads", absl::StrCat(worker.threads != 0 ? worker.threads : Share()));
    } else {
      Add(process, "--cpus", CpusToString(worker.cpus));
      process.cpus = worker.cpus;
    }
    if (worker.kv_bytes != 0) Add(process, "--kv-bytes", absl::StrCat(worker.kv_bytes));
    Add(process, "--kv-dtype", worker.kv_dtype);
    if (worker.numerics != "exact") Add(process, "--numerics", worker.numerics);
    if (worker.device != "cpu") Add(process, "--device", worker.device);
    if (worker.pp != 1) Add(process, "--pp", absl::StrCat(worker.pp));
    if (worker.tp != 1) Add(process, "--tp", absl::StrCat(worker.tp));
    if (worker.tp_sum != 1) Add(process, "--tp-sum", absl::StrCat(worker.tp_sum));
    Add(process, "--block-tokens", absl::StrCat(deployment_.block_tokens));
    if (worker.page_tokens != 0) Add(process, "--page-tokens", absl::StrCat(worker.page_tokens));
    if (worker.context_tokens != 0) {
      Add(process, "--context-tokens", absl::StrCat(worker.context_tokens));
    }
    Add(process, "--chunk-tokens", absl::StrCat(worker.chunk_tokens));
    Add(process, "--sequences", absl::StrCat(worker.sequences));
    AddTransfer(process, GpusOf(worker.device, worker.tp).has_value());
    if (const auto links = options_.link_bytes.find(worker.name);
        links != options_.link_bytes.end()) {
      Add(process, "--link-bytes", absl::StrCat(links->second));
    }
    if (deployment_.stores.empty()) {
      process.arguments.emplace_back("--no-store");
    } else {
      Add(process, "--store-codec", deployment_.store_codec);
      if (deployment_.store_max_kl != "0") {
        Add(process, "--store-lossy", deployment_.store_lossy);
        Add(process, "--max-kl", deployment_.store_max_kl);
      }
      Add(process, "--store-write", deployment_.store_write);
    }
    process.arguments.insert(process.arguments.end(), options_.worker_arguments.begin(),
                             options_.worker_arguments.end());
    return process;
  }

 private:
  static void Add(Process& process, const char* flag, std::string_view value) {
    process.arguments.emplace_back(flag);
    process.arguments.emplace_back(value);
  }

  Process Begin(Role role, const std::string& name, int stop_rank) const {
    Process process = {.role = role, .name = name, .stop_rank = stop_rank};
    process.arguments = {options_.program, std::string(ToString(role))};
    process.ready_file = absl::StrCat(options_.folder, "/", name, ".json");
    Add(process, "--host", deployment_.hosts[host_].address);
    Add(process, "--ready-file", process.ready_file);
    if (options_.metrics) {
      // Prometheus is told one port; those of the others are in the ready file.
      const bool coordinator = role == Role::kCoordinator;
      Add(process, "--metrics-port", absl::StrCat(coordinator ? deployment_.metrics_port : 0));
      Add(process, "--metrics-host", deployment_.hosts[host_].address);
    }
    return process;
  }

  std::string PathOf(const Model& model) const {
    const auto at = options_.model_paths.find(model.name);
    return at == options_.model_paths.end() ? model.path : at->second;
  }

  void AddCoordinators(Process& process) const {
    std::vector<std::string> all = {std::string(coordinator_)};
    all.insert(all.end(), deployment_.standby.begin(), deployment_.standby.end());
    Add(process, "--coordinator", absl::StrJoin(all, ","));
  }

  // How KV moves to and from workers and store nodes.
  void AddTransfer(Process& process, bool gpus) const {
    std::vector<std::string> kinds = deployment_.transfer;
    if (!gpus) std::erase(kinds, "nccl");
    Add(process, "--transfer", absl::StrJoin(kinds, ","));
    if (!options_.socket_folder.empty()) Add(process, "--socket-folder", options_.socket_folder);
    const std::string secret = SecretFile(deployment_, host_, options_.folder);
    if (!secret.empty()) Add(process, "--secret-file", secret);
  }

  // What a gateway serves, and how well it should.
  void AddServed(Process& process) const {
    const auto add_slo = [&](const char* flag, Duration slo) {
      if (slo != Duration{}) Add(process, flag, absl::StrCat(ToSeconds(slo) * 1000));
    };
    add_slo("--slo-ttft-ms", deployment_.slo_ttft);
    add_slo("--slo-tpot-ms", deployment_.slo_tpot);
    for (const Model& model : deployment_.models) {
      Add(process, "--serve", absl::StrCat(model.name, "=", PathOf(model)));
    }
  }

  // Threads of a worker that does not say: what the others leave, in equal parts.
  int Share() const {
    int left = options_.cpus_available, sharing = 0;
    for (const Worker& worker : deployment_.workers) {
      if (worker.host != host_) continue;
      const int named = worker.cpus.empty() ? worker.threads : static_cast<int>(worker.cpus.size());
      left -= named;
      sharing += named == 0 ? 1 : 0;
    }
    return std::max(1, left / std::max(1, sharing));
  }

  const Deployment& deployment_;
  const std::size_t host_;
  const CommandOptions& options_;
  const std::string_view coordinator_;
};

}  // namespace

std::vector<Process> PlanProcesses(const Deployment& deployment, std::size_t host,
                                   const CommandOptions& options, std::string_view coordinator) {
  const Planner planner(deployment, host, options, coordinator);
  std::vector<Process> processes;
  if (deployment.coordinator_host == host) processes.push_back(planner.Coordinator());
  for (const Gateway& gateway : deployment.gateways) {
    if (gateway.host == host) processes.push_back(planner.OfGateway(gateway));
  }
  for (const StoreNode& store : deployment.stores) {
    if (store.host == host) processes.push_back(planner.OfStore(store));
  }
  for (const Worker& worker : deployment.workers) {
    if (worker.host == host) processes.push_back(planner.OfWorker(worker));
  }
  return processes;
}

std::vector<std::string> WithPort(std::vector<std::string> arguments, std::string_view flag,
                                  std::uint16_t port) {
  for (std::size_t i = 0; i + 1 < arguments.size(); ++i) {
    if (arguments[i] == flag) arguments[i + 1] = absl::StrCat(port);
  }
  return arguments;
}

std::string ShellLine(const std::vector<std::string>& arguments) {
  constexpr std::string_view kPlain =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+=:,./@%[]";
  std::string line;
  for (const std::string& argument : arguments) {
    if (!line.empty()) line += ' ';
    if (!argument.empty() && argument.find_first_not_of(kPlain) == std::string::npos) {
      line += argument;
      continue;
    }
    line += '\'';
    for (const char c : argument) line += c == '\'' ? std::string("'\\''") : std::string(1, c);
    line += '\'';
  }
  return line;
}

}  // namespace penstock::launch
