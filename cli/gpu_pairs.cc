// SPDX-License-Identifier: Apache-2.0
#include "cli/gpu_pairs.h"

#include <algorithm>
#include <cstdint>
#include <optional>

#include "absl/strings/str_cat.h"
#include "base/device_name.h"
#include "base/status.h"
#include "engine/pipeline_stage.h"
#include "engine/worker_pool.h"
#include "transfer/nccl_comms.h"
#include "transfer/split_plan.h"

namespace penstock::cli {
namespace {

constexpr std::size_t kNcclBytesPerCta = std::size_t{6} << 20;
// Which GPUs meet does not depend on it.
constexpr std::int32_t kBlockTokens = 32;

std::vector<int> GpusOfWorker(const launch::Worker& worker) {
  return GpusOf(worker.device, static_cast<std::int32_t>(worker.tp * worker.pp))
      .value_or(std::vector<int>());
}

absl::StatusOr<std::vector<transfer::SlabPart>> PartsOf(const KvSpec& spec, std::int32_t group,
                                                        const PageLayout& layout,
                                                        const launch::Worker& worker) {
  const auto stages = static_cast<std::int32_t>(worker.pp);
  const auto shards = static_cast<std::int32_t>(worker.tp);
  ASSIGN_OR_RETURN(const std::vector<engine::ShardRange> cache_layers,
                   engine::CacheLayersOf(spec, group, stages));
  std::vector<transfer::SlabPart> parts;
  for (std::int32_t d = 0; d < stages * shards; ++d) {
    const engine::ModelPart part = engine::PartOf(d, stages, shards, /*sums=*/shards);
    parts.push_back(engine::SlabPartOf(engine::GroupShard(
        layout, part.shard, cache_layers[static_cast<std::size_t>(part.stage.index)])));
  }
  return parts;
}

}  // namespace

bool IsGpuPair(const launch::Worker& prefill, const launch::Worker& decode) {
  return prefill.role == launch::Role::kPrefill && decode.role == launch::Role::kDecode &&
         prefill.model == decode.model && !GpusOfWorker(prefill).empty() &&
         !GpusOfWorker(decode).empty();
}

std::string WhyNotNccl(const launch::Worker& prefill, const launch::Worker& decode) {
  if (prefill.host != decode.host) return "";
  const std::vector<int> others = GpusOfWorker(decode);
  for (const int gpu : GpusOfWorker(prefill)) {
    if (std::ranges::find(others, gpu) == others.end()) continue;
    return absl::StrCat(prefill.name, " and ", decode.name, " share a GPU");
  }
  return "";
}

absl::StatusOr<GpuLanes> LanesOf(const KvSpec& spec, const launch::Worker& prefill,
                                 const launch::Worker& decode) {
  GpuLanes lanes;
  for (std::size_t g = 0; g < spec.groups.size(); ++g) {
    transfer::SideLayout whole;
    ASSIGN_OR_RETURN(whole.layout, PageLayout::Make(spec.groups[g], kBlockTokens, kBlockTokens));
    const auto group = static_cast<std::int32_t>(g);
    ASSIGN_OR_RETURN(const auto from, PartsOf(spec, group, whole.layout, prefill));
    ASSIGN_OR_RETURN(const auto to, PartsOf(spec, group, whole.layout, decode));
    ASSIGN_OR_RETURN(const transfer::SplitPlan plan,
                     transfer::SplitPlan::Make(whole, from, whole, to));
    for (std::int32_t layer = 0; layer < spec.groups[g].cache_layers; ++layer) {
      for (const transfer::SplitPlan::Leg& leg : plan.LegsOf(layer)) {
        lanes.emplace(leg.from, leg.to);
      }
    }
  }
  return lanes;
}

std::size_t NcclBytesOfOneLink() {
  const transfer::NcclComms::Options options;
  return 2 * options.slots * options.slot_bytes +
         static_cast<std::size_t>(options.ctas_max) * kNcclBytesPerCta;
}

std::size_t NcclLinks(const launch::Deployment& deployment, const launch::Worker& worker,
                      const KvSpec& spec) {
  if (std::ranges::find(deployment.transfer, "nccl") == deployment.transfer.end()) return 0;
  std::vector<std::size_t> links(GpusOfWorker(worker).size() + 1, 0);
  const bool prefills = worker.role == launch::Role::kPrefill;
  for (const launch::Worker& other : deployment.workers) {
    const launch::Worker& prefill = prefills ? worker : other;
    const launch::Worker& decode = prefills ? other : worker;
    if (!IsGpuPair(prefill, decode) || !WhyNotNccl(prefill, decode).empty()) continue;
    const absl::StatusOr<GpuLanes> lanes = LanesOf(spec, prefill, decode);
    if (!lanes.ok()) continue;  // Then the other one does not start.
    for (const auto& [from, to] : *lanes) ++links[prefills ? from : to];
  }
  return std::ranges::max(links);
}

std::size_t NcclLinkBytes(const launch::Deployment& deployment, const launch::Worker& worker,
                          const KvSpec& spec) {
  return std::min(NcclLinks(deployment, worker, spec), transfer::NcclComms::Options().comms_max) *
         NcclBytesOfOneLink();
}

}  // namespace penstock::cli
