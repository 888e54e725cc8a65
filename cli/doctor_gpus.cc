// SPDX-License-Identifier: Apache-2.0
#include "cli/doctor_gpus.h"

#include <cstddef>
#include <optional>
#include <span>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/device_name.h"
#include "base/kv_spec.h"
#include "cli/deployment_file.h"
#include "cli/doctor_topology.h"
#include "cli/gpu_pairs.h"
#include "engine/local_model.h"
#include "transfer/nccl_comms.h"

namespace penstock::cli {
namespace {

// Of each model; nothing of one that cannot be read.
std::vector<std::optional<KvSpec>> SpecsOf(const launch::Deployment& deployment,
                                           const std::string& file) {
  std::vector<std::optional<KvSpec>> specs;
  for (std::size_t m = 0; m < deployment.models.size(); ++m) {
    std::optional<KvSpec>& spec = specs.emplace_back();
    const absl::StatusOr<std::string> path = ResolveModel(deployment, file, m);
    if (!path.ok()) continue;
    const auto opened = engine::LocalModel::Open(*path);
    if (opened.ok()) spec = (*opened)->architecture().MakeKvSpec(KvDtype::kF16);
  }
  return specs;
}

// GPUs with more links than communicators.
void WarnOfCrowds(const launch::Deployment& deployment,
                  const std::vector<std::optional<KvSpec>>& specs, DoctorReport& report) {
  const std::size_t at_a_time = transfer::NcclComms::Options().comms_max;
  for (const launch::Worker& worker : deployment.workers) {
    if (!specs[worker.model].has_value()) continue;
    const std::size_t links = NcclLinks(deployment, worker, *specs[worker.model]);
    if (links <= at_a_time) continue;
    report.Warning(worker.name, ": ", links, " links of kind nccl on a GPU, ", at_a_time,
                   " at a time: links wait for one another");
  }
}

}  // namespace

absl::StatusOr<CudaSystem> ReportGpus(const std::string& plugin, DoctorReport& report) {
  const absl::StatusOr<LoadedCudaPlugin> loaded = LoadCudaPlugin(plugin);
  if (!loaded.ok()) {
    if (absl::IsNotFound(loaded.status()) && plugin.empty()) {
      report.Ok("GPU: none is used: ", loaded.status().message());
    } else {
      report.Warning("GPU: none is used: ", loaded.status().message());
    }
    return loaded.status();
  }
  const absl::StatusOr<CudaSystem> found = FindGpus(*loaded->plugin);
  if (!found.ok()) {
    report.Ok("GPU: none is used: ", found.status().message(), "; plug-in ", loaded->path);
    return found;
  }
  report.Ok("CUDA: driver for ", CudaVersionText(found->driver_version), ", cudart ",
            CudaVersionText(found->runtime_version), ", plug-in ", loaded->path);
  const absl::StatusOr<const NcclLibrary*> nccl = FindNccl(*loaded->plugin);
  if (nccl.ok()) {
    report.Ok("NCCL: ", NcclVersionText((*nccl)->version), ", the plug-in was built for ",
              NcclVersionText((*nccl)->header_version));
  } else {
    report.Ok(nccl.status().message());
  }
  const absl::StatusOr<const CublasLtLibrary*> lt = FindCublasLt(*loaded->plugin);
  if (lt.ok()) {
    report.Ok("cuBLASLt: ", CublasLtVersionText((*lt)->version), ", the plug-in was built for ",
              CublasLtVersionText((*lt)->header_version), ", what --numerics fast takes");
  } else {
    report.Ok(lt.status().message());
  }
  for (std::size_t i = 0; i < found->gpus.size(); ++i) {
    const absl::Status good = CheckGpu(*found, static_cast<int>(i));
    if (!good.ok()) {
      report.Ok("GPU ", i, ": not used: ", good.message());
      continue;
    }
    report.Ok("GPU ", i, ": ", Describe(found->gpus[i]), ", what --device ",
              DeviceOfGpus({{static_cast<int>(i)}}), " takes");
  }
  const absl::StatusOr<GpuTopology> topology = FindTopology(*loaded->plugin);
  if (topology.ok()) ReportTopology(*topology, report);
  return found;
}

void ReportNccl(const launch::Deployment& deployment, const std::string& file,
                const std::string& plugin, DoctorReport& report) {
  const std::vector<std::optional<KvSpec>> specs = SpecsOf(deployment, file);
  std::size_t pairs = 0, over_nccl = 0, lanes = 0;
  std::string why;  // Of the first that is not.
  for (const launch::Worker& prefill : deployment.workers) {
    for (const launch::Worker& decode : deployment.workers) {
      if (!IsGpuPair(prefill, decode)) continue;
      ++pairs;
      const std::string own = WhyNotNccl(prefill, decode);
      over_nccl += own.empty() ? 1 : 0;
      if (why.empty()) why = own;
      if (!own.empty() || !specs[prefill.model].has_value()) continue;
      const absl::StatusOr<GpuLanes> own_lanes = LanesOf(*specs[prefill.model], prefill, decode);
      lanes += own_lanes.ok() ? own_lanes->size() : 0;
    }
  }
  if (pairs == 0) return;
  const absl::StatusOr<LoadedCudaPlugin> loaded = LoadCudaPlugin(plugin);
  absl::Status there = loaded.status();
  if (loaded.ok()) there = FindNccl(*loaded->plugin).status();
  // Of workers on one GPU each that is the same number.
  const std::string of_gpus =
      lanes > over_nccl ? absl::StrCat(", over ", lanes, " pairs of GPUs") : std::string();
  if (!there.ok()) {
    report.Warning("transfer over nccl: none, KV goes through the host: ", there.message());
  } else if (over_nccl == pairs) {
    report.Ok("transfer over nccl: all ", pairs, " pairs of GPU workers", of_gpus);
  } else {
    report.Ok("transfer over nccl: ", over_nccl, " of ", pairs, " pairs of GPU workers", of_gpus,
              ", the others through the host: ", why);
  }
  if (there.ok()) WarnOfCrowds(deployment, specs, report);
}

void ReportFast(std::span<const launch::Worker* const> workers, const std::string& plugin,
                DoctorReport& report) {
  std::vector<std::string> fast;
  for (const launch::Worker* const worker : workers) {
    if (worker->numerics == "fast") fast.push_back(worker->name);
  }
  if (fast.empty()) return;
  const absl::StatusOr<LoadedCudaPlugin> loaded = LoadCudaPlugin(plugin);
  absl::Status there = loaded.status();
  if (loaded.ok()) there = FindCublasLt(*loaded->plugin).status();
  const std::string names = absl::StrJoin(fast, ", ");
  if (there.ok()) {
    report.Ok("numerics fast: ", names, "; no two answers to one request need be the same");
  } else {
    report.Fault("numerics fast: ", names, " will not start: ", there.message());
  }
}

}  // namespace penstock::cli
