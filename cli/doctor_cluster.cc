// SPDX-License-Identifier: Apache-2.0
#include "cli/doctor_cluster.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/status.h"

namespace penstock::cli {
namespace {

bool IsOf(const launch::Deployment& deployment, const RunningCluster& cluster) {
  return cluster.workers.empty() ||  // It has just begun.
         std::ranges::any_of(deployment.workers, [&](const launch::Worker& worker) {
           return cluster.workers.contains(worker.name);
         });
}

std::string AddressOf(const launch::Deployment& deployment, const std::string& worker) {
  for (const launch::Worker& w : deployment.workers) {
    if (w.name == worker) return deployment.hosts[w.host].address;
  }
  return "its host";
}

std::string WhatToDo(const launch::Deployment& deployment, const RunningPair& pair) {
  switch (pair.status.code()) {
    case absl::StatusCode::kFailedPrecondition:
      return "start both with the same program, model and KV format";
    case absl::StatusCode::kDataLoss:
      return "what it sends arrives changed: replace the memory or the network between them";
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
      return absl::StrCat("any port of ", AddressOf(deployment, pair.decode),
                          " must be reachable from ", AddressOf(deployment, pair.prefill),
                          ", or both be on one host with shm in transfer");
    default:
      return absl::StrCat("it is tried again every few seconds; the log of ", pair.prefill,
                          " says more");
  }
}

}  // namespace

std::optional<RunningCluster> FindRunningCluster(const launch::Deployment& deployment,
                                                 const std::string& server, DoctorReport& report) {
  std::vector<std::string> servers = {server};
  if (server.empty()) {
    servers = deployment.standby;
    if (const auto address = deployment.CoordinatorAddress()) {
      servers.insert(servers.begin(), *address);
    }
  }
  for (const std::string& at : servers) {
    absl::StatusOr<RunningCluster> cluster = AskRunningCluster(at);
    if (cluster.ok() && IsOf(deployment, *cluster)) return *std::move(cluster);
    if (cluster.ok()) {
      report.Fault("the cluster at ", cluster->server, " has ",
                   absl::StrJoin(cluster->workers, ", "), ", and no worker of this file; ",
                   server.empty() ? "choose another port" : "--server is that of another");
      return std::nullopt;
    }
    if (!server.empty()) report.Fault("--server: ", cluster.status().message());
  }
  return std::nullopt;
}

void ReportPairs(const launch::Deployment& deployment, const std::optional<RunningCluster>& cluster,
                 DoctorReport& report) {
  if (!cluster.has_value()) {
    const bool has_address = deployment.CoordinatorAddress().has_value();
    return report.Ok("pairs of workers are measured once the cluster runs: ask again then",
                     has_address ? "" : ", with --server and the address that penstock up printed");
  }
  report.Ok("the cluster runs, its coordinator at ", cluster->server);
  for (const launch::Worker& worker : deployment.workers) {
    if (cluster->workers.contains(worker.name)) continue;
    report.Warning(worker.name, " has not joined it; see to penstock up on host ",
                   deployment.hosts[worker.host].name);
  }
  for (const RunningPair& pair : cluster->pairs) {
    const std::string name = absl::StrCat("pair ", pair.prefill, " -> ", pair.decode, ": ");
    if (!pair.status.ok()) {
      report.Fault(name, pair.status.message(), "; ", WhatToDo(deployment, pair));
    } else if (pair.bytes_per_s > 0) {
      report.Ok(name, pair.transport,
                absl::StrFormat(", %.3g GB/s verified, round trip %.0f us", pair.bytes_per_s / 1e9,
                                ToSeconds(pair.round_trip) * 1e6));
    } else {
      report.Ok(name, pair.transport, ", verified; it was too slow, or too busy, to be measured");
    }
  }
}

}  // namespace penstock::cli
