// SPDX-License-Identifier: Apache-2.0
// The queue of a model, what is decided from it, and what that books on workers.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/block_event.h"
#include "base/check.h"
#include "coordinator/coordinator_impl.h"

namespace penstock::coordinator {
namespace {

// Looked at in one Pump: one lookup and choice each at most.
constexpr int kPumpMost = 8;
// Room comes with time alone, too: as prompts before are computed.
constexpr Duration kPumpEvery = std::chrono::milliseconds(5);

}  // namespace

Work Coordinator::WorkOf(const Pool& pool, const Request& request) const {
  const std::uint64_t tokens = std::uint64_t{request.prompt_tokens} +
                               std::min(request.output_tokens_max, options_.output_tokens_booked);
  return {.prompt_tokens = request.prompt_tokens,
          .block_tokens = pool.block_tokens,
          .blocks = (tokens + pool.block_tokens - 1) / pool.block_tokens,
          .kv_bytes_per_token = pool.kv_bytes_per_token,
          .usable_blocks = {},
          .excluded = request.excluded,
          .forbidden = &pool.forbidden,
          .rates = &pool.rates};
}

void Coordinator::Enqueue(Request& request, MonoTime now) {
  Pool& pool = *request.pool;
  request.state_end = request.first_token_by;
  // After a loss the first token may be long out: the answer's own deadline holds.
  if (request.attempt > 0) request.state_end = request.end_by;
  request.not_before = MonoTime::min();
  if (pool.queue.emplace(request.queue_key(), request.serial).second) {
    pool.queued_tokens += request.prompt_tokens;
    request.queued_tokens = request.prompt_tokens;
    request.waited_since = now;
  }
}

void Coordinator::Dequeue(Request& request) {
  Pool& pool = *request.pool;
  if (pool.queue.erase({request.queue_key(), request.serial}) == 0) return;
  pool.queued_tokens -= request.queued_tokens;
}

// Into usable_. Workers say of blocks with a loss under names of their own, beside exact ones, where
// their deployment has such.
void Coordinator::LookUp(const Pool& pool, const Request& request) {
  pool.index.Lookup(*request.chains, usable_);
  const LossClass up_to = std::min(request.reuse, MostLoss(pool.codecs));
  if (up_to == LossClass::kExact) return;
  std::vector<Chain> names;
  names.reserve(request.chains->size());
  for (const Chain& chain : *request.chains) names.push_back(NameUpTo(chain, up_to));
  std::vector<std::uint32_t> usable;
  pool.index.Lookup(names, usable);
  for (std::size_t w = 0; w < usable.size(); ++w) usable_[w] = std::max(usable_[w], usable[w]);
}

Decision Coordinator::Decide(Pool& pool, const Request& request, MonoTime now) {
  LookUp(pool, request);
  // Half of what a degraded worker lists counts: what it lost since is not known.
  if (pool.index.degraded() > 0) {
    for (const auto* workers : {&pool.prefills, &pool.decodes}) {
      for (const Worker* worker : *workers) {
        if (pool.index.degraded(IndexOf32(worker->id))) usable_[IndexOf(worker->id)] /= 2;
      }
    }
  }
  Work work = WorkOf(pool, request);
  work.usable_blocks = usable_;
  ReuseSituation situation = {
      .reuse = FindReuse(pool, request),
      .stores = &stores_,
      .index = store_index_.degraded() > 0 ? &store_index_ : nullptr,
      .means = &pool.fetch_means,
      .block_tokens = pool.block_tokens,
      .blocks_max = (request.prompt_tokens - 1) / pool.block_tokens,
  };
  if (situation.reuse != nullptr) work.reuse = &situation;
  return pool.policy->Choose(work, pool.prefills, pool.decodes, now);
}

// The first candidate of `decision` becomes the request's next attempt.
void Coordinator::Carry(Request& request, Decision decision, MonoTime now) {
  CHECK(request.state == RequestState::kQueued);
  ++request.attempt;
  ++request.tries;
  ++stats_.plans;
  request.waited += now - request.waited_since;
  Trace(options_.spans, {.name = SpanName::kQueue,
                         .request_id = request.id,
                         .attempt = request.attempt,
                         .begin = request.waited_since,
                         .end = now,
                         .tokens = request.prompt_tokens});
  queue_wait_.Observe(ToSeconds(now - request.waited_since));
  const Candidate candidate = decision.candidates[0];
  Explanation::Plan plan = {.attempt = request.attempt, .decision = std::move(decision)};
  CountBlocks(request, candidate);
  for (const Fetch& fetch : candidate.fetches) {
    const Worker& store = members_.at(fetch.store);
    const Worker& decode = members_.at(candidate.decode);
    plan.stores.push_back(store.info.ref.name);
    plan.mapped.push_back(fetch.tier == Tier::kHost && CodecName(fetch.codec) == "raw" &&
                          store.host != 0 && store.host == decode.host);
  }
  for (const Candidate& c : plan.decision.candidates) {
    plan.names.push_back(absl::StrCat(members_.at(c.prefill).info.ref.name, " -> ",
                                      members_.at(c.decode).info.ref.name));
  }
  if (request.plans.size() >= kPlansKept) request.plans.erase(request.plans.begin());
  request.plans.push_back(std::move(plan));
  request.prefill = candidate.prefill;
  request.decode = candidate.decode;
  request.grant = 0;
  request.decode_reused_tokens = 0;
  request.missed_reports = 0;
  const Duration predicted = FromSeconds(candidate.terms.first_token());
  request.hold_end =
      std::min(request.end_by, After(now, options_.reserve_timeout + options_.start_timeout +
                                              4 * predicted + options_.prefill_grace));
  Book(request, candidate, now);
  Apply(request, RequestEvent::kPlanned, absl::OkStatus(), now);
}

void Coordinator::CountBlocks(const Request& request, const Candidate& candidate) {
  std::uint64_t left = (request.prompt_tokens - 1) / request.pool->block_tokens;
  const auto take = [&](Tier tier, std::uint64_t blocks) {
    blocks = std::min(blocks, left);
    stats_.planned_blocks[static_cast<std::size_t>(tier)] += blocks;
    left -= blocks;
  };
  take(Tier::kDevice, candidate.prefill_reused_tokens / request.pool->block_tokens);
  for (const Fetch& fetch : candidate.fetches) take(fetch.tier, fetch.end - fetch.first);
  stats_.planned_compute_blocks += left;
}

void Coordinator::Book(Request& request, const Candidate& candidate, MonoTime now) {
  Worker& prefill = members_.at(request.prefill);
  Worker& decode = members_.at(request.decode);
  const std::uint64_t tokens = request.prompt_tokens - 1;
  request.booked_tokens = tokens - candidate.prefill_reused_tokens - candidate.fetched_tokens;
  request.booked_bytes = candidate.local() ? 0
                                           : (tokens - candidate.decode_reused_tokens) *
                                                 request.pool->kv_bytes_per_token;
  request.booked_blocks = WorkOf(*request.pool, request).blocks;
  request.prefill_booked = request.transfer_booked = request.decode_booked = true;
  prefill.BeginPrefill(request.booked_tokens, now);
  prefill.bytes_out += request.booked_bytes;
  decode.bytes_in += request.booked_bytes;
  decode.sequences.Add(1);
  decode.blocks.Add(request.booked_blocks);
  prefill.last_chosen = decode.last_chosen = ++decisions_;
  ++stats_.booked_prefills;
  ++stats_.booked_sequences;
  stats_.booked_bytes += request.booked_bytes;
  stats_.booked_blocks += request.booked_blocks;
  request.booked_at = now;
  BookFetches(request, candidate, now);
  for (const WorkerId id : {request.prefill, request.decode}) {
    worker_requests_[IndexOf(id)].insert(request.serial);
  }
}

void Coordinator::UnbookPrefill(Request& request, MonoTime now) {
  if (!std::exchange(request.prefill_booked, false)) return;
  UnbookFetches(request, 0);
  members_.at(request.prefill).EndPrefill(request.booked_tokens, now);
  --stats_.booked_prefills;
}

void Coordinator::UnbookTransfer(Request& request) {
  if (!std::exchange(request.transfer_booked, false)) return;
  members_.at(request.prefill).bytes_out -= request.booked_bytes;
  members_.at(request.decode).bytes_in -= request.booked_bytes;
  stats_.booked_bytes -= request.booked_bytes;
}

void Coordinator::UnbookDecode(Request& request, MonoTime now) {
  if (!std::exchange(request.decode_booked, false)) return;
  Worker& decode = members_.at(request.decode);
  decode.sequences.Remove(1);
  decode.blocks.Remove(request.booked_blocks);
  --stats_.booked_sequences;
  stats_.booked_blocks -= request.booked_blocks;
  request.pool->hold_seconds +=
      0.05 * (ToSeconds(now - request.booked_at) - request.pool->hold_seconds);
}

// Places what waits, in its order, as far as there is room. A request for which there is none is
// overtaken by smaller ones behind it, so many times at most.
void Coordinator::Pump(Pool& pool, MonoTime now) {
  int looked_at = 0;
  std::vector<Serial> passed_over;
  std::vector<Serial> waiting;
  for (const auto& [key, serial] : pool.queue) {
    if (requests_.at(serial)->not_before > now) continue;
    if (++looked_at > kPumpMost) break;
    waiting.push_back(serial);
  }
  std::size_t placed = 0;
  for (const Serial serial : waiting) {
    Request& request = *requests_.at(serial);
    const std::size_t before = pool.queue.size();
    if (PumpOne(pool, request, now)) {
      placed += pool.queue.size() < before ? 1 : 0;
      for (const Serial over : passed_over) ++requests_.at(over)->overtaken;
      continue;
    }
    if (request.overtaken >= options_.overtaken_max) break;
    passed_over.push_back(serial);
  }
  const bool more = placed > 0 && looked_at > kPumpMost;
  pool.pump_at = more ? now : After(now, kPumpEvery);
}

// False: it goes on waiting for room. True: it was placed, has ended, or pauses.
bool Coordinator::PumpOne(Pool& pool, Request& request, MonoTime now) {
  const auto ready = [&](const Worker* w) { return w->usable() || w->may_return(); };
  if (std::none_of(pool.decodes.begin(), pool.decodes.end(), ready)) {
    Apply(request, RequestEvent::kGivenUp,
          absl::UnavailableError(
              absl::StrCat("no decode worker of model '", pool.model, "' is ready")),
          now);
    return true;
  }
  if (request.tries >= options_.attempts_max) {
    Apply(request, RequestEvent::kGivenUp,
          absl::UnavailableError(
              absl::StrCat(request.tries, " attempts failed, the last: ",
                           request.plans.empty() ? "" : request.plans.back().ended)),
          now);
    return true;
  }
  if (HasRoom(WorkOf(pool, request), options_.policy, pool.prefills, pool.decodes, now)) {
    Decision decision = Decide(pool, request, now);
    CHECK(!decision.candidates.empty());
    Carry(request, std::move(decision), now);
    return true;
  }
  if (!std::exchange(request.prefetched, true)) Prefetch(pool, request, now);
  if (request.excluded.empty()) return false;
  // Who is left has no room: after a pause those that refused may be asked again.
  request.excluded.clear();
  request.not_before =
      After(now, options_.retry_pause * (std::int64_t{1} << std::min(request.tries, 6u)));
  SetAlarm(request);
  return true;
}

}  // namespace penstock::coordinator
