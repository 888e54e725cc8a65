// SPDX-License-Identifier: Apache-2.0
#include "decode/decode_worker.h"

#include <utility>

#include "base/log.h"
#include "base/status.h"

namespace penstock::decode {
namespace {

void LogRefused(const absl::Status& why) {
  LOG_WARNING("peer refused", {{"reason", why.ToString()}});
}

}  // namespace

absl::StatusOr<std::unique_ptr<DecodeWorker>> DecodeWorker::Start(engine::LocalModel& model,
                                                                  const Options& options) {
  std::unique_ptr<DecodeWorker> worker(new DecodeWorker);
  ASSIGN_OR_RETURN(worker->loop_, EpollLoop::Make("decode"));
  ASSIGN_OR_RETURN(std::unique_ptr<engine::Engine> engine, model.MakeEngine());
  transfer::Endpoint::Options endpoint = options.endpoint;
  endpoint.identity = model.Identity();
  ASSIGN_OR_RETURN(worker->gpu_, worker::GpuTransfer::Make(model, endpoint));
  absl::Status status;
  worker->loop_->Run([&] {
    worker->turns_ = std::make_unique<transfer::LinkTurns>(*worker->loop_, options.spans);
    engine::KvPool& pool = engine->pool();
    worker->pool_shape_ = engine::ShapeOf(pool);
    worker->spaces_ = MakeLossSpaces(model.namespace_fields());
    auto made = transfer::Endpoint::Make(
        *worker->loop_, endpoint,
        [w = worker.get()](std::unique_ptr<transfer::Channel> channel) {
          w->receiver_->AddPeer(std::move(channel));
        },
        LogRefused);
    if (!made.ok()) {
      status = made.status();
      return;
    }
    worker->endpoint_ = *std::move(made);
    worker->transfer_address_ = worker->endpoint_->address();
    engine::PeerView view = engine::ShowToPeers(
        pool, [&](DeviceMemory& memory) { return worker->endpoint_->Register(memory); });
    worker->engine_ = std::make_unique<EngineAdapter>(*worker->loop_, std::move(engine));
    if (options.store.has_value()) {
      worker::StorePart::Options store = *options.store;
      store.endpoint = worker::ThroughTheHost(options.endpoint);
      auto part = worker::StorePart::Make(*worker->loop_, *worker->turns_,
                                          worker->engine_->thread(), pool, worker->spaces_, store);
      status = part.status();
      if (!part.ok()) return;
      worker->store_ = *std::move(part);
      worker->groups_ = worker::GroupsOf(pool, worker->spaces_);
      worker->codecs_ = worker::CodecsOf(store);
      worker->engine_->set_store(worker->store_.get());
    }
    worker->receiver_ = std::make_unique<transfer::HandoffReceiver>(
        *worker->loop_, *worker->turns_, std::move(view.groups), options.receiver, nullptr);
    if (worker->gpu_ != nullptr) worker::GpuTransfer::Land(pool, *worker->receiver_);
    worker->state_ =
        std::make_unique<DecodeState>(*worker->loop_, *worker->engine_, *worker->receiver_,
                                      DecodeState::Options{.epoch = endpoint.self.epoch,
                                                           .attempts_max = options.attempts_max,
                                                           .spans = options.spans});
    worker->engine_->Connect(*worker->state_);
  });
  RETURN_IF_ERROR(status);
  return worker;
}

DecodeWorker::~DecodeWorker() {
  if (loop_ == nullptr) return;
  loop_->Run([this] {
    state_.reset();
    store_.reset();
    receiver_.reset();  // No byte lands in the pool from here on.
    endpoint_.reset();
    engine_.reset();
    turns_.reset();
  });
}

}  // namespace penstock::decode
