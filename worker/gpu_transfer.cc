// SPDX-License-Identifier: Apache-2.0
#include "worker/gpu_transfer.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/log.h"
#include "base/status.h"
#include "engine/worker_pool.h"

namespace penstock::worker {
namespace {

// What each GPU has of the pool; nobody reads it, or computes there.
std::vector<transfer::GpuSlabs> SlabsOf(const engine::KvPool& pool) {
  std::vector<transfer::GpuSlabs> gpus(static_cast<std::size_t>(pool.devices()));
  for (std::int32_t d = 0; d < pool.devices(); ++d) {
    for (std::int32_t g = 0; g < pool.groups(); ++g) {
      const engine::GroupShard& shard = pool.shard(d, g);
      gpus[static_cast<std::size_t>(d)].groups.push_back(
          {.part = {.segment = {}, .slab_bytes = shard.slab_bytes, .slab = SlabPartOf(shard)},
           .base = shard.base});
    }
  }
  return gpus;
}

}  // namespace

transfer::Endpoint::Options ThroughTheHost(transfer::Endpoint::Options options) {
  std::erase(options.kinds, transfer::Kind::kNccl);
  options.nccl.clear();
  return options;
}

absl::StatusOr<std::unique_ptr<GpuTransfer>> GpuTransfer::Make(
    engine::LocalModel& model, transfer::Endpoint::Options& endpoint) {
  if (std::ranges::find(endpoint.kinds, transfer::Kind::kNccl) == endpoint.kinds.end()) {
    return nullptr;
  }
  absl::Status why = absl::UnimplementedError("the worker computes on no GPU");
  if (model.options().cuda != nullptr) {
    absl::StatusOr<Comms> comms = MakeComms(model);
    if (comms.ok()) {
      for (const auto& of_gpu : *comms) endpoint.nccl.push_back(of_gpu.get());
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

GpuTransfer::GpuTransfer(Comms comms) : comms_(std::move(comms)) {}
GpuTransfer::~GpuTransfer() = default;

absl::StatusOr<GpuTransfer::Comms> GpuTransfer::MakeComms(engine::LocalModel& model) {
  const std::size_t parts =
      model.gpus().size() * model.architecture().MakeKvSpec(KvDtype::kF16).groups.size();
  if (parts > transfer::kPartsMax) {
    return absl::FailedPreconditionError(absl::StrCat("the pool lies in ", parts,
                                                      " parts, all groups on all GPUs, at most ",
                                                      transfer::kPartsMax, " go over nccl"));
  }
  Comms comms;
  for (CudaDevice* const gpu : model.gpus()) {
    ASSIGN_OR_RETURN(std::unique_ptr<transfer::NcclComms> made,
                     transfer::NcclComms::Make(*gpu, {}));
    comms.push_back(std::move(made));
  }
  return comms;
}

absl::Status GpuTransfer::Show(Loop& loop, const engine::KvPool& pool, transfer::Endpoint& endpoint,
                               transfer::HandoffSender& sender) {
  std::vector<transfer::GpuSlabs> gpus = SlabsOf(pool);
  CHECK_EQ(gpus.size(), comms_.size());
  for (std::size_t d = 0; d < gpus.size(); ++d) {
    ASSIGN_OR_RETURN(
        std::unique_ptr<transfer::GpuSums> sums,
        transfer::GpuSums::Make(loop, comms_[d]->device(), comms_[d]->options().copy_units));
    gpus[d].sums = sums.get();
    sums_.push_back(std::move(sums));
    for (std::int32_t g = 0; g < pool.groups(); ++g) {
      DeviceMemory* const memory = pool.shard(static_cast<std::int32_t>(d), g).memory.get();
      if (memory == nullptr) continue;  // It has no layer of the group.
      gpus[d].groups[static_cast<std::size_t>(g)].part.segment = endpoint.Register(*memory, d);
    }
  }
  sender.ReadOnGpus(std::move(gpus));
  return absl::OkStatus();
}

void GpuTransfer::Land(const engine::KvPool& pool, transfer::HandoffReceiver& receiver) {
  receiver.LandOnGpus(SlabsOf(pool));
}

void GpuTransfer::Stop() { sums_.clear(); }

}  // namespace penstock::worker
