// SPDX-License-Identifier: Apache-2.0
#include "engine/engine_metrics.h"

#include <algorithm>

namespace penstock::engine {

void EngineMetrics::Update(const Engine& engine, const StepReport* step, Duration step_time) {
  if (step != nullptr) {
    steps_.Add();
    step_seconds_.Observe(ToSeconds(step_time));
    prefill_tokens_.Add(static_cast<std::uint64_t>(step->prefill_rows));
    decode_tokens_.Add(static_cast<std::uint64_t>(step->decode_rows));
    preemptions_.Add(static_cast<std::uint64_t>(step->preempted));
    changed_.Add(static_cast<std::uint64_t>(step->changed));
  }
  KvPool::Stats pool = engine.PoolStats();
  const std::lock_guard lock(mutex_);
  pool_ = std::move(pool);
  reserved_ = engine.reservations();
  if (step != nullptr) {
    running_ = step->sequences_running;
    waiting_ = step->sequences_waiting;
  }
  if (engine.idle()) running_ = waiting_ = 0;
}

void EngineMetrics::Write(MetricsWriter& writer) const {
  const auto counter = [&](std::string_view name, std::string_view help, const Counter& count) {
    writer.Counter(name, help, static_cast<double>(count.value()));
  };
  counter("penstock_engine_steps_total", "Batches computed", steps_);
  counter("penstock_engine_prefill_tokens_total", "Positions of prompts computed", prefill_tokens_);
  counter("penstock_engine_decode_tokens_total", "Positions of answers computed", decode_tokens_);
  counter("penstock_engine_preemptions_total", "Sequences that had to give up their memory",
          preemptions_);
  counter("penstock_engine_mapped_changed_total",
          "Requests ended because a mapped block changed under them", changed_);
  writer.Histogram("penstock_engine_step_seconds", "Of each batch", step_seconds_);
  const std::lock_guard lock(mutex_);
  constexpr auto kSequences = "penstock_engine_sequences";
  constexpr auto kSequencesHelp = "Sequences, by what they do";
  writer.Gauge(kSequences, kSequencesHelp, running_, {{"state", "running"}});
  writer.Gauge(kSequences, kSequencesHelp, waiting_, {{"state", "waiting"}});
  writer.Gauge(kSequences, kSequencesHelp, std::max(0, reserved_), {{"state", "reserved"}});
  constexpr auto kBytes = "penstock_pool_bytes";
  constexpr auto kBytesHelp =
      "KV memory: held by sequences, cached for reuse, or free (empty, or not yet touched)";
  const auto bytes = [&](const char* state, std::size_t n) {
    writer.Gauge(kBytes, kBytesHelp, static_cast<double>(n), {{"state", state}});
  };
  bytes("held", pool_.bytes_held);
  bytes("cached", pool_.bytes_cached);
  bytes("free", pool_.bytes_budget - pool_.bytes_held - pool_.bytes_cached);
  writer.Gauge("penstock_pool_mapped_bytes",
               "Of blocks that sequences read in mapped memory of a store node, beside the pool's",
               static_cast<double>(pool_.bytes_mapped));
  std::int64_t evicted = 0;
  for (const KvPool::GroupStats& group : pool_.groups) evicted += group.slabs_evicted;
  writer.Counter("penstock_pool_evicted_slabs_total", "Cached slabs that made room for others",
                 static_cast<double>(evicted));
}

void WriteLedger(const Ledger& ledger, MetricsWriter& writer) {
  const auto gauge = [&](std::string_view name, std::string_view help, std::size_t value) {
    writer.Gauge(name, help, static_cast<double>(value));
  };
  gauge("penstock_ledger_attempts_live", "Attempts that this worker has something of",
        ledger.attempts);
  gauge("penstock_ledger_held_bytes", "KV memory that is held for them", ledger.bytes_held);
  gauge("penstock_ledger_draining_bytes",
        "Of that, memory of ended attempts until the last read into it has ended",
        ledger.bytes_draining);
  gauge("penstock_ledger_unowned_bytes", "KV memory held for nobody; zero at rest, else a leak",
        ledger.owned ? 0 : ledger.bytes_held);
}

}  // namespace penstock::engine
