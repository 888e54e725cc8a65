// SPDX-License-Identifier: Apache-2.0
// The engine of a real prefill worker, behind what PrefillState sees: jobs go to the engine's
// thread, and what it tells comes back on the loop.
//
// Of a prompt with sources, blocks are imported from the last one to the first while the engine
// computes from the first on, until both meet; a source that is too slow is left behind by that. A
// fast one is let alone until it has had its time (base/fetch_pace.h): then all is there as the
// engine begins. Blocks of a fast one that lie in a node's memory on this host are used there,
// mapped; the decode worker has them from there, too, or wants a copy. Of a slow one, beside which
// a decode worker fetches nothing itself, all are copied.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>

#include "base/event_loop.h"
#include "base/fetch_pace.h"
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
  // What brings blocks from the store; null: nothing does. Outlives the last Submit. With
  // import_first nothing is computed beside that.
  void set_store(worker::StorePart* store, bool import_first = false) {
    store_ = store;
    import_first_ = import_first;
  }

  void Submit(JobId job, Prompt prompt) override;
  void CopyMapped(JobId job, std::int32_t first_block, std::int32_t end_block) override;
  void End(JobId job) override;

  engine::EngineThread& thread() { return *thread_; }
  engine::Meter& meter() { return *meter_; }

 private:
  // Of one job, until it has ended.
  struct Import {
    worker::StorePart::ImportId id = 0;
    MonoTime begun = {};
    FetchPace pace = {};
    std::int32_t end_block = 0;
    Loop::TimerId timer = {};
    std::optional<Prompt> prompt = {};  // Until it is computed.
  };
  void Compute(JobId job, Prompt prompt, const engine::Coming& coming);
  void ComputeBeside(JobId job);
  engine::Coming ComingOf(const Import& importing) const;
  void OnImported(JobId job, const worker::StorePart::Imported& imported);
  void OnReached(JobId job, std::int32_t block);
  void SetComing(JobId job, const engine::Coming& coming);
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

  // What posted tasks check, so that none reaches a state that may be gone with the adapter.
  struct Target {
    PrefillState* state = nullptr;
  };

  Loop& loop_;
  engine::KvPool& pool_;
  const KvSpec spec_;
  const std::uint32_t block_tokens_;
  const bool trace_;
  worker::StorePart* store_ = nullptr;
  bool import_first_ = false;
  std::map<JobId, Import> imports_;
  // By what was imported, until the job's end: so that the engine finds it.
  std::map<JobId, std::vector<std::shared_ptr<const MappedBlock>>> mapped_;
  const std::shared_ptr<engine::Meter> meter_ = std::make_shared<engine::Meter>();
  const std::shared_ptr<Target> target_ = std::make_shared<Target>();  // Used on the loop alone.
  // On the engine's thread alone.
  std::map<JobId, engine::RequestId> requests_;
  std::map<engine::RequestId, JobId> jobs_;
  MonoTime awake_ = {};  // Since when the thread has had what its step computes; for traces.
  std::unique_ptr<engine::EngineThread> thread_;  // Last: it uses the rest.
};

}  // namespace penstock::prefill
