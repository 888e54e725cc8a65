// SPDX-License-Identifier: Apache-2.0
#include "prefill/prefill_worker.h"

#include <utility>

#include "base/log.h"
#include "base/status.h"

namespace penstock::prefill {
namespace {

void LogRefused(const absl::Status& why) {
  LOG_WARNING("peer refused", {{"reason", why.ToString()}});
}

}  // namespace

absl::StatusOr<std::unique_ptr<PrefillWorker>> PrefillWorker::Start(engine::LocalModel& model,
                                                                    const Options& options) {
  std::unique_ptr<PrefillWorker> worker(new PrefillWorker);
  ASSIGN_OR_RETURN(worker->loop_, EpollLoop::Make("prefill"));
  ASSIGN_OR_RETURN(std::unique_ptr<engine::Engine> engine, model.MakeEngine());
  transfer::Endpoint::Options endpoint = options.endpoint;
  endpoint.identity = model.Identity();
  ASSIGN_OR_RETURN(worker->gpu_, worker::GpuTransfer::Make(model, endpoint));
  absl::Status status;
  worker->loop_->Run([&] {
    PrefillWorker* const w = worker.get();
    w->turns_ = std::make_unique<transfer::LinkTurns>(*w->loop_, options.spans);
    engine::KvPool& pool = engine->pool();
    worker->pool_shape_ = engine::ShapeOf(pool);
    worker->spaces_ = MakeLossSpaces(model.namespace_fields());
    const KvSpec spec = pool.spec();
    // Who connects to a prefill worker has nothing to say: its channel ends as this returns.
    auto made = transfer::Endpoint::Make(
        *w->loop_, endpoint, [](std::unique_ptr<transfer::Channel>) {}, LogRefused);
    if (!made.ok()) {
      status = made.status();
      return;
    }
    w->endpoint_ = *std::move(made);
    w->transfer_address_ = w->endpoint_->address();
    engine::PeerView view = engine::ShowToPeers(
        pool, [&](DeviceMemory& memory) { return w->endpoint_->Register(memory); });
    w->engine_ = std::make_unique<EngineAdapter>(*w->loop_, std::move(engine), spec,
                                                 options.spans != nullptr);
    if (options.store.has_value()) {
      worker::StorePart::Options store = *options.store;
      store.endpoint = worker::ThroughTheHost(options.endpoint);
      auto part = worker::StorePart::Make(*w->loop_, *w->turns_, w->engine_->thread(), pool,
                                          w->spaces_, store);
      status = part.status();
      if (!part.ok()) return;
      w->store_ = *std::move(part);
      w->groups_ = worker::GroupsOf(pool, w->spaces_);
      w->codecs_ = worker::CodecsOf(store);
      w->engine_->imports().set_importer(w->store_.get(), options.import_first);
    }
    w->sender_ = std::make_unique<transfer::HandoffSender>(
        *w->loop_, std::move(view.groups), std::move(view.bases),
        [w](const transfer::Channel& channel, const absl::Status& why) {
          w->channels_->Forget(channel, why);
        });
    if (w->gpu_ != nullptr) {
      status = w->gpu_->Show(*w->loop_, pool, *w->endpoint_, *w->sender_);
      if (!status.ok()) return;
    }
    w->channels_ = std::make_unique<ChannelCache>(*w->loop_, *w->endpoint_, *w->sender_);
    w->state_ = std::make_unique<PrefillState>(
        *w->loop_, *w->engine_, *w->channels_, *w->sender_,
        PrefillState::Options{.attempts_max = options.attempts_max,
                              .block_tokens = w->pool_shape().block_tokens,
                              .spans = options.spans});
    w->engine_->Connect(*w->state_);
  });
  RETURN_IF_ERROR(status);
  return worker;
}

PrefillWorker::~PrefillWorker() {
  if (loop_ == nullptr) return;
  loop_->Run([this] {
    state_.reset();
    store_.reset();
    sender_.reset();
    if (gpu_ != nullptr) gpu_->Stop();
    endpoint_.reset();  // Peers read no byte from here on; connects that wait never tell.
    channels_.reset();
    engine_.reset();
    turns_.reset();
  });
}

}  // namespace penstock::prefill
