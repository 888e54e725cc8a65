// SPDX-License-Identifier: Apache-2.0
#include "worker/gpu_transfer.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/log.h"
#include "base/status.h"

namespace penstock::worker {
namespace {

absl::StatusOr<std::unique_ptr<transfer::NcclComms>> MakeComms(engine::LocalModel& model) {
  CudaDevice* const gpu = model.only_gpu();
  if (gpu == nullptr) {
    return absl::UnimplementedError(absl::StrCat("the worker's KV is spread over ",
                                                 model.options().shards * model.options().stages,
                                                 " GPUs, which kind nccl does not know yet"));
  }
  return transfer::NcclComms::Make(*gpu, {});
}

}  // namespace

transfer::Endpoint::Options ThroughTheHost(transfer::Endpoint::Options options) {
  std::erase(options.kinds, transfer::Kind::kNccl);
  options.nccl = nullptr;
  return options;
}

absl::StatusOr<std::unique_ptr<GpuTransfer>> GpuTransfer::Make(
    engine::LocalModel& model, transfer::Endpoint::Options& endpoint) {
  if (std::ranges::find(endpoint.kinds, transfer::Kind::kNccl) == endpoint.kinds.end()) {
    return nullptr;
  }
  absl::Status why = absl::UnimplementedError("the worker computes on no GPU");
  if (model.options().cuda != nullptr) {
    absl::StatusOr<std::unique_ptr<transfer::NcclComms>> comms = MakeComms(model);
    if (comms.ok()) {
      endpoint.nccl = comms->get();
      return std::unique_ptr<GpuTransfer>(new GpuTransfer(*std::move(comms)));
    }
    why = comms.status();
    LOG_INFO("KV goes through the host, not over nccl", {{"reason", why.ToString()}});
  }
  endpoint = ThroughTheHost(std::move(endpoint));
  if (!endpoint.kinds.empty()) return nullptr;
  return absl::FailedPreconditionError(
      absl::StrCat("kind nccl is the only one, and cannot be had: ", why.message()));
}

GpuTransfer::GpuTransfer(std::unique_ptr<transfer::NcclComms> comms) : comms_(std::move(comms)) {}
GpuTransfer::~GpuTransfer() = default;

absl::Status GpuTransfer::Show(Loop& loop, engine::KvPool& pool, transfer::Endpoint& endpoint,
                               transfer::HandoffSender& sender) {
  ASSIGN_OR_RETURN(sums_,
                   transfer::GpuSums::Make(loop, comms_->device(), comms_->options().copy_units));
  std::vector<transfer::SegmentId> segments;
  std::vector<const std::byte*> bases;
  for (std::int32_t g = 0; g < pool.groups(); ++g) {
    DeviceMemory* const memory = pool.device_memory(g);
    CHECK(memory != nullptr);
    segments.push_back(endpoint.Register(*memory));
    bases.push_back(memory->data());
  }
  sender.ReadOnDevice(std::move(segments), std::move(bases), *sums_);
  return absl::OkStatus();
}

void GpuTransfer::Stop() { sums_.reset(); }

}  // namespace penstock::worker
