// SPDX-License-Identifier: Apache-2.0
#include "cli/gpu_pairs.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/device_name.h"
#include "transfer/nccl_comms.h"

namespace penstock::cli {
namespace {

constexpr std::size_t kNcclBytesPerCta = std::size_t{6} << 20;

std::size_t GpuCount(const launch::Worker& worker) {
  const auto gpus = GpusOf(worker.device, static_cast<std::int32_t>(worker.tp * worker.pp));
  return gpus.has_value() ? gpus->size() : 0;
}

}  // namespace

bool IsGpuPair(const launch::Worker& prefill, const launch::Worker& decode) {
  return prefill.role == launch::Role::kPrefill && decode.role == launch::Role::kDecode &&
         prefill.model == decode.model && GpuCount(prefill) > 0 && GpuCount(decode) > 0;
}

std::string WhyNotNccl(const launch::Worker& prefill, const launch::Worker& decode) {
  for (const launch::Worker* const worker : {&prefill, &decode}) {
    if (GpuCount(*worker) > 1) {
      return absl::StrCat(worker->name, " is on ", GpuCount(*worker), " GPUs");
    }
  }
  if (prefill.host == decode.host && GpusOf(prefill.device) == GpusOf(decode.device)) {
    return absl::StrCat(prefill.name, " and ", decode.name, " share a GPU");
  }
  return "";
}

std::size_t NcclLinkBytes(const launch::Deployment& deployment, const launch::Worker& worker) {
  if (std::ranges::find(deployment.transfer, "nccl") == deployment.transfer.end()) return 0;
  const transfer::NcclComms::Options options;
  const auto links = std::ranges::count_if(deployment.workers, [&](const launch::Worker& other) {
    const bool prefills = worker.role == launch::Role::kPrefill;
    const launch::Worker& prefill = prefills ? worker : other;
    const launch::Worker& decode = prefills ? other : worker;
    return IsGpuPair(prefill, decode) && WhyNotNccl(prefill, decode).empty();
  });
  const std::size_t each = 2 * options.slots * options.slot_bytes +
                           static_cast<std::size_t>(options.ctas_max) * kNcclBytesPerCta;
  return std::min(static_cast<std::size_t>(links), options.comms_max) * each;
}

}  // namespace penstock::cli
