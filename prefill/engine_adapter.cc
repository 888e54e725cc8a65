// SPDX-License-Identifier: Apache-2.0
#include "prefill/engine_adapter.h"

#include <algorithm>
#include <chrono>
#include <utility>
#include <vector>

#include "base/check.h"

namespace penstock::prefill {

using transfer::HandoffSender;

namespace {

worker::PromptImports::Key KeyOf(JobId job) { return static_cast<std::uint64_t>(job); }

}  // namespace

EngineAdapter::EngineAdapter(Loop& loop, std::unique_ptr<engine::Engine> engine, const KvSpec& spec,
                             bool trace)
    : loop_(loop),
      pool_(engine->pool()),
      spec_(spec),
      block_tokens_(static_cast<std::uint32_t>(engine->pool().block_tokens())),
      trace_(trace),
      imports_(loop) {
  meter_->SetPrefillRate(engine::MeasurePrefillRate(*engine));
  engine->set_layer_done(
      [this](std::int32_t layer, std::span<const engine::PrefillBlocks> prefills) {
        OnLayer(layer, prefills);
      });
  thread_ = std::make_unique<engine::EngineThread>(
      std::move(engine),
      [this](engine::Engine&, const engine::StepReport& report) { OnStep(report); },
      [this, meter = meter_](engine::Engine& e, const engine::EngineThread::Round& round) {
        meter->Update(e, round);
        if (trace_) awake_ = SteadyClock().Now();
      });
}

// A complete prefill stays until End: the decode worker says when it has all.
void EngineAdapter::OnStep(const engine::StepReport& report) {
  if (!report.reached.empty()) {
    std::vector<std::pair<JobId, std::int32_t>> reached;
    for (const auto& [request, block] : report.reached) {
      reached.emplace_back(jobs_.at(request), block);
    }
    loop_.Post([this, target = target_, reached = std::move(reached)] {
      if (target->state == nullptr) return;
      for (const auto& [job, block] : reached) imports_.Reached(KeyOf(job), block);
    });
  }
  std::vector<JobId> computed;
  for (const engine::RequestId request : report.prefilled) computed.push_back(jobs_.at(request));
  std::vector<JobId> changed;
  for (const engine::RequestId request : report.prefills_changed) {
    changed.push_back(jobs_.at(request));
  }
  if (computed.empty() && changed.empty()) return;
  PostAfterCopies([target = target_, computed = std::move(computed), changed = std::move(changed)] {
    if (target->state == nullptr) return;
    for (const JobId job : computed) target->state->OnComputed(job);
    for (const JobId job : changed) {
      target->state->OnRefused(job, absl::AbortedError("a mapped block changed under the prompt"));
    }
  });
}

// To the loop, when the blocks that `task` tells of can be read.
void EngineAdapter::PostAfterCopies(std::function<void()> task) {
  pool_.AfterCopies(
      [&loop = loop_, task = std::move(task)]() mutable { loop.Post(std::move(task)); });
}

EngineAdapter::~EngineAdapter() { target_->state = nullptr; }

void EngineAdapter::Connect(PrefillState& state) { target_->state = &state; }

void EngineAdapter::Submit(JobId job, Prompt prompt) {
  if (prompt.sources.empty()) return Compute(job, std::move(prompt));
  worker::BlockImporter::ImportOrder order = {.chains = prompt.Chains(block_tokens_),
                                              .sources = std::exchange(prompt.sources, {}),
                                              .accepts = prompt.accepts,
                                              .tenant = prompt.tenant};
  // Of std::function, which copies.
  const auto shared = std::make_shared<Prompt>(std::move(prompt));
  worker::PromptImports::Events events = {
      .compute = [this, job, shared] { Compute(job, std::move(*shared)); },
      .changed = [this, job] { SetComing(job); },
      .done =
          [this, job](const worker::BlockImporter::Imported& imported) {
            if (target_->state != nullptr) target_->state->OnImported(job, imported.fetched);
          }};
  imports_.Begin(KeyOf(job), std::move(order), std::move(events));
}

void EngineAdapter::SetComing(JobId job) {
  thread_->Post([this, job, coming = imports_.coming(KeyOf(job))](engine::Engine& engine) {
    const auto it = requests_.find(job);
    if (it != requests_.end()) engine.SetComing(it->second, coming);
  });
}

void EngineAdapter::Compute(JobId job, Prompt prompt) {
  thread_->Post([this, job, coming = imports_.coming(KeyOf(job)),
                 prompt = std::move(prompt)](engine::Engine& engine) mutable {
    absl::StatusOr<engine::RequestId> request =
        engine.SubmitPrefill({.tokens = std::move(prompt.tokens),
                              .priority = prompt.priority,
                              .root = prompt.root,
                              .tenant = prompt.tenant,
                              .accepts = prompt.accepts,
                              .first_missing = prompt.first_missing,
                              .to_host = !prompt.on_device,
                              .coming = coming});
    if (!request.ok()) {
      loop_.Post([target = target_, job, why = request.status()] {
        if (target->state != nullptr) target->state->OnRefused(job, why);
      });
      return;
    }
    requests_[job] = *request;
    jobs_[*request] = job;
    if (prompt.on_device) on_device_.insert(*request);
    if (trace_) awake_ = SteadyClock().Now();
  });
}

void EngineAdapter::CopyMapped(JobId job, std::int32_t first_block, std::int32_t end_block) {
  thread_->Post([this, job, first_block, end_block](engine::Engine& engine) {
    const auto it = requests_.find(job);
    if (it == requests_.end()) return;
    const absl::Status status = engine.CopyMapped(it->second, first_block, end_block);
    if (status.ok()) return;
    loop_.Post([target = target_, job, status] {
      if (target->state != nullptr) target->state->OnRefused(job, status);
    });
  });
}

void EngineAdapter::End(JobId job) {
  imports_.End(KeyOf(job));
  thread_->Post([this, job](engine::Engine& engine) {
    const auto it = requests_.find(job);
    if (it == requests_.end()) return;  // It was refused, or was never to be computed.
    engine.EndPrefill(it->second);
    jobs_.erase(it->second);
    on_device_.erase(it->second);
    requests_.erase(it);
  });
}

std::optional<EngineAdapter::Range> EngineAdapter::MappedOf(const engine::PrefillBlocks& prefill) {
  std::optional<Range> range;
  for (std::size_t g = 0; g < prefill.blocks.size(); ++g) {
    const engine::SequenceInput::Blocks& blocks = prefill.blocks[g];
    for (std::int32_t b = std::max(prefill.first_block, prefill.first_needed[g]);
         b < prefill.end_block; ++b) {
      const engine::SlabRef slab = blocks.slabs[static_cast<std::size_t>(b - blocks.first_block)];
      if (!engine::KvPool::IsMapped(slab)) continue;
      if (!range.has_value()) range = Range{b, b + 1};
      range->first_block = std::min(range->first_block, b);
      range->end_block = std::max(range->end_block, b + 1);
    }
  }
  return range;
}

void EngineAdapter::OnLayer(std::int32_t layer, std::span<const engine::PrefillBlocks> prefills) {
  const KvLayerRef cache = spec_.layers[static_cast<std::size_t>(layer)];
  const auto g = static_cast<std::size_t>(cache.group);
  const MonoTime computed = trace_ ? SteadyClock().Now() : MonoTime();
  const bool last = static_cast<std::size_t>(layer) + 1 == spec_.layers.size();
  Layer on_host, on_device;
  std::shared_ptr<const Event> written;
  for (const engine::PrefillBlocks& prefill : prefills) {
    const JobId job = jobs_.at(prefill.request);
    const bool stays = on_device_.contains(prefill.request);
    if (stays && written == nullptr) written = pool_.Written();
    auto& [passes, mapped, all] = stays ? on_device : on_host;
    if (trace_ && last && prefill.rows > 0) {
      const PrefillState::Pass pass = {.begin = awake_, .end = computed, .tokens = prefill.rows};
      passes.emplace_back(job, pass);
    }
    if (layer == 0) {
      if (const std::optional<Range> range = MappedOf(prefill)) mapped.emplace_back(job, *range);
    }
    const engine::SequenceInput::Blocks& blocks = prefill.blocks[g];
    bool more = false;  // The block before is in what was told last.
    for (std::int32_t b = std::max(prefill.first_block, prefill.first_needed[g]);
         b < prefill.end_block; ++b) {
      const engine::SlabRef slab = blocks.slabs[static_cast<std::size_t>(b - blocks.first_block)];
      if (engine::KvPool::IsMapped(slab)) {  // Peers read our own pool alone.
        more = false;
        continue;
      }
      if (!std::exchange(more, true)) {
        all.emplace_back(job, HandoffSender::Told{.group = cache.group,
                                                  .cache_layer = cache.cache_layer,
                                                  .first_block = b,
                                                  .lineage = prefill.lineage,
                                                  .slabs = {},
                                                  .computed = computed,
                                                  .written = stays ? written : nullptr});
      }
      all.back().second.slabs.push_back(slab.index);
    }
  }
  const auto tell = [target = target_](const Layer& done) {
    if (target->state == nullptr) return;
    // First, since the last thing told may end a job.
    for (const auto& [job, pass] : done.passes) target->state->OnPass(job, pass);
    for (const auto& [job, range] : done.mapped) {
      target->state->OnMapped(job, range.first_block, range.end_block);
    }
    for (const auto& [job, told] : done.told) target->state->OnTold(job, told);
  };
  if (!on_device.empty()) {
    loop_.Post([tell, told = std::move(on_device)] { tell(told); });
  }
  if (!on_host.empty()) {
    PostAfterCopies([tell, told = std::move(on_host)] { tell(told); });
  }
}

}  // namespace penstock::prefill
