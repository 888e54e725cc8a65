// SPDX-License-Identifier: Apache-2.0
#include "prefill/prefill_state.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"

namespace penstock::prefill {

struct PrefillState::Entry {
  Attempt attempt;
  State state{};
  Loop::TimerId timer{};
  std::optional<Order> order;
  std::optional<Prompt> prompt;
  Done done;  // Null until Submit.
  JobId job{};
  MonoTime ready = {};      // With order and prompt.
  MonoTime submitted = {};  // To the engine.
  bool begun = false;       // There.
  bool computed = false;
};

PrefillState::PrefillState(Loop& loop, PrefillEngine& engine, Channels& channels,
                           transfer::HandoffSender& sender, Options options)
    : loop_(loop), engine_(engine), channels_(channels), sender_(sender), options_(options) {}

PrefillState::~PrefillState() {
  for (auto& [attempt, entry] : entries_) loop_.CancelTimer(entry->timer);
}

absl::StatusOr<PrefillState::Entry*> PrefillState::FindOrMake(const Attempt& attempt, State state,
                                                              MonoTime deadline) {
  const auto it = entries_.find(attempt);
  if (it != entries_.end()) {
    const State other = state == State::kOrdered ? State::kPrompted : State::kOrdered;
    if (it->second->state == other) return it->second.get();
    return absl::AlreadyExistsError(absl::StrCat(
        ToString(attempt), " has ", state == State::kOrdered ? "its order" : "its prompt"));
  }
  if (attempts() >= options_.attempts_max) {
    return absl::ResourceExhaustedError(
        absl::StrCat(attempts(), " attempts are live, attempts_max is ", options_.attempts_max));
  }
  auto made = std::make_unique<Entry>();
  Entry& entry = *made;
  entry.attempt = attempt;
  entry.state = state;
  entry.timer = loop_.At(deadline, [this, &entry] {
    EndEntry(
        entry, End::kGivenUp,
        absl::DeadlineExceededError("the deadline passed before the KV was computed and moved"),
        {});
  });
  entries_.emplace(attempt, std::move(made));
  return &entry;
}

absl::Status PrefillState::Start(const Attempt& attempt, const Order& order) {
  ASSIGN_OR_RETURN(Entry* const entry, FindOrMake(attempt, State::kOrdered, order.deadline));
  entry->order = order;
  if (entry->state == State::kPrompted) Connect(*entry);
  return absl::OkStatus();
}

absl::Status PrefillState::Submit(const Attempt& attempt, Prompt prompt, MonoTime deadline,
                                  Done done) {
  ASSIGN_OR_RETURN(Entry* const entry, FindOrMake(attempt, State::kPrompted, deadline));
  entry->prompt = std::move(prompt);
  entry->done = std::move(done);
  if (entry->state == State::kOrdered) {
    // Not from inside: a channel that is there is handed over at once, and may fail at once.
    loop_.Post([this, attempt] {
      const auto it = entries_.find(attempt);
      if (it != entries_.end() && it->second->state == State::kOrdered) Connect(*it->second);
    });
  }
  return absl::OkStatus();
}

absl::Status PrefillState::CheckPrompt(const Entry& entry) const {
  if (!entry.order->last_chain.has_value()) return absl::OkStatus();
  const auto block_tokens = static_cast<std::uint32_t>(options_.block_tokens);
  const std::vector<Chain> chains = entry.prompt->Chains(block_tokens);
  if (!chains.empty() && chains.back() == *entry.order->last_chain) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("the prompt of ", ToString(entry.attempt), ", ", entry.prompt->tokens.size(),
                   " tokens, is not the one that was planned for: its blocks have other names"));
}

void PrefillState::Connect(Entry& entry) {
  if (const absl::Status status = CheckPrompt(entry); !status.ok()) {
    return EndEntry(entry, End::kGivenUp, status, {});
  }
  entry.state = State::kConnecting;
  entry.job = JobId{next_job_++};
  entry.ready = loop_.Now();
  channels_.Get(
      {.name = entry.order->decode_name, .epoch = entry.order->grant.epoch},
      entry.order->decode_address,
      [this, attempt = entry.attempt, job = entry.job](absl::StatusOr<transfer::Channel*> channel) {
        const auto it = entries_.find(attempt);
        // It may have ended, and even begun again, meanwhile.
        if (it == entries_.end() || it->second->job != job) return;
        if (channel.ok()) {
          Compute(*it->second, **channel);
        } else {
          EndEntry(*it->second, End::kTransferFailed, channel.status(), {});
        }
      });
}

void PrefillState::Compute(Entry& entry, transfer::Channel& channel) {
  entry.state = State::kComputing;
  jobs_[entry.job] = &entry;
  entry.submitted = loop_.Now();
  Trace(SpansOf(entry), {.name = SpanName::kConnect,
                         .request_id = entry.attempt.request_id,
                         .attempt = entry.attempt.number,
                         .begin = entry.ready,
                         .end = entry.submitted,
                         .peer = entry.order->decode_name,
                         .transport = transfer::ToString(channel.kind())});
  sender_.Begin(
      entry.order->grant, channel, entry.order->deadline,
      [this, job = entry.job](const transfer::HandoffSender::Outcome& outcome) {
        const auto it = jobs_.find(job);
        if (it == jobs_.end()) return;
        EndEntry(*it->second, End::kTransferFailed, outcome.status, outcome);
      },
      TraceSends(entry, channel.kind()),
      [this, job = entry.job](std::int32_t first_block, std::int32_t end_block) {
        engine_.CopyMapped(job, first_block, end_block);
      });
  if (entry.order->measure_until.has_value()) {
    sender_.Measure(entry.order->grant, *entry.order->measure_until);
  }
  entry.prompt->sources = std::move(entry.order->sources);
  entry.prompt->accepts = entry.order->accepts;
  entry.prompt->first_missing = entry.order->decode_reused_tokens / options_.block_tokens;
  entry.prompt->on_device = channel.kind() == transfer::Kind::kNccl;
  engine_.Submit(entry.job, *std::exchange(entry.prompt, std::nullopt));
}

void PrefillState::OnTold(JobId job, const transfer::HandoffSender::Told& told) {
  const auto it = jobs_.find(job);
  if (it != jobs_.end()) sender_.Tell(it->second->order->grant, told);
}

void PrefillState::OnMapped(JobId job, std::int32_t first_block, std::int32_t end_block) {
  const auto it = jobs_.find(job);
  if (it == jobs_.end()) return;
  sender_.TellMapped(it->second->order->grant, first_block, end_block);
}

void PrefillState::OnRefused(JobId job, const absl::Status& why) {
  const auto it = jobs_.find(job);
  if (it != jobs_.end()) EndEntry(*it->second, End::kGivenUp, why, {});
}

void PrefillState::OnComputed(JobId job) {
  const auto it = jobs_.find(job);
  if (it == jobs_.end()) return;
  it->second->computed = true;
  if (observer_ != nullptr) observer_->OnComputed(it->second->attempt);
}

void PrefillState::OnPass(JobId job, const Pass& pass) {
  const auto it = jobs_.find(job);
  if (it == jobs_.end()) return;
  Entry& entry = *it->second;
  Span span{.name = SpanName::kPrefill,
            .request_id = entry.attempt.request_id,
            .attempt = entry.attempt.number,
            .begin = pass.begin,
            .end = pass.end,
            .tokens = static_cast<std::uint32_t>(pass.tokens)};
  SpanRing* const spans = SpansOf(entry);
  Trace(spans, span);
  if (std::exchange(entry.begun, true)) return;
  span.name = SpanName::kPrefillWait;
  span.begin = entry.submitted;
  span.end = std::max(pass.begin, entry.submitted);
  span.tokens = 0;
  Trace(spans, span);
}

void PrefillState::OnImported(JobId job, const kvstore::Fetcher::Outcome& fetched) {
  const auto it = jobs_.find(job);
  if (it == jobs_.end()) return;
  Entry& entry = *it->second;
  if (SpanRing* const spans = SpansOf(entry)) kvstore::TraceFetch(*spans, entry.attempt, fetched);
  if (!entry.begun) entry.submitted = loop_.Now();
}

// Probes of the way are no requests.
SpanRing* PrefillState::SpansOf(const Entry& entry) const {
  return (entry.order->grant.number & transfer::kProbeGrant) == 0 ? options_.spans : nullptr;
}

// The entry outlives the handoff.
transfer::HandoffSender::OnSent PrefillState::TraceSends(const Entry& entry,
                                                         transfer::Kind kind) const {
  SpanRing* const spans = SpansOf(entry);
  if (spans == nullptr) return nullptr;
  return [this, spans, kind, &entry](const transfer::HandoffSender::Told& told, std::size_t bytes) {
    spans->Record({.name = SpanName::kSend,
                   .request_id = entry.attempt.request_id,
                   .attempt = entry.attempt.number,
                   .begin = told.computed,
                   .end = loop_.Now(),
                   .bytes = bytes,
                   .blocks = static_cast<std::uint32_t>(told.slabs.size()),
                   .layer = static_cast<std::int16_t>(told.cache_layer),
                   .group = static_cast<std::int16_t>(told.group),
                   .peer = entry.order->decode_name,
                   .transport = transfer::ToString(kind)});
  };
}

std::vector<Attempt> PrefillState::live() const {
  std::vector<Attempt> live;
  for (const auto& [attempt, entry] : entries_) live.push_back(attempt);
  return live;
}

void PrefillState::Release(const Attempt& attempt) {
  const auto it = entries_.find(attempt);
  if (it == entries_.end()) return;
  EndEntry(*it->second, End::kGivenUp, absl::CancelledError("released"), {});
}

void PrefillState::EndEntry(Entry& entry, End how, const absl::Status& status,
                            const transfer::HandoffSender::Outcome& handoff) {
  const auto it = entries_.find(entry.attempt);
  CHECK(it != entries_.end());
  const std::unique_ptr<Entry> ended = std::move(it->second);
  entries_.erase(it);
  loop_.CancelTimer(ended->timer);
  if (jobs_.erase(ended->job) != 0) {
    // Tells the decode worker, where it was not the one who ended it.
    sender_.Fail(ended->order->grant, status);
    engine_.End(ended->job);
  }
  if (observer_ != nullptr && !status.ok()) observer_->OnEnded(ended->attempt, how, status);
  // The decode worker may be quicker than the engine's own word.
  if (observer_ != nullptr && status.ok() && !ended->computed) {
    observer_->OnComputed(ended->attempt);
  }
  if (ended->done != nullptr) ended->done({.status = status, .handoff = handoff});
}

}  // namespace penstock::prefill
