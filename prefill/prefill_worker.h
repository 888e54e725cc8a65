// SPDX-License-Identifier: Apache-2.0
// A prefill worker, put together: a loop, an endpoint with channels to decode workers, the engine
// on its thread, and the state between them. The RPC server is beside it (prefill_service.h).
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/epoll_loop.h"
#include "engine/local_model.h"
#include "engine/worker_pool.h"
#include "prefill/channel_cache.h"
#include "prefill/engine_adapter.h"
#include "prefill/prefill_state.h"
#include "transfer/endpoint.h"
#include "transfer/handoff_sender.h"
#include "transfer/link_turns.h"
#include "worker/gpu_transfer.h"
#include "worker/store_part.h"
#include "worker/store_session.h"

namespace penstock::prefill {

class PrefillWorker {
 public:
  struct Options {
    // `self` names the worker, too; the identity is set here, and kind nccl left out where the
    // worker cannot have it.
    transfer::Endpoint::Options endpoint;
    std::int32_t attempts_max = 1024;
    SpanRing* spans = nullptr;  // Null: not traced. Outlives the worker.
    // Its part in the KV store; the endpoint is made as the worker's own. None: it has no part.
    std::optional<worker::StorePart::Options> store = {};
    // All that can be had from there is brought before anything is computed.
    bool import_first = false;
  };

  // `model` is loaded, for peers, and outlives the worker. UNAVAILABLE when an address is taken,
  // and what LocalModel::MakeEngine says.
  static absl::StatusOr<std::unique_ptr<PrefillWorker>> Start(engine::LocalModel& model,
                                                              const Options& options);
  // Everything that runs ends as it stands.
  ~PrefillWorker();

  EpollLoop& loop() { return *loop_; }
  // On the loop.
  PrefillState& state() { return *state_; }
  EngineAdapter& engine() { return *engine_; }
  ChannelCache& channels() { return *channels_; }
  const transfer::LinkTurns& turns() const { return *turns_; }  // On the loop.
  worker::StorePart* store() { return store_.get(); }           // Null: it has no part in it.
  const std::vector<StoredGroup>& groups() const { return groups_; }
  const std::vector<CodecLoss>& codecs() const { return codecs_; }
  const engine::PoolShape& pool_shape() const { return pool_shape_; }
  // Of the blocks that it computes.
  const LossSpaces& spaces() const { return spaces_; }
  const std::string& transfer_address() const { return transfer_address_; }

 private:
  PrefillWorker() = default;

  std::unique_ptr<worker::GpuTransfer> gpu_;  // Null: KV moves through the host.
  std::unique_ptr<EpollLoop> loop_;
  // On the loop, from here on.
  std::unique_ptr<transfer::LinkTurns> turns_;
  std::unique_ptr<transfer::Endpoint> endpoint_;
  std::unique_ptr<EngineAdapter> engine_;
  std::unique_ptr<worker::StorePart> store_;
  std::unique_ptr<transfer::HandoffSender> sender_;
  std::unique_ptr<ChannelCache> channels_;
  std::unique_ptr<PrefillState> state_;
  std::string transfer_address_;
  engine::PoolShape pool_shape_;
  std::vector<StoredGroup> groups_;
  std::vector<CodecLoss> codecs_;
  LossSpaces spaces_;
};

}  // namespace penstock::prefill
