// SPDX-License-Identifier: Apache-2.0
#include "decode/engine_adapter.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/clock_id.h"

namespace penstock::decode {
namespace {

constexpr std::size_t kSentAtOnceMax = 2;  // Answers of one step.

worker::PromptImports::Key KeyOf(JobId job) { return static_cast<std::uint64_t>(job); }

}  // namespace

using engine::Engine;
using transfer::HandoffReceiver;

EngineAdapter::EngineAdapter(Loop& loop, std::unique_ptr<Engine> engine)
    : loop_(loop), pool_(engine->pool()), imports_(loop) {
  meter_->SetPrefillRate(engine::MeasurePrefillRate(*engine));
  thread_ = std::make_unique<engine::EngineThread>(
      std::move(engine), [this](Engine& e, const engine::StepReport& report) { OnStep(e, report); },
      [meter = meter_](Engine& e, const engine::EngineThread::Round& round) {
        meter->Update(e, round);
      });
}

EngineAdapter::~EngineAdapter() { target_->state = nullptr; }

void EngineAdapter::Connect(DecodeState& state) { target_->state = &state; }

void EngineAdapter::Reserve(JobId job, std::int32_t tokens, std::vector<Chain> chains,
                            LossClass accepts, std::uint32_t tenant,
                            std::function<void(absl::StatusOr<Room>)> done) {
  thread_->Post([this, job, tokens, chains = std::move(chains), accepts, tenant,
                 done = std::move(done)](Engine& engine) {
    const absl::StatusOr<engine::Reservation> reserved =
        engine.Reserve(tokens, chains, accepts, tenant);
    if (!reserved.ok()) {
      loop_.Post([target = target_, done, why = reserved.status()] {
        if (target->state != nullptr) done(why);
      });
      return;
    }
    jobs_[job] = {.reservation = reserved->id,
                  .reserved_tokens = tokens,
                  .request = std::nullopt,
                  .live = {}};
    Room room{.reused_tokens = reserved->reused_tokens};
    for (std::size_t g = 0; g < reserved->blocks.size(); ++g) {
      const engine::SequenceInput::Blocks& blocks = reserved->blocks[g];
      HandoffReceiver::Target::Group group{.first_block = blocks.first_block, .slabs = {}};
      const auto number = static_cast<std::int32_t>(g);
      for (const engine::SlabRef slab : blocks.slabs) {
        group.slabs.push_back(pool_.Address(number, slab));
        if (pool_.staged()) group.on_gpus.push_back(slab.index);
      }
      room.bytes += group.slabs.size() * pool_.slab_bytes(number);
      room.groups.push_back(std::move(group));
    }
    loop_.Post([target = target_, done, room = std::move(room)]() mutable {
      if (target->state != nullptr) done(std::move(room));
    });
  });
}

void EngineAdapter::EndReservation(JobId job, std::int32_t blocks_valid, const Lineage& came) {
  thread_->Post([this, job, blocks_valid, came](Engine& engine) {
    const auto it = jobs_.find(job);
    if (it == jobs_.end()) return;
    const std::int64_t tokens = std::int64_t{blocks_valid} * pool_.block_tokens();
    engine.EndReservation(
        *it->second.reservation,
        static_cast<std::int32_t>(std::min<std::int64_t>(tokens, it->second.reserved_tokens)),
        came);
    jobs_.erase(it);
  });
}

void EngineAdapter::Run(JobId id, std::unique_ptr<Work> work, LossClass accepts,
                        const Lineage& came) {
  // Of std::function, which copies.
  const std::shared_ptr<Work> shared = std::move(work);
  const auto start = [this, id, shared, accepts, came,
                      coming = imports_.coming(KeyOf(id))](Engine& engine) {
    engine::Request request = std::move(static_cast<EngineWork&>(*shared).request);
    request.accepts = accepts;
    request.coming = coming;
    Start(engine, id, std::move(request), came);
  };
  thread_->Post([this, id, start](Engine& engine) {
    const Job& job = jobs_[id];
    if (!job.reservation.has_value()) return start(engine);
    thread_->Fill(engine, *job.reservation, start);
  });
}

void EngineAdapter::Start(Engine& engine, JobId id, engine::Request request, const Lineage& came) {
  Job& job = jobs_.at(id);
  const std::int32_t answers = request.n;
  absl::StatusOr<engine::RequestId> started = absl::CancelledError("nobody waits for it any more");
  if (!job.cancelled) {
    started = job.reservation.has_value() ? engine.Adopt(*job.reservation, std::move(request), came)
                                          : engine.Submit(std::move(request));
  }
  if (started.ok()) {
    job.request = *started;
    job.live.assign(static_cast<std::size_t>(answers), true);
    by_request_[*started] = id;
    return;
  }
  if (job.reservation.has_value()) {
    engine.EndReservation(*job.reservation, job.reserved_tokens, came);
  }
  const bool cancelled = job.cancelled;
  jobs_.erase(id);
  if (cancelled) return;
  loop_.Post([target = target_, id, why = started.status()] {
    if (target->state != nullptr) target->state->OnEnd(id, why);
  });
}

void EngineAdapter::Cancel(JobId id) {
  thread_->Post([this, id](Engine& engine) {
    const auto it = jobs_.find(id);
    if (it == jobs_.end()) return;
    if (!it->second.request.has_value()) {  // Its blocks are still on their way to the device.
      it->second.cancelled = true;
      return;
    }
    engine.Cancel(*it->second.request);
    by_request_.erase(*it->second.request);
    jobs_.erase(it);
  });
}

void EngineAdapter::Import(JobId job, std::vector<Chain> chains,
                           std::vector<kvstore::Fetcher::Source> sources, LossClass accepts,
                           std::uint32_t tenant, std::function<void()> ready,
                           std::function<void(const kvstore::Fetcher::Outcome&)> done) {
  worker::PromptImports::Events events = {
      .compute = ready,
      .changed =
          [this, job] {
            thread_->Post([this, job, coming = imports_.coming(KeyOf(job))](Engine& engine) {
              const auto it = jobs_.find(job);
              if (it == jobs_.end() || !it->second.request.has_value()) return;
              engine.SetComing(*it->second.request, coming);
            });
          },
      .done = [done](const worker::BlockImporter::Imported& imported) { done(imported.fetched); }};
  imports_.Begin(KeyOf(job),
                 {.chains = std::move(chains),
                  .sources = std::move(sources),
                  .accepts = accepts,
                  .tenant = tenant},
                 std::move(events));
}

void EngineAdapter::Fetch(JobId job, std::vector<HandoffReceiver::Target::Group> groups,
                          std::vector<Chain> chains, std::int32_t first_block,
                          std::vector<kvstore::Fetcher::Source> sources,
                          std::function<void(const kvstore::Fetcher::Outcome&)> done) {
  if (store_ == nullptr) {
    loop_.Post([target = target_, first_block, done = std::move(done)] {
      if (target->state != nullptr) done({.end_block = first_block});
    });
    return;
  }
  std::vector<kvstore::Fetcher::Group> to;
  for (std::size_t g = 0; g < groups.size(); ++g) {
    const auto number = static_cast<std::int32_t>(g);
    to.push_back({.group = number,
                  .layout = pool_.layout(number),
                  .first_block = groups[g].first_block,
                  .slabs = std::move(groups[g].slabs)});
  }
  fetches_[job] = store_->FetchTo(
      std::move(to), std::move(chains), first_block, std::move(sources),
      [this, job, done = std::move(done)](const kvstore::Fetcher::Outcome& fetched) {
        fetches_.erase(job);
        if (!fetched.mapped.empty() || !fetched.encoded.empty()) {
          // Before the reservation is filled, adopted, or ends.
          thread_->Post([this, job, mapped = fetched.mapped,
                         encoded = fetched.encoded](Engine& engine) {
            const auto it = jobs_.find(job);
            if (it == jobs_.end()) return;
            for (const kvstore::Fetcher::Mapped& block : mapped) {
              engine.MapReserved(*it->second.reservation, block.group, block.block, block.at);
            }
            for (const kvstore::Fetcher::Encoded& block : encoded) {
              engine.DecodeReserved(*it->second.reservation, block.group, block.block, block.as);
            }
          });
        }
        if (target_->state != nullptr) done(fetched);
      });
}

void EngineAdapter::CameOnDevice(JobId job, std::int32_t host_first, std::int32_t host_end) {
  thread_->Post([this, job, host_first, host_end](Engine& engine) {
    const auto it = jobs_.find(job);
    if (it != jobs_.end()) engine.CameOnDevice(*it->second.reservation, host_first, host_end);
  });
}

void EngineAdapter::EndImport(JobId job) { imports_.End(KeyOf(job)); }

void EngineAdapter::CancelFetch(JobId job) {
  const auto it = fetches_.find(job);
  if (it != fetches_.end()) store_->Cancel(it->second);
}

void EngineAdapter::StopChoice(JobId id, std::int32_t choice) {
  thread_->Post([this, id, choice](Engine& engine) {
    const auto it = jobs_.find(id);
    if (it == jobs_.end() || choice < 0 ||
        choice >= static_cast<std::int32_t>(it->second.live.size()) ||
        !it->second.live[static_cast<std::size_t>(choice)]) {
      return;  // It ended by itself meanwhile.
    }
    const engine::RequestId request = *it->second.request;
    engine.StopChoice(request, choice);
    // The engine does not report an end that it was told of.
    engine::TokenOutput output;
    output.request = request;
    output.choice = choice;
    output.finish = engine::FinishReason::kStop;
    Tell(engine, request, {&output, 1});
  });
}

void EngineAdapter::OnStep(Engine& engine, const engine::StepReport& report) {
  if (!report.reached.empty()) {
    std::vector<std::pair<JobId, std::int32_t>> reached;
    for (const auto& [request, block] : report.reached) {
      // Of a cancelled one nobody wants to know.
      const auto it = by_request_.find(request);
      if (it != by_request_.end()) reached.emplace_back(it->second, block);
    }
    loop_.Post([this, target = target_, reached = std::move(reached)] {
      if (target->state == nullptr) return;
      for (const auto& [job, block] : reached) imports_.Reached(KeyOf(job), block);
    });
  }
  // Sending one answer's token takes some 40 us: a few go out from here, which is a waking sooner;
  // many are for the loop's thread, beside the next step.
  const bool few = report.outputs.size() <= kSentAtOnceMax;
  for (auto begin = report.outputs.begin(); begin != report.outputs.end();) {
    const engine::RequestId request = begin->request;
    const auto end = std::find_if(begin, report.outputs.end(), [&](const engine::TokenOutput& o) {
      return o.request != request;
    });
    // Of a cancelled one nobody wants to know.
    if (by_request_.contains(request)) Tell(engine, request, {begin, end}, few);
    begin = end;
  }
}

void EngineAdapter::Tell(Engine& engine, engine::RequestId request,
                         std::span<const engine::TokenOutput> outputs, bool at_once) {
  const JobId id = by_request_.at(request);
  // Not the request's fault: nothing of the step is told, and another attempt may go on from here.
  const auto aborted = std::ranges::find_if(
      outputs, [](const engine::TokenOutput& o) { return absl::IsAborted(o.error); });
  if (aborted != outputs.end()) {
    by_request_.erase(request);
    jobs_.erase(id);
    loop_.Post([target = target_, id, why = aborted->error] {
      if (target->state != nullptr) target->state->OnEnd(id, why);
    });
    return;
  }
  Job& job = jobs_.at(id);
  auto tokens = std::make_shared<EngineTokens>();
  tokens->sampled_unix_ns = UnixNanos();
  for (const engine::TokenOutput& output : outputs) {
    tokens->outputs.push_back(output);
    if (output.finish.has_value()) job.live[static_cast<std::size_t>(output.choice)] = false;
  }
  const bool last = std::ranges::none_of(job.live, [](bool live) { return live; });
  if (last) {
    tokens->stats = engine.Stats(request);
    by_request_.erase(request);
    jobs_.erase(id);
  }
  auto task = [target = target_, id, tokens = std::move(tokens), last] {
    if (target->state == nullptr) return;
    target->state->OnTokens(id, *tokens);
    if (last) target->state->OnEnd(id, absl::OkStatus());
  };
  if (at_once) {
    loop_.PostOrRun(std::move(task));
  } else {
    loop_.Post(std::move(task));
  }
}

}  // namespace penstock::decode
