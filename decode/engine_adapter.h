// SPDX-License-Identifier: Apache-2.0
// The engine of a real decode worker, behind what DecodeState sees: jobs go to the engine's thread,
// tokens and ends come back on the loop.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/event_loop.h"
#include "decode/decode_state.h"
#include "engine/engine.h"
#include "engine/engine_thread.h"
#include "engine/meter.h"
#include "worker/prompt_imports.h"
#include "worker/store_part.h"

namespace penstock::decode {

// What a gateway asks.
struct EngineWork final : DecodeEngine::Work {
  engine::Request request;
};

// What OnTokens carries: the outputs of one step for one job, and with the last, how it went.
struct EngineTokens final : DecodeEngine::Tokens {
  std::vector<engine::TokenOutput> outputs;
  std::optional<engine::RequestStats> stats;
  std::int64_t sampled_unix_ns = 0;

  std::int32_t count() const override {
    return static_cast<std::int32_t>(std::ranges::count_if(
        outputs, [](const engine::TokenOutput& output) { return output.token.has_value(); }));
  }
};

class EngineAdapter final : public DecodeEngine {
 public:
  // `loop` must outlive the adapter, which goes on its thread.
  EngineAdapter(Loop& loop, std::unique_ptr<engine::Engine> engine);
  ~EngineAdapter() override;
  // Once, before the first Reserve: who hears of tokens and ends.
  void Connect(DecodeState& state);

  void Reserve(JobId job, std::int32_t tokens, std::vector<Chain> chains, LossClass accepts,
               std::uint32_t tenant, std::function<void(absl::StatusOr<Room>)> done) override;
  void EndReservation(JobId job, std::int32_t blocks_valid, const Lineage& came) override;
  void Run(JobId job, std::unique_ptr<Work> work, LossClass accepts, const Lineage& came) override;
  void Cancel(JobId job) override;
  void Import(JobId job, std::vector<Chain> chains, std::vector<kvstore::Fetcher::Source> sources,
              LossClass accepts, std::uint32_t tenant, std::function<void()> ready,
              std::function<void(const kvstore::Fetcher::Outcome&)> done) override;
  void EndImport(JobId job) override;
  void CameOnDevice(JobId job, std::int32_t host_first, std::int32_t host_end) override;
  void Fetch(JobId job, std::vector<transfer::HandoffReceiver::Target::Group> groups,
             std::vector<Chain> chains, std::int32_t first_block,
             std::vector<kvstore::Fetcher::Source> sources,
             std::function<void(const kvstore::Fetcher::Outcome&)> done) override;
  void CancelFetch(JobId job) override;
  // What brings blocks from the store; null: nothing does. Outlives the last Import.
  void set_store(worker::StorePart* store) {
    store_ = store;
    imports_.set_importer(store);
  }
  // Ends one answer, whose text met a stop string, as kStop.
  void StopChoice(JobId job, std::int32_t choice);

  engine::EngineThread& thread() { return *thread_; }
  engine::Meter& meter() { return *meter_; }

 private:
  struct Job {
    std::optional<engine::ReservationId> reservation;
    std::int32_t reserved_tokens = 0;
    std::optional<engine::RequestId> request;
    std::vector<bool> live;  // Of each answer: not finished.
    bool cancelled = false;  // Before there was a request.
  };
  void Start(engine::Engine& engine, JobId job, engine::Request request, const Lineage& came);
  void OnStep(engine::Engine& engine, const engine::StepReport& report);
  void Tell(engine::Engine& engine, engine::RequestId request,
            std::span<const engine::TokenOutput> outputs, bool at_once = false);

  // What posted tasks check, so that none reaches a state that may be gone with the adapter.
  struct Target {
    DecodeState* state = nullptr;
  };

  Loop& loop_;
  const std::shared_ptr<engine::Meter> meter_ = std::make_shared<engine::Meter>();
  engine::KvPool& pool_;  // Its addresses alone; the rest is the engine's thread's.
  const std::shared_ptr<Target> target_ = std::make_shared<Target>();  // Used on the loop alone.
  worker::StorePart* store_ = nullptr;
  worker::PromptImports imports_;  // By job.
  std::map<JobId, worker::StorePart::ImportId> fetches_;
  // On the engine's thread alone.
  std::map<JobId, Job> jobs_;
  std::map<engine::RequestId, JobId> by_request_;
  std::unique_ptr<engine::EngineThread> thread_;  // Last: it uses the rest.
};

}  // namespace penstock::decode
