// SPDX-License-Identifier: Apache-2.0
#include "cli/doctor_memory.h"

#include <algorithm>
#include <memory>

#include "absl/strings/str_cat.h"
#include "base/kv_spec.h"
#include "base/status.h"
#include "cli/deployment_file.h"
#include "cli/terminal.h"
#include "engine/local_model.h"
#include "engine/memory_plan.h"
#include "launch/values.h"

namespace penstock::cli {
namespace {

absl::StatusOr<std::size_t> BytesOf(const launch::Worker& worker, std::int32_t block_tokens,
                                    const engine::LocalModel& model, std::size_t weights,
                                    std::size_t available) {
  engine::MemoryRequest request;
  ASSIGN_OR_RETURN(request.kv_dtype, ParseKvDtype(worker.kv_dtype));
  request.kv_bytes = static_cast<std::size_t>(worker.kv_bytes);
  request.context_tokens = static_cast<std::int32_t>(worker.context_tokens);
  request.sequences = request.logit_rows = static_cast<std::int32_t>(worker.sequences);
  request.chunk_tokens = static_cast<std::int32_t>(worker.chunk_tokens);
  request.block_tokens = block_tokens;
  request.page_tokens = worker.page_tokens != 0 ? static_cast<std::int32_t>(worker.page_tokens)
                                                : std::min(request.page_tokens, block_tokens);
  if (worker.device == "paced") weights = 0;  // It has none.
  ASSIGN_OR_RETURN(const engine::MemoryPlan plan,
                   engine::PlanMemory(model.architecture(), weights, request, available));
  return plan.weights_bytes + plan.kv_bytes + plan.scratch_bytes;
}

void Compare(std::size_t wanted, std::size_t available, DoctorReport& report) {
  const std::string numbers = absl::StrCat("workers need ", FormatBytes(wanted), " of memory, ",
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
                          const std::optional<RunningCluster>& cluster, DoctorReport& report) {
  const std::size_t available = engine::AvailableBytes();
  std::size_t wanted = 0;
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
      const absl::StatusOr<std::size_t> bytes =
          BytesOf(*worker, static_cast<std::int32_t>(deployment.block_tokens), **opened, weights,
                  available);
      whole = whole && bytes.ok();
      if (bytes.ok()) {
        wanted += *bytes;
      } else {
        report.Fault(worker->name, " (line ", worker->at.line, "): ", bytes.status().message());
      }
    }
  }
  if (running > 0) report.Ok(running, " of ", workers.size(), " workers run and have their memory");
  if (whole && running < workers.size()) Compare(wanted, available, report);
}

}  // namespace penstock::cli
