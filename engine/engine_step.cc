// SPDX-License-Identifier: Apache-2.0
// One step: the rows of a batch through the model, and what becomes of the tokens drawn.
#include <algorithm>
#include <utility>

#include "engine/engine_impl.h"

namespace penstock::engine {

StepReport Engine::Impl::Step() {
  ++step_;
  SealCopied();
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
  std::vector<TokenDraw> draws;
  std::vector<std::size_t> draws_end;  // Of each item.
  std::int32_t logit_rows = 0;
  for (const Scheduler::Item& item : items) {
    const Sequence& sequence = *item.sequence;
    wants_logits.push_back(item.wants_logits());
    if (item.wants_logits()) AddDraws(sequence, logit_rows++, draws);
    draws_end.push_back(draws.size());
    (sequence.pending() == 1 ? report.decode_rows : report.prefill_rows) += item.rows;
    inputs.push_back({.tokens = std::span(sequence.tokens)
                                    .subspan(static_cast<std::size_t>(sequence.computed),
                                             static_cast<std::size_t>(item.rows)),
                      .position = sequence.computed,
                      .blocks = sequence.blocks.views(),
                      .logit_rows = item.wants_logits() ? 1 : 0});
  }
  std::vector<PrefillBlocks> prefills = CompletedBy(items);
  const std::vector<std::vector<SlabRef>> to_host = ShowTold(prefills);
  if (prefills.empty() || layer_done_ == nullptr) {
    parts_.runner->Run(inputs, draws, {});
  } else {
    parts_.runner->Run(inputs, draws, [&](std::int32_t layer) {
      LayerToHost(layer, to_host);
      // Whoever is told may use it at once.
      std::erase_if(prefills, [&](const PrefillBlocks& told) {
        return prefills_.at(told.request).sequence->blocks.Changed();
      });
      if (!prefills.empty()) layer_done_(layer, prefills);
    });
  }
  for (const PrefillBlocks& told : prefills) Pin(told);
  // Before anything is sealed or goes out.
  const std::vector<RequestId> changed = ChangedUnder(items);
  const auto good = [&](const Scheduler::Item& item) {
    return !std::ranges::binary_search(changed, RequestId{item.sequence->rank.request});
  };
  // First all blocks, then the answers: a fork or an end must find its sequence as computed.
  for (const Scheduler::Item& item : items) {
    if (good(item)) Advance(item, report);
  }
  std::size_t begin = 0;
  for (std::size_t i = 0; i < items.size(); ++i) {
    const std::span<const TokenDraw> own = std::span(draws).subspan(begin, draws_end[i] - begin);
    begin = draws_end[i];
    if (wants_logits[i] && good(items[i])) {
      Emit(RequestId{items[i].sequence->rank.request}, *items[i].sequence, own, report);
    }
  }
  for (const RequestId id : changed) EndChanged(id, report);
}

std::vector<RequestId> Engine::Impl::ChangedUnder(std::span<const Scheduler::Item> items) {
  std::vector<RequestId> changed;
  for (const Scheduler::Item& item : items) {
    if (item.sequence->blocks.Changed()) changed.push_back(RequestId{item.sequence->rank.request});
  }
  std::ranges::sort(changed);
  changed.erase(std::unique(changed.begin(), changed.end()), changed.end());
  return changed;
}

// All its answers, of which others may have read the same block.
void Engine::Impl::EndChanged(RequestId id, StepReport& report) {
  ++report.changed;
  if (const auto prefill = prefills_.find(id); prefill != prefills_.end()) {
    EndRunning(prefill->second);
    report.prefills_changed.push_back(id);
    return;
  }
  FinishAll(id, FinishReason::kError,
            absl::AbortedError("a mapped block changed under the request"), report.outputs);
  EndIfFinished(id, step_);
}

// One for a running answer; behind a prompt, one for each answer that is still wanted.
void Engine::Impl::AddDraws(const Sequence& sequence, std::int32_t row,
                            std::vector<TokenDraw>& draws) const {
  const Live& live = live_.at(RequestId{sequence.rank.request});
  const Request& request = live.request;
  const std::size_t prompt =
      request.prompt.size() - static_cast<std::size_t>(request.emitted_tokens);
  TokenDraw draw = {.row = row,
                    .params = &request.sampling,
                    .prompt = std::span<const TokenId>(request.prompt).first(prompt),
                    .answer = std::span<const TokenId>(sequence.tokens).subspan(prompt),
                    .position = static_cast<std::int32_t>(sequence.tokens.size())};
  if (live.forked) {
    draw.choice = request.first_choice + sequence.choice;
    draws.push_back(draw);
    return;
  }
  for (std::int32_t c = 0; c < request.n; ++c) {
    if (live.answers[static_cast<std::size_t>(c)].finished) continue;
    draw.choice = request.first_choice + c;
    draws.push_back(draw);
  }
}

void Engine::Impl::Emit(RequestId id, Sequence& sequence, std::span<const TokenDraw> draws,
                        StepReport& report) {
  Live& live = live_.at(id);
  if (!live.forked) {
    Fork(id, live, draws, report);
  } else {
    Live::Answer& answer = live.answers[static_cast<std::size_t>(sequence.choice)];
    answer.finished = Report(id, live.request, draws[0], report);
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
void Engine::Impl::Fork(RequestId id, Live& live, std::span<const TokenDraw> draws,
                        StepReport& report) {
  const auto choice_of = [&live](const TokenDraw& draw) {
    return draw.choice - live.request.first_choice;
  };
  live.forked = true;
  std::unique_ptr<Sequence> prompt = std::move(live.answers[0].sequence);
  prompt->answers_to_come = 0;
  const TokenDraw* keeper = nullptr;
  for (const TokenDraw& draw : draws) {
    Live::Answer& answer = live.answers[static_cast<std::size_t>(choice_of(draw))];
    answer.finished = Report(id, live.request, draw, report);
    if (answer.finished) continue;
    if (keeper == nullptr) {
      keeper = &draw;
      continue;
    }
    std::vector<TokenId> tokens = live.request.prompt;
    tokens.push_back(draw.sampled->token);
    answer.sequence = std::make_unique<Sequence>(
        *parts_.pool, Rank{live.request.priority, static_cast<std::uint64_t>(id), choice_of(draw)},
        std::move(tokens), live.request.root, live.request.tenant, live.request.accepts);
    answer.sequence->choice = choice_of(draw);
    scheduler_.Fork(*prompt, *answer.sequence);
  }
  if (keeper == nullptr) {
    End(live, std::move(prompt));
    return;
  }
  prompt->choice = choice_of(*keeper);
  prompt->tokens.push_back(keeper->sampled->token);
  live.answers[static_cast<std::size_t>(choice_of(*keeper))].sequence = std::move(prompt);
}

bool Engine::Impl::Report(RequestId id, const Request& request, const TokenDraw& draw,
                          StepReport& report) const {
  TokenOutput output;
  output.request = id;
  output.choice = draw.choice - request.first_choice;
  if (!draw.sampled.ok()) {
    output.finish = FinishReason::kError;
    output.error = draw.sampled.status();
  } else {
    const auto is_drawn = [&](TokenId token) { return token == draw.sampled->token; };
    const auto drawn = draw.position - static_cast<std::int32_t>(request.prompt.size());
    if (std::ranges::any_of(request.stop_tokens, is_drawn) ||
        (!request.ignore_eos && std::ranges::any_of(parts_.end_of_generation, is_drawn))) {
      output.finish = FinishReason::kStop;
    } else if (drawn + 1 >= request.max_tokens) {
      output.finish = FinishReason::kLength;
    }
    output.token = *draw.sampled;
  }
  const bool last = output.finish.has_value();
  report.outputs.push_back(std::move(output));
  return last;
}

}  // namespace penstock::engine
