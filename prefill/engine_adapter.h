// SPDX-License-Identifier: Apache-2.0
// The engine of a real prefill worker, behind what PrefillState sees: jobs go to the engine's
// thread, and what it tells comes back on the loop.
//
// Blocks of a prompt that the store has are imported beside that (worker/prompt_imports.h). Of mapped
// ones the decode worker is told: it has them from the same node, or wants a copy.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "base/event_loop.h"
#include "base/kv_spec.h"
#include "engine/engine.h"
#include "engine/engine_thread.h"
#include "engine/meter.h"
#include "prefill/prefill_state.h"
#include "worker/prompt_imports.h"

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
  // Before the first Submit, to say what brings blocks.
  worker::PromptImports& imports() { return imports_; }

  void Submit(JobId job, Prompt prompt) override;
  void CopyMapped(JobId job, std::int32_t first_block, std::int32_t end_block) override;
  void End(JobId job) override;

  engine::EngineThread& thread() { return *thread_; }
  engine::Meter& meter() { return *meter_; }

 private:
  void Compute(JobId job, Prompt prompt);
  void SetComing(JobId job);
  // On the engine's thread.
  void PostAfterCopies(std::function<void()> task);
  void OnStep(const engine::StepReport& report);
  void OnLayer(std::int32_t layer, std::span<const engine::PrefillBlocks> prefills);
  // Of what is told in its first layer.
  struct Range {
    std::int32_t first_block = 0;
    std::int32_t end_block = 0;
  };
  static std::optional<Range> MappedOf(const engine::PrefillBlocks& prefill);
  // What a layer that is done gives to tell.
  struct Layer {
    std::vector<std::pair<JobId, PrefillState::Pass>> passes;
    std::vector<std::pair<JobId, Range>> mapped;
    std::vector<std::pair<JobId, transfer::HandoffSender::Told>> told;
    bool empty() const { return passes.empty() && mapped.empty() && told.empty(); }
  };

  // What posted tasks check, so that none reaches a state that may be gone with the adapter.
  struct Target {
    PrefillState* state = nullptr;
  };

  Loop& loop_;
  engine::KvPool& pool_;
  const KvSpec spec_;
  const std::uint32_t block_tokens_;
  const bool trace_;
  worker::PromptImports imports_;  // By job.
  const std::shared_ptr<engine::Meter> meter_ = std::make_shared<engine::Meter>();
  const std::shared_ptr<Target> target_ = std::make_shared<Target>();  // Used on the loop alone.
  // On the engine's thread alone.
  std::map<JobId, engine::RequestId> requests_;
  std::map<engine::RequestId, JobId> jobs_;
  std::set<engine::RequestId> on_device_;  // Of them, those whose KV nobody reads on the host.
  MonoTime awake_ = {};  // Since when the thread has had what its step computes; for traces.
  std::unique_ptr<engine::EngineThread> thread_;  // Last: it uses the rest.
};

}  // namespace penstock::prefill
