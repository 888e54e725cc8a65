// SPDX-License-Identifier: Apache-2.0
#include "engine/engine.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/check.h"
#include "base/status.h"
#include "engine/engine_impl.h"

namespace penstock::engine {
namespace {

absl::Status CheckTokens(std::string_view field, std::span<const TokenId> tokens,
                         std::int32_t vocab) {
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] >= 0 && tokens[i] < vocab) continue;
    return absl::InvalidArgumentError(absl::StrCat(ToAbsl(field), "[", i, "] must be from 0 to ",
                                                   vocab - 1, ", got ", tokens[i]));
  }
  return absl::OkStatus();
}

absl::Status CheckOptions(const Engine::Options& options, std::int32_t model_context_tokens) {
  RETURN_IF_ERROR(CheckRange("sequences_max", options.sequences_max, 1, 4096));
  RETURN_IF_ERROR(CheckRange("step_tokens", options.step_tokens, options.sequences_max, 1 << 20));
  RETURN_IF_ERROR(CheckRange("chunk_tokens", options.chunk_tokens, 1, 1 << 20));
  RETURN_IF_ERROR(CheckRange("requests_max", options.requests_max, 1, 1 << 30));
  RETURN_IF_ERROR(
      CheckRange("context_tokens_max", options.context_tokens_max, 0, model_context_tokens));
  for (const auto& [field, rate] :
       {std::pair{"swap_bytes_per_s", options.swap_bytes_per_s},
        std::pair{"compute_tokens_per_s", options.compute_tokens_per_s}}) {
    if (rate > 0 && rate <= std::numeric_limits<double>::max()) continue;
    return absl::InvalidArgumentError(absl::StrCat(field, " must be above 0, got ", rate));
  }
  return absl::OkStatus();
}

}  // namespace

std::string_view ToString(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kError:
      return "error";
  }
  return "?";
}

absl::Status Engine::Impl::CheckPrompt(std::string_view field,
                                       std::span<const TokenId> tokens) const {
  const auto count = static_cast<std::int64_t>(tokens.size());
  if (count > options_.context_tokens_max) {
    return absl::InvalidArgumentError(absl::StrCat(
        ToAbsl(field), " has ", count, " tokens, the context holds ", options_.context_tokens_max));
  }
  if (count > tokens_max_) {
    return absl::InvalidArgumentError(
        absl::StrCat(ToAbsl(field), " has ", count, " tokens, the KV pool of ",
                     parts_.pool->stats().bytes_budget, " bytes holds ", tokens_max_));
  }
  if (count == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(ToAbsl(field), " must have at least 1 token, got 0"));
  }
  return CheckTokens(field, tokens, parts_.vocab);
}

absl::Status Engine::Impl::Check(const Request& request) const {
  RETURN_IF_ERROR(CheckPrompt("prompt", request.prompt));
  // At least one token is the prompt's own.
  RETURN_IF_ERROR(CheckRange("emitted_tokens", request.emitted_tokens, 0,
                             static_cast<std::int64_t>(request.prompt.size()) - 1));
  RETURN_IF_ERROR(CheckRange("first_choice", request.first_choice, 0, 63));
  RETURN_IF_ERROR(CheckRange("n", request.n, 1, request.emitted_tokens > 0 ? 1 : 64));
  RETURN_IF_ERROR(
      CheckRange("max_tokens", request.max_tokens, 1, std::numeric_limits<std::int32_t>::max()));
  RETURN_IF_ERROR(CheckTokens("stop_tokens", request.stop_tokens, parts_.vocab));
  return request.sampling.Validate(parts_.vocab);
}

absl::StatusOr<RequestId> Engine::Impl::Submit(Request request) {
  RETURN_IF_ERROR(Check(request));
  RETURN_IF_ERROR(CheckQueue());
  const RequestId id{next_id_++};
  scheduler_.Add(*MakeLive(id, std::move(request)).answers[0].sequence);
  return id;
}

absl::Status Engine::Impl::CheckQueue() const {
  if (scheduler_.waiting_to_start() < options_.requests_max) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(scheduler_.waiting_to_start(),
                                                   " requests are waiting, requests_max is ",
                                                   options_.requests_max));
}

Live& Engine::Impl::MakeLive(RequestId id, Request request) {
  const auto prompt_tokens = static_cast<std::int32_t>(request.prompt.size());
  request.max_tokens = std::min(request.max_tokens, tokens_max_ - prompt_tokens + 1);
  Live& live = live_[id];
  live.stats.prompt_tokens = prompt_tokens;
  live.answers.resize(static_cast<std::size_t>(request.n));
  live.answers[0].sequence = std::make_unique<Sequence>(
      *parts_.pool, Rank{request.priority, static_cast<std::uint64_t>(id), 0}, request.prompt,
      request.root, request.tenant, request.accepts);
  live.answers[0].sequence->answers_to_come = request.n - 1;
  live.answers[0].sequence->coming = request.coming;
  live.request = std::move(request);
  return live;
}

void Engine::Impl::End(Live& live, std::unique_ptr<Sequence> sequence) {
  scheduler_.Remove(*sequence);
  live.stats.preemptions += sequence->preemptions;
  live.stats.reused_tokens += sequence->reused_tokens;
}

void Engine::Impl::EndIfFinished(RequestId id, std::int64_t step) {
  const auto it = live_.find(id);
  if (!it->second.finished()) return;
  for (Live::Answer& answer : it->second.answers) {
    if (answer.sequence != nullptr) End(it->second, std::move(answer.sequence));
  }
  finished_[id] = {.stats = it->second.stats, .step = step};
  live_.erase(it);
}

void Engine::Impl::FinishAll(RequestId id, FinishReason reason, const absl::Status& error,
                             std::vector<TokenOutput>& outputs) {
  Live& live = live_.at(id);
  for (std::size_t c = 0; c < live.answers.size(); ++c) {
    if (std::exchange(live.answers[c].finished, true)) continue;
    TokenOutput output;
    output.request = id;
    output.choice = static_cast<std::int32_t>(c);
    output.finish = reason;
    output.error = error;
    outputs.push_back(std::move(output));
  }
}

void Engine::Impl::Cancel(RequestId id) {
  if (!live_.contains(id)) return;
  FinishAll(id, FinishReason::kCancelled, absl::OkStatus(), cancelled_);
  EndIfFinished(id, step_ + 1);
}

void Engine::Impl::StopChoice(RequestId id, std::int32_t choice) {
  const auto it = live_.find(id);
  if (it == live_.end() || choice < 0 || choice >= it->second.request.n) return;
  Live::Answer& answer = it->second.answers[static_cast<std::size_t>(choice)];
  if (answer.finished) return;
  answer.finished = true;
  // Before the fork the first answer's sequence is everybody's.
  if (it->second.forked) End(it->second, std::move(answer.sequence));
  EndIfFinished(id, step_);
}

std::optional<RequestStats> Engine::Impl::Stats(RequestId id) const {
  if (const auto it = finished_.find(id); it != finished_.end()) return it->second.stats;
  if (const auto it = prefills_.find(id); it != prefills_.end()) {
    const Sequence& sequence = *it->second.sequence;
    return RequestStats{.prompt_tokens = static_cast<std::int32_t>(sequence.tokens.size()),
                        .reused_tokens = sequence.reused_tokens};
  }
  const auto it = live_.find(id);
  if (it == live_.end()) return std::nullopt;
  RequestStats stats = it->second.stats;
  for (const Live::Answer& answer : it->second.answers) {
    if (answer.sequence == nullptr) continue;
    stats.preemptions += answer.sequence->preemptions;
    stats.reused_tokens += answer.sequence->reused_tokens;
  }
  return stats;
}

absl::StatusOr<std::unique_ptr<Engine>> Engine::MakeOn(RunnerParts parts, const Options& options) {
  RETURN_IF_ERROR(CheckOptions(options, parts.context_tokens_max));
  CHECK_GE(parts.runner->rows_max(), options.step_tokens);
  CHECK_GE(parts.runner->logit_rows_max(), options.sequences_max);
  Options used = options;
  if (used.context_tokens_max == 0) used.context_tokens_max = parts.context_tokens_max;
  return std::unique_ptr<Engine>(new Engine(std::make_unique<Impl>(std::move(parts), used)));
}

Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Engine::~Engine() = default;

absl::StatusOr<RequestId> Engine::Submit(Request request) {
  return impl_->Submit(std::move(request));
}
void Engine::Cancel(RequestId request) { impl_->Cancel(request); }
void Engine::StopChoice(RequestId request, std::int32_t choice) {
  impl_->StopChoice(request, choice);
}
absl::StatusOr<RequestId> Engine::SubmitPrefill(PrefillRequest request) {
  return impl_->SubmitPrefill(std::move(request));
}
void Engine::set_layer_done(LayerDone layer_done) { impl_->set_layer_done(std::move(layer_done)); }
void Engine::SetComing(RequestId request, const Coming& coming) {
  impl_->SetComing(request, coming);
}
absl::Status Engine::CopyMapped(RequestId request, std::int32_t first_block,
                                std::int32_t end_block) {
  return impl_->CopyMapped(request, first_block, end_block);
}
void Engine::EndPrefill(RequestId request) { impl_->EndPrefill(request); }
absl::StatusOr<Reservation> Engine::Reserve(std::int32_t tokens, std::span<const Chain> chains,
                                            LossClass accepts, std::uint32_t tenant) {
  return impl_->Reserve(tokens, chains, accepts, tenant);
}
absl::StatusOr<RequestId> Engine::Adopt(ReservationId reservation, Request request,
                                        const Lineage& came) {
  return impl_->Adopt(reservation, std::move(request), came);
}
void Engine::MapReserved(ReservationId reservation, std::int32_t group, std::int32_t block,
                         std::shared_ptr<const MappedBlock> mapped) {
  impl_->MapReserved(reservation, group, block, std::move(mapped));
}
void Engine::CameOnDevice(ReservationId reservation, std::int32_t host_first,
                          std::int32_t host_end) {
  impl_->CameOnDevice(reservation, host_first, host_end);
}
void Engine::DecodeReserved(ReservationId reservation, std::int32_t group, std::int32_t block,
                            std::shared_ptr<const kernels::EncodedBlock> encoded) {
  impl_->DecodeReserved(reservation, group, block, std::move(encoded));
}
void Engine::SealReserved(ReservationId reservation, std::int32_t group, std::int32_t block,
                          LossClass loss) {
  impl_->SealReserved(reservation, group, block, loss);
}
void Engine::Fill(ReservationId reservation, std::function<void()> done) {
  impl_->Fill(reservation, std::move(done));
}
void Engine::EndReservation(ReservationId reservation, std::int32_t valid_tokens,
                            const Lineage& came) {
  impl_->EndReservation(reservation, valid_tokens, came);
}
std::int32_t Engine::reservations() const { return impl_->reservations(); }
bool Engine::idle() const { return impl_->idle(); }
StepReport Engine::Step() { return impl_->Step(); }
std::optional<RequestStats> Engine::Stats(RequestId request) const { return impl_->Stats(request); }
KvPool& Engine::pool() { return impl_->pool(); }
KvPool::Stats Engine::PoolStats() const { return impl_->pool().stats(); }
std::size_t Engine::swap_bytes_used() const { return impl_->swap_bytes_used(); }
std::int32_t Engine::tokens_max() const { return impl_->tokens_max(); }
const Engine::Options& Engine::options() const { return impl_->options(); }

}  // namespace penstock::engine
