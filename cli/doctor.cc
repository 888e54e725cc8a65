// SPDX-License-Identifier: Apache-2.0
// penstock doctor: a deployment file against this machine, before it is started, and the pairs of its
// cluster once that runs.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "CLI/App.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "cli/commands.h"
#include "cli/deployment_file.h"
#include "cli/doctor_attention.h"
#include "cli/doctor_cluster.h"
#include "cli/doctor_gpus.h"
#include "cli/doctor_memory.h"
#include "cli/doctor_report.h"
#include "cli/doctor_stores.h"
#include "cli/gpu_placement.h"
#include "cli/link_probe.h"
#include "device/cpu_info.h"
#include "engine/local_model.h"
#include "launch/deployment.h"
#include "rpc/etcd_client.h"

namespace penstock::cli {
namespace {

struct DoctorFlags {
  std::string file;  // Empty: the machine alone.
  std::string cuda_plugin;
  std::string host;
  std::string server;
};

class Doctor {
 public:
  Doctor(const launch::Deployment& deployment, const DoctorFlags& flags, std::size_t host,
         std::vector<std::string> placed)
      : deployment_(deployment),
        placed_(std::move(placed)),
        file_(flags.file),
        server_(flags.server),
        cuda_plugin_(flags.cuda_plugin),
        host_(host),
        address_(deployment.hosts[host].address) {
    for (const launch::Worker& worker : deployment.workers) {
      if (worker.host == host) workers_.push_back(&worker);
    }
  }

  int Run() {
    const auto count = [](std::size_t n, const char* what) {
      return absl::StrCat(n, " ", what, n == 1 ? "" : "s");
    };
    report_.Ok(file_, ": ", count(deployment_.models.size(), "model"), ", ",
               count(deployment_.workers.size(), "worker"), "; ", workers_.size(), " of them here");
    cluster_ = FindRunningCluster(deployment_, server_, report_);
    CheckCpus();
    const absl::StatusOr<CudaSystem> gpus = ReportGpus(cuda_plugin_, report_);
    for (const std::string& line : placed_) report_.Ok(line);
    ReportFast(workers_, cuda_plugin_, report_);
    CheckModelsAndMemory(deployment_, file_, workers_, cluster_, gpus, report_);
    ReportPrefillAttention(deployment_, file_, workers_, cuda_plugin_, report_);
    CheckStores(deployment_, file_, host_, cluster_, report_);
    CheckAddress();
    CheckDescriptors();
    CheckTransfer();
    CheckEtcd();
    ReportPairs(deployment_, cluster_, report_);
    ReportStores(deployment_, cluster_, report_);
    return report_.faults();
  }

 private:
  void CheckCpus() {
    cpu_set_t ours;
    CPU_ZERO(&ours);
    ::sched_getaffinity(0, sizeof(ours), &ours);
    std::map<int, std::string> owners;
    std::set<std::string> said;
    int threads = 0;
    for (const launch::Worker* worker : workers_) {
      threads += worker->cpus.empty() ? std::max(worker->threads, 1)
                                      : static_cast<int>(worker->cpus.size());
      for (const int cpu : worker->cpus) {
        if (!CPU_ISSET(static_cast<std::size_t>(cpu), &ours)) {
          report_.Fault(worker->name, ": CPU ", cpu,
                        " is not one that this process may use; choose others in line ",
                        worker->at.line);
        }
        const auto [at, is_new] = owners.emplace(cpu, worker->name);
        if (!is_new && said.insert(worker->name).second) {
          report_.Warning(worker->name, " and ", at->second, " share CPU ", cpu,
                          "; both get slower");
        }
      }
    }
    const int available = engine::AvailableCpus();
    if (threads > available) {
      report_.Warning("workers have ", threads, " threads for ", available,
                      " CPUs; they wait for each other");
    } else {
      report_.Ok("workers have ", threads, " threads for ", available, " CPUs");
    }
  }

  // OK, or why nothing can listen there.
  absl::Status TryPort(std::uint16_t port) const {
    sockaddr_in v4 = {};
    sockaddr_in6 v6 = {};
    const bool is_v6 = ::inet_pton(AF_INET6, address_.c_str(), &v6.sin6_addr) == 1;
    v6.sin6_family = AF_INET6;
    v6.sin6_port = htons(port);
    v4.sin_family = AF_INET;
    v4.sin_port = htons(port);
    ::inet_pton(AF_INET, address_.c_str(), &v4.sin_addr);
    const UniqueFd socket(::socket(is_v6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const int on = 1;  // As servers do: what an earlier run left in TIME_WAIT does not count.
    ::setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    const int bound = is_v6 ? ::bind(socket.get(), reinterpret_cast<sockaddr*>(&v6), sizeof(v6))
                            : ::bind(socket.get(), reinterpret_cast<sockaddr*>(&v4), sizeof(v4));
    if (bound == 0 && ::listen(socket.get(), 1) == 0) return absl::OkStatus();
    return absl::UnavailableError(std::strerror(errno));
  }

  void CheckAddress() {
    const absl::Status any = TryPort(0);
    if (!any.ok()) {
      return report_.Fault("host ", deployment_.hosts[host_].name, ": cannot listen on ", address_,
                           ": ", any.message(), "; is this that machine?");
    }
    report_.Ok("host ", deployment_.hosts[host_].name, " listens on ", address_);
    struct Port {
      std::string who;
      std::uint16_t number;
      bool runs;  // Who has it is of the cluster that runs.
    };
    std::vector<Port> ports;
    if (deployment_.coordinator_host == host_) {
      ports.push_back({"the coordinator", deployment_.coordinator_port, cluster_.has_value()});
      ports.push_back({"HTTP", deployment_.http_port, cluster_.has_value()});
    }
    for (const launch::Gateway& gateway : deployment_.gateways) {
      if (gateway.host != host_) continue;
      const bool runs = cluster_.has_value() && cluster_->gateways.contains(gateway.name);
      ports.push_back({gateway.name, gateway.grpc_port, runs});
      ports.push_back({absl::StrCat(gateway.name, "'s HTTP"), gateway.http_port, runs});
    }
    for (const auto& [who, port, runs] : ports) {
      if (port == 0) continue;
      const absl::Status free = TryPort(port);
      if (free.ok()) {
        report_.Ok("port ", port, " of ", who, " is free");
      } else if (runs) {
        report_.Ok("port ", port, " of ", who, " is taken by this cluster, which runs");
      } else {
        report_.Fault("port ", port, " of ", who, ": ", free.message(),
                      "; end who has it, or choose another");
      }
    }
  }

  void CheckDescriptors() {
    constexpr rlim_t kWanted = 4096;  // Two thousand clients, and a connection to each worker.
    rlimit limit = {};
    ::getrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_cur < kWanted) {
      report_.Warning("a process may open ", limit.rlim_cur, " files, ", kWanted,
                      " are wanted for thousands of clients: `ulimit -n ", kWanted, "`");
    } else {
      report_.Ok("a process may open ", limit.rlim_cur, " files");
    }
  }

  void CheckTransfer() {
    for (const std::string& word : deployment_.transfer) {
      if (word == "nccl") {
        ReportNccl(deployment_, file_, cuda_plugin_, report_);
        continue;
      }
      const transfer::Kind kind = word == "shm"   ? transfer::Kind::kShm
                                  : word == "ucx" ? transfer::Kind::kUcx
                                                  : transfer::Kind::kTcp;
      const absl::StatusOr<LinkFigures> figures = MeasureLink(kind, address_);
      if (figures.ok()) {
        report_.Ok(
            "transfer over ", word, ": ",
            absl::StrFormat("%.2f GB/s verified, round trip %.0f us", figures->bytes_per_s / 1e9,
                            ToSeconds(figures->round_trip) * 1e6));
      } else {
        report_.Fault("transfer over ", word, ": ", figures.status().message(),
                      "; leave it out of transfer");
      }
    }
  }

  void CheckEtcd() {
    constexpr Duration kWithin = std::chrono::seconds(2);
    if (deployment_.coordinator_host != host_) return;  // Nobody else asks it.
    for (const std::string& member : deployment_.etcd) {
      const absl::StatusOr<std::string> version = rpc::EtcdVersion(member, kWithin);
      if (version.ok()) {
        report_.Ok("etcd at ", member, " answers, version ", *version);
      } else {
        report_.Fault("etcd at ", member, ": ", version.status().message(),
                      "; without it no coordinator begins to lead");
      }
    }
  }

  const launch::Deployment& deployment_;
  const std::vector<std::string> placed_;  // Why workers have their GPUs.
  const std::string file_;
  const std::string server_;
  const std::string cuda_plugin_;
  const std::size_t host_;
  const std::string address_;
  std::vector<const launch::Worker*> workers_;
  std::optional<RunningCluster> cluster_;  // Of this file.
  DoctorReport report_;
};

absl::StatusOr<int> RunDoctor(const DoctorFlags& flags) {
  if (flags.file.empty()) {
    DoctorReport report;
    report.Ok("CPU: ", engine::AvailableCpus(), " for this process, ", Describe(ThisCpu()));
    (void)ReportGpus(flags.cuda_plugin, report);
    return report.faults() == 0 ? kExitOk : kExitFailed;
  }
  ASSIGN_OR_RETURN(launch::Deployment deployment, ReadDeploymentFile(flags.file));
  ASSIGN_OR_RETURN(const std::size_t host, ChooseHost(deployment, flags.host));
  // Where nothing can be placed, what is said of GPUs tells why.
  const absl::StatusOr<std::vector<std::string>> placed =
      PlaceWorkersHere(flags.cuda_plugin, host, deployment);
  return Doctor(deployment, flags, host, placed.value_or(std::vector<std::string>())).Run() == 0
             ? kExitOk
             : kExitFailed;
}

}  // namespace

void RegisterDoctor(CLI::App& app, Run& run) {
  const auto flags = std::make_shared<DoctorFlags>();
  CLI::App* const sub = app.add_subcommand(
      "doctor", "Sets a deployment file against this machine, and says what to do");
  sub->footer(
      "Without a file, says what this machine computes with: its CPUs, and its GPUs or why there "
      "is\n"
      "none. With one, checks the file, CPUs, models, memory, disks of store nodes, ports and "
      "limits, and "
      "measures\n"
      "the transports that it names between two endpoints on this machine; etcd, where the file "
      "has\n"
      "one, must answer. Of a cluster that runs it prints how fast each pair of a prefill and a\n"
      "decode worker is, between hosts, too, as the pair measured it when it was new, and what "
      "store\n"
      "nodes hold. Ends with 1 when there is a fault.\n\n"
      "Example:\n  penstock doctor deploy/local.yaml --server 127.0.0.1:7070");
  sub->add_option("FILE", flags->file, "The deployment file (YAML); without it, the machine alone");
  sub->add_option("--host", flags->host, "Which of the file's hosts this machine is");
  sub->add_option("--server", flags->server,
                  "HOST:PORT of the running cluster's coordinator; the file's where absent");
  sub->add_option(
      "--cuda-plugin", flags->cuda_plugin,
      "The CUDA plug-in (default: libpenstock_cuda.so beside this program, or where the "
      "system looks for libraries)");
  sub->callback([flags, &run] { run = [flags] { return RunDoctor(*flags); }; });
}

}  // namespace penstock::cli
