// SPDX-License-Identifier: Apache-2.0
#include "cli/doctor_memory.h"

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/device_name.h"
#include "base/status.h"
#include "cli/deployment_file.h"
#include "cli/doctor_topology.h"
#include "cli/gpu_pairs.h"
#include "cli/terminal.h"
#include "cli/worker_memory.h"
#include "engine/local_model.h"
#include "engine/memory_plan.h"
#include "launch/values.h"

namespace penstock::cli {
namespace {

void Compare(std::string_view where, std::size_t wanted, std::size_t available,
             DoctorReport& report) {
  const std::string numbers =
      absl::StrCat("workers need ", FormatBytes(wanted), " of memory", ToAbsl(where), ", ",
                   FormatBytes(available), " are free");
  if (wanted > available) {
    report.Fault(numbers, "; give kv_bytes or fewer workers");
  } else if (wanted > available / 10 * 9) {
    report.Warning(numbers, "; little is left for anything else");
  } else {
    report.Ok(numbers);
  }
}

}  // namespace

void CheckModelsAndMemory(const launch::Deployment& deployment, const std::string& file,
                          std::span<const launch::Worker* const> workers,
                          const std::optional<RunningCluster>& cluster,
                          const absl::StatusOr<CudaSystem>& gpus, DoctorReport& report) {
  const std::size_t available = engine::AvailableBytes();
  std::size_t wanted = 0;
  std::map<std::size_t, std::size_t> wanted_of_gpus;
  std::size_t running = 0;
  bool whole = true;
  for (std::size_t m = 0; m < deployment.models.size(); ++m) {
    const launch::Model& model = deployment.models[m];
    const absl::StatusOr<std::string> path = ResolveModel(deployment, file, m);
    const auto opened = path.ok()
                            ? engine::LocalModel::Open(*path)
                            : absl::StatusOr<std::unique_ptr<engine::LocalModel>>(path.status());
    if (!opened.ok()) {
      whole = false;
      report.Fault("model ", model.name, " (line ", model.at.line,
                   "): ", opened.status().message());
      continue;
    }
    const std::size_t weights = engine::Weights::BytesOf((*opened)->file(), {});
    report.Ok("model ", model.name, ": ", *path, ", ", FormatBytes(weights),
              " of weights in each worker");
    for (const launch::Worker* worker : workers) {
      if (worker->model != m) continue;
      if (cluster.has_value() && cluster->workers.contains(worker->name)) {
        ++running;
        continue;
      }
      const absl::StatusOr<std::size_t> there = ShardBytes(*worker, gpus, available);
      if (!there.ok()) {
        report.Fault(worker->name, " (line ", worker->at.line, "): device is ", worker->device,
                     ", but ", there.status().message(), "; mend that, or take device: cpu");
        continue;
      }
      const std::size_t links =
          NcclLinkBytes(deployment, *worker, (*opened)->architecture().MakeKvSpec(KvDtype::kF16));
      const auto stages =
          PlanWorkerMemory(*worker, deployment.block_tokens, links, **opened, *there);
      whole = whole && stages.ok();
      if (!stages.ok()) {
        report.Fault(worker->name, " (line ", worker->at.line, "): ", stages.status().message());
        continue;
      }
      const std::vector<std::size_t> its_gpus = *ShardGpus(*worker);
      const auto shards = static_cast<std::size_t>(worker->tp);
      for (std::size_t s = 0; s < stages->size(); ++s) {
        const engine::MemoryPlan& plan = (*stages)[s];
        const std::size_t bytes = plan.device_bytes();
        if (its_gpus.empty()) wanted += bytes * shards;
        for (std::size_t i = 0; !its_gpus.empty() && i < shards; ++i) {
          wanted_of_gpus[its_gpus[s * shards + i]] += bytes;
        }
      }
      if (its_gpus.empty()) continue;
      ReportUnlike(worker->name, *gpus, its_gpus, report);
      report.Ok(DescribeGpuMemory(*worker, *stages));
      wanted += stages->front().pool_bytes;
    }
  }
  if (running > 0) report.Ok(running, " of ", workers.size(), " workers run and have their memory");
  for (const auto& [gpu, bytes] : wanted_of_gpus) {
    Compare(absl::StrCat(" of GPU ", gpu), bytes, gpus->gpus[gpu].memory_bytes, report);
  }
  if (whole && running < workers.size()) Compare("", wanted, available, report);
}

}  // namespace penstock::cli
