// SPDX-License-Identifier: Apache-2.0
#include "decode/decode_state.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"

namespace penstock::decode {

using transfer::Grant;
using transfer::HandoffReceiver;

struct DecodeState::Entry {
  Attempt attempt;
  JobId job{};
  State state = State::kReserving;
  bool draining = false;  // Ended for everybody else.
  bool adopted = false;   // And the observer knows.
  std::size_t bytes = 0;  // Of its room.
  Order order;
  Grant grant;
  std::function<void(absl::StatusOr<Promise>)> promise;  // Null once answered.
  std::unique_ptr<DecodeEngine::Work> work;              // From Decode until it runs.
  Sink sink;
  Loop::TimerId timer{};
  HandoffReceiver::Outcome handoff;
  Lineage came;                    // Of what was fetched, and sent.
  std::int32_t fetched_first = 0;  // The blocks that were fetched.
  std::int32_t fetched_end = 0;
  bool imports = false;                            // Blocks of its prompt come from the store.
  bool fetching = false;                           // Blocks of its room come from the store.
  std::optional<HandoffReceiver::Outcome> handed;  // The handoff's end, until that is over, too.
  // For traces.
  MonoTime asked = {};
  MonoTime ran = {};
  MonoTime first_token = {};
  MonoTime last_token = {};
  std::int32_t tokens = 0;
};

absl::Status ToOurs(const absl::Status& handoff) {
  if (absl::IsUnavailable(handoff) || absl::IsDataLoss(handoff) ||
      absl::IsDeadlineExceeded(handoff) || absl::IsCancelled(handoff)) {
    return handoff;
  }
  return absl::UnavailableError(absl::StrCat("the handoff failed: ", handoff.message()));
}

DecodeState::DecodeState(Loop& loop, DecodeEngine& engine, HandoffReceiver& receiver,
                         Options options)
    : loop_(loop), engine_(engine), receiver_(receiver), options_(options) {}

DecodeState::~DecodeState() {
  for (auto& [job, entry] : jobs_) loop_.CancelTimer(entry->timer);
}

void DecodeState::Reserve(const Attempt& attempt, Order order,
                          std::function<void(absl::StatusOr<Promise>)> done) {
  absl::Status refused;
  if (entries_.contains(attempt)) {
    refused = absl::AlreadyExistsError(absl::StrCat(ToString(attempt), " has its reservation"));
  } else if (static_cast<std::int32_t>(jobs_.size()) >= options_.attempts_max) {
    refused = absl::ResourceExhaustedError(
        absl::StrCat(jobs_.size(), " attempts are live, attempts_max is ", options_.attempts_max));
  }
  if (!refused.ok()) {
    loop_.Post([done = std::move(done), refused] { done(refused); });
    return;
  }
  const JobId job{next_job_++};
  auto made = std::make_unique<Entry>();
  Entry& entry = *made;
  entry.attempt = attempt;
  entry.job = job;
  entry.order = std::move(order);
  entry.asked = loop_.Now();
  // Numbers are never used twice in the life of a worker: jobs are not, either.
  entry.grant = {.epoch = options_.epoch, .number = static_cast<std::uint64_t>(job)};
  entry.promise = std::move(done);
  entry.timer = loop_.At(entry.order.deadline, [this, &entry] {
    EndEntry(entry, End::kGivenUp,
             absl::DeadlineExceededError("the deadline passed before the request could run"));
  });
  entries_[attempt] = &entry;
  jobs_[job] = std::move(made);
  if (entry.order.local) {
    loop_.Post([this, job] { OnRoom(job, Room{}); });
    return;
  }
  engine_.Reserve(job, entry.order.tokens, entry.order.chains, entry.order.accepts,
                  entry.order.tenant,
                  [this, job](absl::StatusOr<Room> room) { OnRoom(job, std::move(room)); });
}

void DecodeState::OnRoom(JobId job, absl::StatusOr<Room> room) {
  Entry& entry = *jobs_.at(job);  // Waits for this, ended or not.
  if (entry.draining) {
    if (room.ok() && !entry.order.local) engine_.EndReservation(job, 0, {});
    jobs_.erase(job);
    return;
  }
  if (!room.ok()) {
    const auto promise = std::exchange(entry.promise, nullptr);
    const absl::Status why = room.status();
    entries_.erase(entry.attempt);
    loop_.CancelTimer(entry.timer);
    jobs_.erase(job);
    promise(why);
    return;
  }
  entry.state = entry.order.local ? State::kFilled : State::kFilling;
  entry.bytes = room->bytes;
  Trace(options_.spans, {.name = SpanName::kAllocate,
                         .request_id = entry.attempt.request_id,
                         .attempt = entry.attempt.number,
                         .begin = entry.asked,
                         .end = loop_.Now(),
                         .tokens = static_cast<std::uint32_t>(room->reused_tokens)});
  if (!entry.order.local) {
    HandoffReceiver::Target target;
    target.groups = std::move(room->groups);
    const auto block_tokens = receiver_.block_tokens();
    target.first_missing = room->reused_tokens / block_tokens;
    target.end_block = (entry.order.tokens + block_tokens - 1) / block_tokens;
    target.accepts = entry.order.accepts;
    target.deadline = entry.order.deadline;
    Fetch(entry, target);
    receiver_.Expect(
        entry.grant, std::move(target),
        [this, job](const HandoffReceiver::Outcome& outcome) { OnHandoff(job, outcome); });
  }
  if (entry.order.local && !entry.order.sources.empty()) Import(entry);
  std::exchange(entry.promise,
                nullptr)(Promise{.grant = entry.grant, .reused_tokens = room->reused_tokens});
}

void DecodeState::Import(Entry& entry) {
  entry.state = State::kImporting;
  entry.imports = true;
  engine_.Import(
      entry.job, entry.order.chains, std::move(entry.order.sources), entry.order.accepts,
      entry.order.tenant,
      [this, job = entry.job] {
        Entry& ready = *jobs_.at(job);
        ready.state = State::kFilled;
        RunIfReady(ready);
      },
      [this, attempt = entry.attempt](const kvstore::Fetcher::Outcome& fetched) {
        if (options_.spans != nullptr) kvstore::TraceFetch(*options_.spans, attempt, fetched);
      });
}

// What the prefill worker fetches itself, or has from there: it comes from there at once. Once the
// prefill worker has some of it, in memory of its own alone, what has not come by then comes from
// that; of what is mapped there, what cannot be had from the store, once the fetch has ended.
void DecodeState::Fetch(Entry& entry, HandoffReceiver::Target& target) {
  std::vector<kvstore::Fetcher::Source> sources = std::move(entry.order.sources);
  std::erase_if(sources, [&](const kvstore::Fetcher::Source& source) {
    return source.end_block <= target.first_missing;
  });
  if (sources.empty()) return;
  target.elsewhere_first = std::max(sources.front().first_block, target.first_missing);
  target.elsewhere_end = sources.back().end_block;
  target.on_told_elsewhere = [this, job = entry.job] { engine_.CancelFetch(job); };
  entry.fetching = true;
  entry.fetched_first = target.elsewhere_first;
  engine_.Fetch(entry.job, target.groups, entry.order.chains, target.elsewhere_first,
                std::move(sources),
                [this, job = entry.job](const kvstore::Fetcher::Outcome& fetched) {
                  OnFetched(job, fetched);
                });
}

void DecodeState::OnFetched(JobId job, const kvstore::Fetcher::Outcome& fetched) {
  Entry& entry = *jobs_.at(job);
  entry.fetching = false;
  entry.fetched_end = fetched.end_block;
  entry.came.Join(fetched.lineage);
  if (options_.spans != nullptr) kvstore::TraceFetch(*options_.spans, entry.attempt, fetched);
  if (entry.handed.has_value()) return OnHandoff(job, *entry.handed);
  receiver_.Settle(entry.grant, fetched.end_block);
}

void DecodeState::OnHandoff(JobId job, const HandoffReceiver::Outcome& outcome) {
  Entry& entry = *jobs_.at(job);
  if (entry.fetching) {
    // It failed. Its room is in use until the fetch has ended.
    entry.handed = outcome;
    return engine_.CancelFetch(job);
  }
  entry.came.Join(outcome.lineage);
  if (outcome.kind == transfer::Kind::kNccl) {
    engine_.CameOnDevice(job, entry.fetched_first, entry.fetched_end);
  }
  if (options_.spans != nullptr) TraceHandoff(entry, outcome);
  if (entry.draining) {
    engine_.EndReservation(job, outcome.blocks_valid, entry.came);
    jobs_.erase(job);
    return;
  }
  entry.handoff = outcome;
  entry.state = State::kFilled;
  if (!outcome.status.ok()) return EndEntry(entry, End::kTransferFailed, ToOurs(outcome.status));
  RunIfReady(entry);
}

absl::Status DecodeState::Decode(const Attempt& attempt, std::unique_ptr<DecodeEngine::Work> work,
                                 Sink sink) {
  const auto it = entries_.find(attempt);
  if (it == entries_.end()) {
    return absl::FailedPreconditionError(
        absl::StrCat("nothing is reserved for ", ToString(attempt)));
  }
  Entry& entry = *it->second;
  if (entry.work != nullptr || entry.state == State::kRunning) {
    return absl::AlreadyExistsError(absl::StrCat(ToString(attempt), " has its tokens"));
  }
  entry.work = std::move(work);
  entry.sink = std::move(sink);
  RunIfReady(entry);
  return absl::OkStatus();
}

void DecodeState::RunIfReady(Entry& entry) {
  if (entry.state != State::kFilled || entry.work == nullptr) return;
  entry.state = State::kRunning;
  entry.ran = loop_.Now();
  loop_.CancelTimer(entry.timer);
  engine_.Run(entry.job, std::move(entry.work), entry.order.accepts, entry.came);
  if (!entry.order.local) Adopted(entry);
}

void DecodeState::Adopted(Entry& entry) {
  if (std::exchange(entry.adopted, true) || observer_ == nullptr) return;
  observer_->OnAdopted(entry.attempt, entry.handoff);
}

void DecodeState::TraceHandoff(const Entry& entry, const HandoffReceiver::Outcome& outcome) const {
  for (const HandoffReceiver::Span& read : outcome.spans) {
    if (read.verified == MonoTime()) continue;  // It never came.
    Span span{.name = SpanName::kWait,
              .request_id = entry.attempt.request_id,
              .attempt = entry.attempt.number,
              .begin = read.told,
              .end = read.begun,
              .bytes = read.bytes,
              .blocks = static_cast<std::uint32_t>(read.blocks),
              .layer = static_cast<std::int16_t>(read.cache_layer),
              .group = static_cast<std::int16_t>(read.group),
              .peer = outcome.peer,
              .transport = transfer::ToString(outcome.kind)};
    options_.spans->Record(span);
    span.name = SpanName::kWire;
    span.begin = read.begun;
    span.end = read.verified;
    options_.spans->Record(span);
    if (outcome.kind != transfer::Kind::kNccl) continue;
    for (const auto& [name, part] : {std::pair{SpanName::kPack, read.parts.pack},
                                     {SpanName::kReady, read.parts.ready},
                                     {SpanName::kMove, read.parts.move},
                                     {SpanName::kLand, read.parts.land}}) {
      if (part.begin == MonoTime()) continue;  // Nobody measured it.
      span.name = name;
      span.begin = part.begin;
      span.end = part.begin + part.time;
      options_.spans->Record(span);
    }
  }
}

void DecodeState::CountTokens(Entry& entry, std::int32_t count) const {
  if (count == 0) return;
  entry.last_token = loop_.Now();
  entry.tokens += count;
  if (entry.first_token != MonoTime()) return;
  entry.first_token = entry.last_token;
  Trace(options_.spans, {.name = SpanName::kFirstStep,
                         .request_id = entry.attempt.request_id,
                         .attempt = entry.attempt.number,
                         .begin = entry.ran,
                         .end = entry.first_token});
}

void DecodeState::TraceTokens(const Entry& entry) const {
  if (entry.tokens == 0) return;
  Trace(options_.spans, {.name = SpanName::kDecode,
                         .request_id = entry.attempt.request_id,
                         .attempt = entry.attempt.number,
                         .begin = entry.first_token,
                         .end = entry.last_token,
                         .tokens = static_cast<std::uint32_t>(entry.tokens)});
}

std::optional<JobId> DecodeState::RunningJob(const Attempt& attempt) const {
  const auto it = entries_.find(attempt);
  if (it == entries_.end() || it->second->state != State::kRunning) return std::nullopt;
  return it->second->job;
}

void DecodeState::OnTokens(JobId job, const DecodeEngine::Tokens& tokens) {
  const auto it = jobs_.find(job);
  if (it == jobs_.end()) return;
  Adopted(*it->second);
  if (options_.spans != nullptr) CountTokens(*it->second, tokens.count());
  // A copy: the sink may release the attempt.
  const auto on_tokens = it->second->sink.on_tokens;
  on_tokens(tokens);
}

void DecodeState::OnEnd(JobId job, const absl::Status& status) {
  const auto it = jobs_.find(job);
  if (it == jobs_.end()) return;
  const std::unique_ptr<Entry> ended = std::move(it->second);
  jobs_.erase(it);
  TraceTokens(*ended);
  if (ended->imports) engine_.EndImport(job);
  entries_.erase(ended->attempt);
  if (observer_ != nullptr) {
    // Another worker may have room; work that is wrong is wrong everywhere.
    const bool elsewhere = absl::IsResourceExhausted(status) || absl::IsUnavailable(status) ||
                           absl::IsFailedPrecondition(status) || absl::IsAborted(status);
    observer_->OnEnded(ended->attempt, elsewhere ? End::kGivenUp : End::kFinished, status);
  }
  ended->sink.on_end(status, ended->handoff);
}

std::vector<Attempt> DecodeState::live() const {
  std::vector<Attempt> live;
  for (const auto& [attempt, entry] : entries_) live.push_back(attempt);
  return live;
}

std::size_t DecodeState::bytes_draining() const {
  std::size_t bytes = 0;
  for (const auto& [job, entry] : jobs_) bytes += entry->draining ? entry->bytes : 0;
  return bytes;
}

void DecodeState::Release(const Attempt& attempt, const absl::Status& why) {
  const auto it = entries_.find(attempt);
  if (it != entries_.end()) EndEntry(*it->second, End::kGivenUp, why);
}

void DecodeState::EndEntry(Entry& entry, End how, const absl::Status& status) {
  const JobId job = entry.job;
  const Attempt attempt = entry.attempt;
  entries_.erase(attempt);
  loop_.CancelTimer(entry.timer);
  const auto promise = std::exchange(entry.promise, nullptr);
  const Sink sink = std::exchange(entry.sink, {});
  const HandoffReceiver::Outcome handoff = entry.handoff;
  if (entry.imports) engine_.EndImport(job);
  switch (entry.state) {
    case State::kReserving:  // OnRoom ends it.
      entry.draining = true;
      break;
    case State::kFilling:  // OnHandoff does, maybe at once.
      entry.draining = true;
      receiver_.GiveUp(entry.grant, status);
      break;
    case State::kImporting:
    case State::kFilled:
      if (!entry.order.local) {
        // What came and was verified is good for others, whoever gave up.
        engine_.EndReservation(job, handoff.blocks_valid, entry.came);
      }
      jobs_.erase(job);
      break;
    case State::kRunning:
      TraceTokens(entry);
      engine_.Cancel(job);
      jobs_.erase(job);
      break;
  }
  if (promise != nullptr) {
    promise(status);
  } else if (observer_ != nullptr) {
    observer_->OnEnded(attempt, how, status);
  }
  if (sink.on_end != nullptr) {
    loop_.Post([on_end = sink.on_end, status, handoff] { on_end(status, handoff); });
  }
}

}  // namespace penstock::decode
