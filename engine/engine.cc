// SPDX-License-Identifier: Apache-2.0
#include "engine/engine.h"

#include <algorithm>
#include <limits>
#include <map>
#include <utility>

#include "base/check.h"
#include "base/status.h"
#include "engine/scheduler.h"

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

// A request from Submit until its last answer ends.
struct Live {
  Request request;
  RequestStats stats;   // Of sequences that are gone.
  bool forked = false;  // The prompt is computed, every answer has its own sequence.
  struct Answer {
    bool finished = false;
    std::unique_ptr<Sequence> sequence;  // Until then the first one's is the prompt.
  };
  std::vector<Answer> answers;

  bool finished() const {
    return std::all_of(answers.begin(), answers.end(), [](const Answer& a) { return a.finished; });
  }
};

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

class Engine::Impl {
 public:
  Impl(RunnerParts parts, const Options& options)
      : parts_(std::move(parts)),
        options_(options),
        tokens_max_(TokensThatFit(*parts_.pool, options.context_tokens_max)),
        scheduler_(*parts_.pool, parts_.space,
                   {.step_tokens = options.step_tokens,
                    .chunk_tokens = options.chunk_tokens,
                    .sequences_max = options.sequences_max,
                    .share_prefixes = options.share_prefixes,
                    .swap_bytes = options.swap_bytes,
                    .swap_bytes_per_s = options.swap_bytes_per_s,
                    .compute_tokens_per_s = options.compute_tokens_per_s}) {}

  absl::StatusOr<RequestId> Submit(Request request);
  void Cancel(RequestId id);
  void StopChoice(RequestId id, std::int32_t choice);
  bool idle() const { return live_.empty() && cancelled_.empty(); }
  StepReport Step();
  std::optional<RequestStats> Stats(RequestId id) const;

  const KvPool& pool() const { return *parts_.pool; }
  const Options& options() const { return options_; }
  std::int32_t tokens_max() const { return tokens_max_; }
  std::size_t swap_bytes_used() const { return scheduler_.swap_bytes_used(); }

 private:
  struct Finished {
    RequestStats stats;
    std::int64_t step = 0;  // Whose report told the end.
  };

  absl::Status Check(const Request& request) const;
  void Run(std::span<const Scheduler::Item> items, StepReport& report);
  // The next token of one answer, to be drawn from `logits`.
  struct Draw {
    const Request* request = nullptr;
    std::int32_t choice = 0;
    std::span<const TokenId> tokens;  // The prompt, and the answer so far.
    std::span<const float> logits;
    absl::StatusOr<SampledToken> sampled;

    std::span<const TokenId> answer() const { return tokens.subspan(request->prompt.size()); }
  };
  void AddDraws(const Sequence& sequence, std::span<const float> logits,
                std::vector<Draw>& draws) const;
  void Emit(RequestId id, Sequence& sequence, std::span<Draw> draws, StepReport& report);
  void Fork(RequestId id, Live& live, std::span<Draw> draws, StepReport& report);
  // Whether that was the answer's last token.
  bool Report(RequestId id, Draw& draw, StepReport& report) const;
  void End(Live& live, std::unique_ptr<Sequence> sequence);
  void EndIfFinished(RequestId id, std::int64_t step);

  RunnerParts parts_;
  const Options options_;
  const std::int32_t tokens_max_;
  Scheduler scheduler_;
  std::map<RequestId, Live> live_;  // After the pool: they give their blocks back.
  std::map<RequestId, Finished> finished_;
  std::vector<TokenOutput> cancelled_;  // To be reported.
  std::uint64_t next_id_ = 1;
  std::int64_t step_ = 0;
};

absl::Status Engine::Impl::Check(const Request& request) const {
  const auto prompt_tokens = static_cast<std::int64_t>(request.prompt.size());
  if (prompt_tokens > options_.context_tokens_max) {
    return absl::InvalidArgumentError(absl::StrCat(
        "prompt has ", prompt_tokens, " tokens, the context holds ", options_.context_tokens_max));
  }
  if (prompt_tokens > tokens_max_) {
    return absl::InvalidArgumentError(
        absl::StrCat("prompt has ", prompt_tokens, " tokens, the KV pool of ",
                     parts_.pool->stats().bytes_budget, " bytes holds ", tokens_max_));
  }
  if (prompt_tokens == 0) {
    return absl::InvalidArgumentError("prompt must have at least 1 token, got 0");
  }
  RETURN_IF_ERROR(CheckTokens("prompt", request.prompt, parts_.vocab));
  RETURN_IF_ERROR(CheckRange("n", request.n, 1, 64));
  RETURN_IF_ERROR(
      CheckRange("max_tokens", request.max_tokens, 1, std::numeric_limits<std::int32_t>::max()));
  RETURN_IF_ERROR(CheckTokens("stop_tokens", request.stop_tokens, parts_.vocab));
  return request.sampling.Validate(parts_.vocab);
}

absl::StatusOr<RequestId> Engine::Impl::Submit(Request request) {
  RETURN_IF_ERROR(Check(request));
  if (scheduler_.waiting_to_start() >= options_.requests_max) {
    return absl::ResourceExhaustedError(absl::StrCat(scheduler_.waiting_to_start(),
                                                     " requests are waiting, requests_max is ",
                                                     options_.requests_max));
  }
  const RequestId id{next_id_++};
  const auto prompt_tokens = static_cast<std::int32_t>(request.prompt.size());
  request.max_tokens = std::min(request.max_tokens, tokens_max_ - prompt_tokens + 1);
  Live& live = live_[id];
  live.stats.prompt_tokens = prompt_tokens;
  live.answers.resize(static_cast<std::size_t>(request.n));
  live.answers[0].sequence = std::make_unique<Sequence>(
      *parts_.pool, Rank{request.priority, static_cast<std::uint64_t>(id), 0}, request.prompt,
      request.salt);
  live.answers[0].sequence->answers_to_come = request.n - 1;
  live.request = std::move(request);
  scheduler_.Add(*live.answers[0].sequence);
  return id;
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

void Engine::Impl::Cancel(RequestId id) {
  const auto it = live_.find(id);
  if (it == live_.end()) return;
  for (std::size_t c = 0; c < it->second.answers.size(); ++c) {
    Live::Answer& answer = it->second.answers[c];
    if (answer.finished) continue;
    answer.finished = true;
    TokenOutput output;
    output.request = id;
    output.choice = static_cast<std::int32_t>(c);
    output.finish = FinishReason::kCancelled;
    cancelled_.push_back(std::move(output));
  }
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

StepReport Engine::Impl::Step() {
  ++step_;
  std::erase_if(finished_, [&](const auto& f) { return step_ - f.second.step >= 2; });
  StepReport report;
  report.outputs = std::exchange(cancelled_, {});
  const std::vector<Scheduler::Item> items = scheduler_.Plan();
  report.preempted = scheduler_.preempted();
  if (!items.empty()) Run(items, report);
  std::stable_sort(report.outputs.begin(), report.outputs.end(),
                   [](const TokenOutput& a, const TokenOutput& b) {
                     return std::pair(a.request, a.choice) < std::pair(b.request, b.choice);
                   });
  report.sequences_running = scheduler_.running();
  report.sequences_waiting = scheduler_.waiting();
  return report;
}

void Engine::Impl::Run(std::span<const Scheduler::Item> items, StepReport& report) {
  std::vector<SequenceInput> inputs;
  std::vector<bool> wants_logits;
  for (const Scheduler::Item& item : items) {
    const Sequence& sequence = *item.sequence;
    wants_logits.push_back(item.wants_logits());
    (sequence.pending() == 1 ? report.decode_rows : report.prefill_rows) += item.rows;
    inputs.push_back({.tokens = std::span(sequence.tokens)
                                    .subspan(static_cast<std::size_t>(sequence.computed),
                                             static_cast<std::size_t>(item.rows)),
                      .position = sequence.computed,
                      .blocks = sequence.blocks.views(),
                      .logit_rows = item.wants_logits() ? 1 : 0});
  }
  parts_.runner->Run(inputs, {});
  // First all blocks, then the answers: a fork or an end must find its sequence as computed.
  for (const Scheduler::Item& item : items) scheduler_.Advance(item);
  std::vector<Draw> draws;
  std::vector<std::size_t> draws_end;  // Of each item.
  std::int32_t logits_row = 0;
  for (std::size_t i = 0; i < items.size(); ++i) {
    if (wants_logits[i]) AddDraws(*items[i].sequence, parts_.runner->logits(logits_row++), draws);
    draws_end.push_back(draws.size());
  }
  parts_.runner->ForEach(static_cast<std::int64_t>(draws.size()), [&](std::int64_t i) {
    Draw& draw = draws[static_cast<std::size_t>(i)];
    draw.sampled =
        SampleToken(draw.logits, draw.request->sampling, draw.request->prompt, draw.answer(),
                    draw.choice, static_cast<std::int32_t>(draw.tokens.size()));
  });
  std::size_t begin = 0;
  for (std::size_t i = 0; i < items.size(); ++i) {
    const std::span<Draw> own = std::span(draws).subspan(begin, draws_end[i] - begin);
    begin = draws_end[i];
    if (wants_logits[i]) {
      Emit(RequestId{items[i].sequence->rank.request}, *items[i].sequence, own, report);
    }
  }
}

// One for a running answer; behind a prompt, one for each answer that is still wanted.
void Engine::Impl::AddDraws(const Sequence& sequence, std::span<const float> logits,
                            std::vector<Draw>& draws) const {
  const Live& live = live_.at(RequestId{sequence.rank.request});
  Draw draw;
  draw.request = &live.request;
  draw.tokens = sequence.tokens;
  draw.logits = logits;
  if (live.forked) {
    draw.choice = sequence.choice;
    draws.push_back(draw);
    return;
  }
  for (std::int32_t c = 0; c < live.request.n; ++c) {
    if (live.answers[static_cast<std::size_t>(c)].finished) continue;
    draw.choice = c;
    draws.push_back(draw);
  }
}

void Engine::Impl::Emit(RequestId id, Sequence& sequence, std::span<Draw> draws,
                        StepReport& report) {
  Live& live = live_.at(id);
  if (!live.forked) {
    Fork(id, live, draws, report);
  } else {
    Live::Answer& answer = live.answers[static_cast<std::size_t>(sequence.choice)];
    answer.finished = Report(id, draws[0], report);
    if (answer.finished) {
      End(live, std::move(answer.sequence));
    } else {
      sequence.tokens.push_back(draws[0].sampled->token);
    }
  }
  EndIfFinished(id, step_);
}

// Every answer drew its first token from the same logits. The first one that goes on keeps the
// prompt's sequence, the others share its blocks.
void Engine::Impl::Fork(RequestId id, Live& live, std::span<Draw> draws, StepReport& report) {
  live.forked = true;
  std::unique_ptr<Sequence> prompt = std::move(live.answers[0].sequence);
  prompt->answers_to_come = 0;
  const Draw* keeper = nullptr;
  for (Draw& draw : draws) {
    Live::Answer& answer = live.answers[static_cast<std::size_t>(draw.choice)];
    answer.finished = Report(id, draw, report);
    if (answer.finished) continue;
    if (keeper == nullptr) {
      keeper = &draw;
      continue;
    }
    std::vector<TokenId> tokens = live.request.prompt;
    tokens.push_back(draw.sampled->token);
    answer.sequence = std::make_unique<Sequence>(
        *parts_.pool, Rank{live.request.priority, static_cast<std::uint64_t>(id), draw.choice},
        std::move(tokens), live.request.salt);
    answer.sequence->choice = draw.choice;
    scheduler_.Fork(*prompt, *answer.sequence);
  }
  if (keeper == nullptr) {
    End(live, std::move(prompt));
    return;
  }
  prompt->choice = keeper->choice;
  prompt->tokens.push_back(keeper->sampled->token);
  live.answers[static_cast<std::size_t>(keeper->choice)].sequence = std::move(prompt);
}

bool Engine::Impl::Report(RequestId id, Draw& draw, StepReport& report) const {
  TokenOutput output;
  output.request = id;
  output.choice = draw.choice;
  if (!draw.sampled.ok()) {
    output.finish = FinishReason::kError;
    output.error = draw.sampled.status();
  } else {
    const auto is_drawn = [&](TokenId token) { return token == draw.sampled->token; };
    if (std::ranges::any_of(draw.request->stop_tokens, is_drawn) ||
        (!draw.request->ignore_eos && std::ranges::any_of(parts_.end_of_generation, is_drawn))) {
      output.finish = FinishReason::kStop;
    } else if (static_cast<std::int32_t>(draw.answer().size()) + 1 >= draw.request->max_tokens) {
      output.finish = FinishReason::kLength;
    }
    output.token = *draw.sampled;
  }
  const bool last = output.finish.has_value();
  report.outputs.push_back(std::move(output));
  return last;
}

std::optional<RequestStats> Engine::Impl::Stats(RequestId id) const {
  if (const auto it = finished_.find(id); it != finished_.end()) return it->second.stats;
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
bool Engine::idle() const { return impl_->idle(); }
StepReport Engine::Step() { return impl_->Step(); }
std::optional<RequestStats> Engine::Stats(RequestId request) const { return impl_->Stats(request); }
KvPool::Stats Engine::PoolStats() const { return impl_->pool().stats(); }
std::size_t Engine::swap_bytes_used() const { return impl_->swap_bytes_used(); }
std::int32_t Engine::tokens_max() const { return impl_->tokens_max(); }
const Engine::Options& Engine::options() const { return impl_->options(); }

}  // namespace penstock::engine
