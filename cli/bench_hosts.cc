// SPDX-License-Identifier: Apache-2.0
#include "cli/bench_hosts.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "base/status.h"

namespace penstock::cli {

absl::StatusOr<std::vector<int>> ParseHostCounts(std::string_view text, int hosts_max) {
  std::vector<int> counts;
  for (const absl::string_view part : absl::StrSplit(ToAbsl(text), ',')) {
    int count = 0;
    if (!absl::SimpleAtoi(part, &count) || count < 1 || count > hosts_max) {
      return absl::InvalidArgumentError(absl::StrCat("--hosts must be numbers from 1 to ",
                                                     hosts_max, ", the hosts of the file, got '",
                                                     ToAbsl(text), "'"));
    }
    counts.push_back(count);
  }
  return counts;
}

absl::StatusOr<std::vector<std::string>> CommandOn(std::string_view on, const launch::Host& host,
                                                   const std::vector<std::string>& command) {
  if (!absl::StrContains(ToAbsl(on), "{host}") && !absl::StrContains(ToAbsl(on), "{address}")) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--on must have {host} or {address} in it, such as 'ssh {host}', got '", ToAbsl(on), "'"));
  }
  std::vector<std::string> words = absl::StrSplit(ToAbsl(on), ' ', absl::SkipEmpty());
  for (std::string& word : words) {
    word = absl::StrReplaceAll(word, {{"{host}", host.name}, {"{address}", host.address}});
  }
  for (const std::string& word : command) {
    if (launch::ShellLine({word}) != word) {
      return absl::InvalidArgumentError(absl::StrCat(
          "'", word, "' would have to be quoted for a shell on another host; use a plain path"));
    }
    words.push_back(word);
  }
  return words;
}

absl::StatusOr<std::string> FrontAddress(const launch::Deployment& deployment) {
  std::string address;
  if (deployment.gateway_inside()) {
    address = deployment.CoordinatorAddress().value_or("");
  } else if (const launch::Gateway& gateway = deployment.gateways.front(); gateway.grpc_port != 0) {
    address = launch::JoinAddress(deployment.hosts[gateway.host].address, gateway.grpc_port);
  }
  if (!address.empty()) return address;
  return absl::InvalidArgumentError("the file must give ports.grpc, where the load goes");
}

std::string NotWhole(const launch::Deployment& deployment, const launch::ClusterState& state) {
  std::set<std::string> ready;
  for (const launch::ClusterState::Member& worker : state.workers) {
    if (worker.state == "ready") ready.insert(worker.name);
  }
  std::set<std::pair<std::string, std::string>> verified;
  for (const launch::ClusterState::Pair& pair : state.pairs) {
    if (pair.verified) verified.emplace(pair.prefill, pair.decode);
  }
  std::vector<std::string> missing;
  std::size_t pairs = 0;
  for (const launch::Worker& worker : deployment.workers) {
    if (!ready.contains(worker.name)) missing.push_back(worker.name);
    if (worker.role != launch::Role::kPrefill) continue;
    pairs += static_cast<std::size_t>(std::count_if(
        deployment.workers.begin(), deployment.workers.end(), [&](const launch::Worker& other) {
          return other.role == launch::Role::kDecode && other.model == worker.model &&
                 !verified.contains({worker.name, other.name});
        }));
  }
  if (pairs > 0) missing.push_back(absl::StrCat(pairs, " pairs of workers that are not verified"));
  return absl::StrJoin(missing, ", ");
}

}  // namespace penstock::cli
