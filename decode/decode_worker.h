// SPDX-License-Identifier: Apache-2.0
// A decode worker, put together: a loop, an endpoint that prefill workers connect to, the engine on
// its thread, and the state between them. The RPC server is beside it (decode_service.h).
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/epoll_loop.h"
#include "decode/decode_state.h"
#include "decode/engine_adapter.h"
#include "engine/local_model.h"
#include "engine/worker_pool.h"
#include "transfer/endpoint.h"
#include "transfer/handoff_receiver.h"
#include "transfer/link_turns.h"
#include "worker/gpu_transfer.h"
#include "worker/store_part.h"
#include "worker/store_session.h"

namespace penstock::decode {

class DecodeWorker {
 public:
  struct Options {
    // `self` names the worker, too; the identity is set here, and kind nccl left out where the
    // worker cannot have it.
    transfer::Endpoint::Options endpoint;
    transfer::HandoffReceiver::Options receiver;
    std::int32_t attempts_max = 1024;
    SpanRing* spans = nullptr;  // Null: not traced. Outlives the worker.
    // Its part in the KV store; the endpoint is made as the worker's own. None: it has no part.
    std::optional<worker::StorePart::Options> store = {};
  };

  // `model` is loaded, for peers, and outlives the worker. UNAVAILABLE when an address is taken,
  // and what LocalModel::MakeEngine says.
  static absl::StatusOr<std::unique_ptr<DecodeWorker>> Start(engine::LocalModel& model,
                                                             const Options& options);
  // Everything that runs ends as it stands: streams break.
  ~DecodeWorker();

  EpollLoop& loop() { return *loop_; }
  DecodeState& state() { return *state_; }                      // On the loop.
  EngineAdapter& engine() { return *engine_; }                  // On the loop.
  const transfer::LinkTurns& turns() const { return *turns_; }  // On the loop.
  worker::StorePart* store() { return store_.get(); }  // On the loop; null: it has no part in it.
  const std::vector<StoredGroup>& groups() const { return groups_; }
  const std::vector<CodecLoss>& codecs() const { return codecs_; }
  const engine::PoolShape& pool_shape() const { return pool_shape_; }
  // Of the blocks that it computes.
  const LossSpaces& spaces() const { return spaces_; }
  const std::string& transfer_address() const { return transfer_address_; }

 private:
  DecodeWorker() = default;

  std::unique_ptr<worker::GpuTransfer> gpu_;  // Null: KV moves through the host.
  std::unique_ptr<EpollLoop> loop_;
  // On the loop, from here on.
  std::unique_ptr<transfer::LinkTurns> turns_;
  std::unique_ptr<transfer::Endpoint> endpoint_;
  std::unique_ptr<EngineAdapter> engine_;
  std::unique_ptr<worker::StorePart> store_;
  std::unique_ptr<transfer::HandoffReceiver> receiver_;
  std::unique_ptr<DecodeState> state_;
  std::string transfer_address_;
  engine::PoolShape pool_shape_;
  std::vector<StoredGroup> groups_;
  std::vector<CodecLoss> codecs_;
  LossSpaces spaces_;
};

}  // namespace penstock::decode
