// SPDX-License-Identifier: Apache-2.0
// What a worker's GPUs do for transfers: communicators for links of kind nccl, and checksums of
// what lies in their memory. One of each for every GPU that the worker's pool is on, in the order of
// its devices, by which lanes and parts of slabs are counted, too.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "base/event_loop.h"
#include "engine/engine.h"
#include "engine/local_model.h"
#include "transfer/endpoint.h"
#include "transfer/gpu_slabs.h"
#include "transfer/gpu_sums.h"
#include "transfer/handoff_receiver.h"
#include "transfer/handoff_sender.h"
#include "transfer/nccl_comms.h"

namespace penstock::worker {

// The options without kind nccl: of endpoints that meet no GPU.
transfer::Endpoint::Options ThroughTheHost(transfer::Endpoint::Options options);

class GpuTransfer {
 public:
  // Where `endpoint` has kind nccl: what that takes, or, where this worker cannot have it, null, a
  // line in the log that says why (but for workers on CPUs), and the endpoint without it.
  // FAILED_PRECONDITION with the reason where no other kind is left. `model` outlives the result,
  // that the endpoint.
  static absl::StatusOr<std::unique_ptr<GpuTransfer>> Make(engine::LocalModel& model,
                                                           transfer::Endpoint::Options& endpoint);
  ~GpuTransfer();

  // On the loop: `sender` shows the pool's slabs on the GPUs, too. Call Stop before the pool goes.
  absl::Status Show(Loop& loop, const engine::KvPool& pool, transfer::Endpoint& endpoint,
                    transfer::HandoffSender& sender);
  // On the loop: `receiver` writes to them.
  static void Land(const engine::KvPool& pool, transfer::HandoffReceiver& receiver);
  // On the loop, once the sender is gone: nothing is computed on the pool's memory any more.
  void Stop();

 private:
  using Comms = std::vector<std::unique_ptr<transfer::NcclComms>>;
  explicit GpuTransfer(Comms comms);
  static absl::StatusOr<Comms> MakeComms(engine::LocalModel& model);

  const Comms comms_;                                     // One per GPU.
  std::vector<std::unique_ptr<transfer::GpuSums>> sums_;  // Likewise, from Show to Stop.
};

}  // namespace penstock::worker
