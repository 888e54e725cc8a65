// SPDX-License-Identifier: Apache-2.0
#include "cli/gpu_placement.h"

#include <algorithm>
#include <chrono>
#include <compare>
#include <limits>
#include <map>
#include <optional>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/device_name.h"
#include "base/status.h"
#include "base/time.h"
#include "cli/run_apart.h"
#include "nlohmann/json.hpp"

namespace penstock::cli {
namespace {

using Gpus = std::vector<int>;

// What is worse counts first.
struct Cost {
  int others = 0;    // Workers that have these GPUs, too.
  int within = 0;    // Distances between a stage's GPUs,
  int stages = 0;    // from one stage to the next,
  int partners = 0;  // and to other workers.
  auto operator<=>(const Cost&) const = default;
};

class Placer {
 public:
  Placer(const GpuTopology& topology, std::size_t host, launch::Deployment& deployment)
      : topology_(topology), workers_(deployment.workers), others_(topology.gpus()) {
    for (std::size_t i = 0; i < workers_.size(); ++i) {
      if (workers_[i].host != host) continue;
      if (workers_[i].any_gpus) {
        open_.push_back(i);
      } else {
        Give(i, GpusOf(workers_[i].device, ShareOf(i)).value_or(Gpus()));
      }
    }
  }

  std::vector<std::string> Place() {
    std::map<launch::Role, int> turns;
    std::vector<std::tuple<int, int, std::size_t>> order;
    for (const std::size_t worker : open_) {
      order.emplace_back(-ShareOf(worker), turns[workers_[worker].role]++, worker);
    }
    std::ranges::sort(order);
    std::map<std::size_t, std::string> why;
    for (const auto& [share, turn, worker] : order) why[worker] = PlaceOne(worker);
    std::vector<std::string> lines;
    for (auto& [worker, line] : why) lines.push_back(std::move(line));
    return lines;
  }

 private:
  int ShareOf(std::size_t worker) const {
    return static_cast<int>(workers_[worker].tp * workers_[worker].pp);
  }
  const GpuPath& Path(int a, int b) const {
    return topology_.Path(static_cast<std::size_t>(a), static_cast<std::size_t>(b));
  }
  int DistanceOf(int a, int b) const { return Distance(Path(a, b)); }

  void Give(std::size_t worker, const Gpus& gpus) {
    given_[worker] = gpus;
    for (const int gpu : gpus) {
      if (static_cast<std::size_t>(gpu) < others_.size()) ++others_[static_cast<std::size_t>(gpu)];
    }
  }

  // Those that have GPUs by now and that it exchanges KV with.
  std::vector<std::size_t> PartnersOf(std::size_t worker) const {
    std::vector<std::size_t> partners;
    for (const auto& [other, gpus] : given_) {
      const bool known = std::ranges::all_of(
          gpus, [&](int gpu) { return static_cast<std::size_t>(gpu) < others_.size(); });
      if (workers_[other].model == workers_[worker].model &&
          workers_[other].role != workers_[worker].role && !gpus.empty() && known) {
        partners.push_back(other);
      }
    }
    return partners;
  }
  // The mean over the partner's GPUs, in 64ths, so that partners of all sizes count alike.
  int ToPartner(int gpu, std::size_t partner) const {
    const Gpus& theirs = given_.at(partner);
    int sum = 0;
    for (const int other : theirs) {
      const int distance = DistanceOf(gpu, other);
      sum += distance == 0 ? Distance({.pci = PciPath::kUnknown}) : distance;
    }
    return sum * 64 / static_cast<int>(theirs.size());
  }

  // Of one more GPU, behind those that the worker has.
  Cost CostOf(int gpu, const Gpus& had, std::size_t tp, const std::vector<std::size_t>& partners) {
    Cost cost = {.others = others_[static_cast<std::size_t>(gpu)]};
    const std::size_t stage_begin = had.size() / tp * tp;
    for (std::size_t i = stage_begin; i < had.size(); ++i) cost.within += DistanceOf(gpu, had[i]);
    if (had.size() >= tp) cost.stages = DistanceOf(gpu, had[had.size() - tp]);
    for (const std::size_t partner : partners) cost.partners += ToPartner(gpu, partner);
    return cost;
  }

  // Grown from each GPU in turn, always by the best next one; the best of all.
  Gpus Choose(std::size_t worker) {
    const auto tp = static_cast<std::size_t>(workers_[worker].tp);
    const std::vector<std::size_t> partners = PartnersOf(worker);
    const auto count = static_cast<int>(topology_.gpus());
    std::optional<Cost> best;
    Gpus chosen;
    for (int seed = 0; seed < count; ++seed) {
      Gpus gpus;
      Cost whole;
      while (std::ssize(gpus) < ShareOf(worker)) {
        std::optional<std::pair<Cost, int>> next;
        for (int gpu = 0; gpu < count; ++gpu) {
          if (gpus.empty() ? gpu != seed : std::ranges::find(gpus, gpu) != gpus.end()) continue;
          const std::pair candidate(CostOf(gpu, gpus, tp, partners), gpu);
          if (!next || candidate < *next) next = candidate;
        }
        gpus.push_back(next->second);
        const Cost& cost = next->first;
        whole = {.others = whole.others + cost.others,
                 .within = whole.within + cost.within,
                 .stages = whole.stages + cost.stages,
                 .partners = whole.partners + cost.partners};
      }
      if (best && *best <= whole) continue;
      best = whole;
      chosen = gpus;
    }
    return chosen;
  }

  std::string PlaceOne(std::size_t index) {
    launch::Worker& worker = workers_[index];
    const int share = ShareOf(index);
    if (static_cast<std::size_t>(share) > topology_.gpus()) {
      return absl::StrCat(worker.name, " needs ", share, share == 1 ? " GPU" : " GPUs",
                          ", and this host shows ", topology_.gpus());
    }
    const Gpus gpus = Choose(index);
    const std::string why = Why(index, gpus);
    Give(index, gpus);
    worker.device = DeviceOfGpus(gpus);
    worker.any_gpus = false;
    return absl::StrCat(worker.name, " takes ",
                        share == 1 ? absl::StrCat("cuda:", gpus[0]) : worker.device,
                        why.empty() ? "" : ": ", why);
  }

  // By the worst path of each sort.
  std::string Why(std::size_t index, const Gpus& gpus) const {
    const auto tp = static_cast<std::size_t>(workers_[index].tp);
    const GpuPath *shards = nullptr, *stages = nullptr, *partner = nullptr;
    const auto keep = [](const GpuPath& path, const GpuPath*& worst) {
      if (worst == nullptr || Distance(*worst) < Distance(path)) worst = &path;
    };
    for (std::size_t a = 0; a < gpus.size(); ++a) {
      for (std::size_t b = a + 1; b < gpus.size(); ++b) {
        if (a / tp == b / tp) keep(Path(gpus[a], gpus[b]), shards);
        if (a + tp == b) keep(Path(gpus[a], gpus[b]), stages);
      }
    }
    std::vector<std::string> parts;
    if (shards != nullptr) parts.push_back("between its shards " + Describe(*shards));
    if (stages != nullptr) parts.push_back("between its stages " + Describe(*stages));
    int least = std::numeric_limits<int>::max();
    std::string name;
    for (const std::size_t other : PartnersOf(index)) {
      int sum = 0;
      for (const int gpu : gpus) sum += ToPartner(gpu, other);
      if (sum >= least) continue;
      least = sum;
      name = workers_[other].name;
      partner = nullptr;
      for (const int a : gpus) {
        for (const int b : given_.at(other)) keep(Path(a, b), partner);
      }
    }
    if (partner != nullptr) parts.push_back(absl::StrCat("to ", name, " ", Describe(*partner)));
    if (const std::vector<std::string> shared = Sharing(index, gpus); !shared.empty()) {
      parts.push_back(absl::StrCat(
          "shared with ", absl::StrJoin(shared, ", "), ", as there ",
          topology_.gpus() == 1 ? "is one GPU" : absl::StrCat("are ", topology_.gpus())));
    }
    return absl::StrJoin(parts, ", ");
  }
  std::vector<std::string> Sharing(std::size_t index, const Gpus& gpus) const {
    std::vector<std::string> names;
    for (const auto& [other, theirs] : given_) {
      if (other != index && std::ranges::find_first_of(gpus, theirs) != gpus.end()) {
        names.push_back(workers_[other].name);
      }
    }
    return names;
  }

  const GpuTopology& topology_;
  std::vector<launch::Worker>& workers_;
  std::vector<int> others_;        // Workers on each GPU.
  std::vector<std::size_t> open_;  // Those to place.
  std::map<std::size_t, Gpus> given_;
};

bool Asks(const launch::Deployment& deployment, std::size_t host) {
  return std::ranges::any_of(deployment.workers, [&](const launch::Worker& worker) {
    return worker.host == host && worker.any_gpus;
  });
}

// From the one process to the other.
std::string ToText(const absl::StatusOr<std::vector<std::string>>& lines,
                   const launch::Deployment& deployment) {
  nlohmann::json json = {{"devices", nlohmann::json::array()},
                         {"any_gpus", nlohmann::json::array()}};
  if (!lines.ok()) json["error"] = ToStd(lines.status().message());
  if (lines.ok()) json["lines"] = *lines;
  for (const launch::Worker& worker : deployment.workers) {
    json["devices"].push_back(worker.device);
    json["any_gpus"].push_back(worker.any_gpus);
  }
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace

std::vector<std::string> PlaceWorkers(const GpuTopology& topology, std::size_t host,
                                      launch::Deployment& deployment) {
  return Placer(topology, host, deployment).Place();
}

absl::StatusOr<std::vector<std::string>> PlaceWorkersHere(const std::string& plugin,
                                                          std::size_t host,
                                                          launch::Deployment& deployment) {
  if (!Asks(deployment, host)) return std::vector<std::string>();
  ASSIGN_OR_RETURN(const LoadedCudaPlugin loaded, LoadCudaPlugin(plugin));
  ASSIGN_OR_RETURN(const GpuTopology topology, FindTopology(*loaded.plugin));
  return PlaceWorkers(topology, host, deployment);
}

absl::StatusOr<std::vector<std::string>> PlaceWorkersApart(const std::string& plugin,
                                                           std::size_t host,
                                                           launch::Deployment& deployment) {
  constexpr Duration kPatience = std::chrono::seconds(60);  // A driver of many GPUs begins slowly.
  if (!Asks(deployment, host)) return std::vector<std::string>();
  ASSIGN_OR_RETURN(
      const std::string text,
      RunApart([&] { return ToText(PlaceWorkersHere(plugin, host, deployment), deployment); },
               kPatience));
  const auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) return absl::UnavailableError("what GPUs were chosen cannot be read");
  if (json.contains("error")) {
    return absl::UnavailableError(json["error"].get<std::string>());
  }
  for (std::size_t i = 0; i < deployment.workers.size(); ++i) {
    launch::Worker& worker = deployment.workers[i];
    worker.device = json["devices"][i].get<std::string>();
    worker.any_gpus = json["any_gpus"][i].get<bool>();
  }
  return json["lines"].get<std::vector<std::string>>();
}

}  // namespace penstock::cli
