// SPDX-License-Identifier: Apache-2.0
#include "launch/only_hosts.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status.h"
#include "launch/schema.h"

namespace penstock::launch {
namespace {

// Old index -> new one, of the hosts that stay. Faults of the names go to `faults`.
std::map<std::size_t, std::size_t> Kept(const std::vector<Host>& hosts,
                                        const std::vector<std::string>& names,
                                        std::vector<std::string>& faults) {
  std::vector<std::string> known;
  for (const Host& host : hosts) known.push_back(host.name);
  std::set<std::size_t> kept;
  for (const std::string& name : names) {
    const auto at = std::find(known.begin(), known.end(), name);
    if (at == known.end()) {
      faults.push_back(absl::StrCat("no host '", name, "'; there are ", absl::StrJoin(known, ", "),
                                    DidYouMean(name, known)));
    } else if (!kept.insert(static_cast<std::size_t>(at - known.begin())).second) {
      faults.push_back(absl::StrCat("the host '", name, "' is given twice"));
    }
  }
  std::map<std::size_t, std::size_t> index;
  for (const std::size_t host : kept) index.emplace(host, index.size());
  return index;
}

template <typename T>
void Keep(const std::map<std::size_t, std::size_t>& index, std::vector<T>& all) {
  std::erase_if(all, [&](const T& one) { return !index.contains(one.host); });
  for (T& one : all) one.host = index.at(one.host);
}

std::size_t Count(const Deployment& deployment, std::size_t model, Role role) {
  return static_cast<std::size_t>(std::count_if(
      deployment.workers.begin(), deployment.workers.end(),
      [&](const Worker& worker) { return worker.model == model && worker.role == role; }));
}

}  // namespace

absl::StatusOr<Deployment> OnlyHosts(const Deployment& deployment,
                                     const std::vector<std::string>& names) {
  std::vector<std::string> faults;
  const std::map<std::size_t, std::size_t> index = Kept(deployment.hosts, names, faults);
  if (names.empty()) faults.emplace_back("no host is left");
  Deployment left = deployment;
  left.hosts.clear();
  for (const auto& [host, at] : index) left.hosts.push_back(deployment.hosts[host]);
  Keep(index, left.workers);
  Keep(index, left.stores);
  Keep(index, left.gateways);
  if (faults.empty()) {  // Else all these would follow from a mistyped name.
    if (index.contains(deployment.coordinator_host)) {
      left.coordinator_host = index.at(deployment.coordinator_host);
    } else {
      faults.push_back(absl::StrCat("the coordinator is on '",
                                    deployment.hosts[deployment.coordinator_host].name,
                                    "', which is left out"));
    }
    if (!deployment.gateways.empty() && left.gateways.empty()) {
      faults.emplace_back("no gateway is left");
    }
    for (std::size_t m = 0; m < deployment.models.size(); ++m) {
      for (const Role role : {Role::kPrefill, Role::kDecode}) {
        if (Count(deployment, m, role) == 0 || Count(left, m, role) > 0) continue;
        faults.push_back(absl::StrCat("the model ", deployment.models[m].name, " has no ",
                                      ToAbsl(ToString(role)), " worker left"));
      }
    }
  }
  if (!faults.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("--only-hosts: ", absl::StrJoin(faults, "; ")));
  }
  return left;
}

}  // namespace penstock::launch
