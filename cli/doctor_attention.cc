// SPDX-License-Identifier: Apache-2.0
#include "cli/doctor_attention.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/kv_spec.h"
#include "base/status.h"
#include "cli/deployment_file.h"
#include "cli/worker_memory.h"
#include "device/cuda_device.h"
#include "device/cuda_plugin.h"
#include "engine/local_model.h"
#include "kernels/fast_attention.h"

namespace penstock::cli {
namespace {

// What a check takes at most: cuDNN's workspace, and little for the batch and its tables.
constexpr std::size_t kCheckBytes = kernels::kFastWorkspaceBytesMax + (std::size_t{8} << 20);

// The first thing that keeps cuDNN from one of the model's kinds of pages, in `checked`. An error
// where it was not asked: the model or the GPU cannot be opened, or the GPU is full.
absl::Status Check(const launch::Deployment& deployment, const std::string& file,
                   const launch::Worker& worker, const CudaPlugin& plugin, absl::Status& checked) {
  ASSIGN_OR_RETURN(const std::vector<std::size_t> gpus, ShardGpus(worker));
  ASSIGN_OR_RETURN(const std::string path, ResolveModel(deployment, file, worker.model));
  ASSIGN_OR_RETURN(const auto model, engine::LocalModel::Open(path));
  ASSIGN_OR_RETURN(const KvDtype dtype, ParseKvDtype(worker.kv_dtype));
  ASSIGN_OR_RETURN(const auto device,
                   CudaDevice::Make(plugin, {.threads = 1}, static_cast<int>(gpus.at(0))));
  RETURN_IF_ERROR(device->Allocate(kCheckBytes).status());
  const model::Architecture& architecture = model->architecture();
  const auto block_tokens = static_cast<std::int32_t>(deployment.block_tokens);
  const auto page_tokens = worker.page_tokens != 0 ? static_cast<std::int32_t>(worker.page_tokens)
                                                   : std::min(32, block_tokens);
  for (const KvGroup& group : architecture.MakeKvSpec(dtype).groups) {
    ASSIGN_OR_RETURN(const PageLayout layout, PageLayout::Make(group, block_tokens, page_tokens));
    checked.Update(kernels::CheckFastAttention(*device, layout, architecture.qo_heads));
  }
  return absl::OkStatus();
}

}  // namespace

void ReportPrefillAttention(const launch::Deployment& deployment, const std::string& file,
                            std::span<const launch::Worker* const> workers,
                            const std::string& plugin, DoctorReport& report) {
  for (const launch::Worker* worker : workers) {
    if (worker->numerics != "fast") continue;
    const absl::StatusOr<LoadedCudaPlugin> loaded = LoadCudaPlugin(plugin);
    absl::Status asked = loaded.status(), checked;
    if (loaded.ok()) asked = Check(deployment, file, *worker, *loaded->plugin, checked);
    const std::string whose = absl::StrCat(worker->name, ": prefill attention by ");
    if (!asked.ok()) {
      report.Warning(worker->name, ": prefill attention is not tried: ", asked.message());
    } else if (checked.ok()) {
      report.Ok(whose, "cuDNN, which agrees with our kernel");
    } else if (absl::IsUnimplemented(checked)) {
      report.Ok(whose, "our kernel: ", checked.message());
    } else {
      report.Warning(whose, "our kernel: ", checked.message());
    }
  }
}

}  // namespace penstock::cli
