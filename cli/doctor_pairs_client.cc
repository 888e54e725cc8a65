// SPDX-License-Identifier: Apache-2.0
#include "cli/doctor_pairs_client.h"

#include <algorithm>
#include <chrono>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "cli/asker_client.h"
#include "rpc/convert.h"

namespace penstock::cli {
namespace {

constexpr std::chrono::seconds kPatience(2);

absl::StatusOr<RunningPair> ToPair(const v1::StatusResponse::Pair& from) {
  RunningPair pair = {.prefill = from.prefill(),
                      .decode = from.decode(),
                      .transport = from.transport(),
                      .bytes_per_s = from.bytes_per_s()};
  if (from.has_error()) pair.status = rpc::FromProto(from.error());
  ASSIGN_OR_RETURN(pair.round_trip, rpc::FromProto("pairs.round_trip", from.round_trip()));
  return pair;
}

std::string TierName(v1::Tier tier) {
  std::string name = v1::Tier_Name(tier);  // "TIER_HOST"; empty: not known here.
  if (name.starts_with("TIER_")) name.erase(0, 5);
  for (char& c : name) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
  return name.empty() ? "a tier unknown here" : name;
}

RunningStore ToStore(const v1::StatusResponse::StoreStatus& from) {
  RunningStore store = {.name = from.name(), .state = from.state()};
  for (const auto& tier : from.tiers()) {
    store.tiers.push_back({.name = TierName(tier.tier()),
                           .copies = tier.copies(),
                           .bytes = tier.bytes(),
                           .bytes_max = tier.bytes_max(),
                           .hits = tier.hits()});
  }
  return store;
}

}  // namespace

absl::StatusOr<RunningCluster> AskRunningCluster(const std::string& server) {
  RunningCluster cluster{
      .server = server, .workers = {}, .gateways = {}, .pairs = {}, .stores = {}};
  ASSIGN_OR_RETURN(v1::StatusResponse status, Asker(server, kPatience).Status());
  if (status.standby() && !status.leader().empty()) {
    cluster.server = status.leader();
    ASSIGN_OR_RETURN(status, Asker(cluster.server, kPatience).Status());
  }
  if (status.standby()) {
    return absl::FailedPreconditionError(
        absl::StrCat("the coordinator at ", cluster.server, " stands by, and no leader is known"));
  }
  for (const auto& worker : status.workers()) cluster.workers.insert(worker.name());
  cluster.gateways.insert(status.gateways().begin(), status.gateways().end());
  for (const auto& from : status.stores()) cluster.stores.push_back(ToStore(from));
  for (const auto& from : status.pairs()) {
    ASSIGN_OR_RETURN(RunningPair pair, ToPair(from));
    cluster.pairs.push_back(std::move(pair));
  }
  std::ranges::sort(cluster.pairs, [](const RunningPair& a, const RunningPair& b) {
    return std::tie(a.prefill, a.decode) < std::tie(b.prefill, b.decode);
  });
  return cluster;
}

}  // namespace penstock::cli
