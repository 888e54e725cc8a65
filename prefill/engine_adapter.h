// SPDX-License-Identifier: Apache-2.0
// The engine of a real prefill worker, behind what PrefillState sees: jobs go to the engine's
// thread, and what it tells comes back on the loop.
#pragma once

#include <cstdint>
#include <map>
#include <memory>

#include "base/event_loop.h"
#include "base/kv_spec.h"
#include "engine/engine.h"
#include "engine/engine_thread.h"
#include "engine/meter.h"
#include "prefill/prefill_state.h"
#include "worker/store_part.h"

namespace penstock::prefill {

class EngineAdapter final : public PrefillEngine {
 public:
  // `spec` is that of the engine's pool. `loop` must outlive the adapter,
  // which goes on its thread. With `trace` the state hears of each pass.
  EngineAdapter(Loop& loop, std::unique_ptr<engine::Engine> engine, const KvSpec& spec,
                bool trace = false);
  ~EngineAdapter() override;
  // Once, before the first Submit: who hears of layers and refusals.
  void Connect(PrefillState& state);
  // What brings blocks from the store; null: nothing does. Outlives the last Submit.
  void set_store(worker::StorePart* store) { store_ = store; }

  void Submit(JobId job, Prompt prompt) override;
  void End(JobId job) override;

  engine::EngineThread& thread() { return *thread_; }
  engine::Meter& meter() { return *meter_; }

 private:
  void Compute(JobId job, Prompt prompt);
  // On the engine's thread.
  void OnStep(const engine::StepReport& report);
  void OnLayer(std::int32_t layer, std::span<const engine::PrefillBlocks> prefills);

  // What posted tasks check, so that none reaches a state that may be gone with the adapter.
  struct Target {
    PrefillState* state = nullptr;
  };

  Loop& loop_;
  const KvSpec spec_;
  const std::uint32_t block_tokens_;
  const bool trace_;
  worker::StorePart* store_ = nullptr;
  std::map<JobId, worker::StorePart::ImportId> imports_;
  const std::shared_ptr<engine::Meter> meter_ = std::make_shared<engine::Meter>();
  const std::shared_ptr<Target> target_ = std::make_shared<Target>();  // Used on the loop alone.
  // On the engine's thread alone.
  std::map<JobId, engine::RequestId> requests_;
  std::map<engine::RequestId, JobId> jobs_;
  MonoTime awake_ = {};  // Since when the thread has had what its step computes; for traces.
  std::unique_ptr<engine::EngineThread> thread_;  // Last: it uses the rest.
};

}  // namespace penstock::prefill
