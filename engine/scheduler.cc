// SPDX-License-Identifier: Apache-2.0
#include "engine/scheduler.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace penstock::engine {

Scheduler::Scheduler(KvPool& pool, const LossSpaces& spaces, const Options& options)
    : pool_(pool), spaces_(spaces), options_(options), swap_(pool, options.swap_bytes) {
  CHECK_GE(options.step_tokens, options.sequences_max);
  for (std::int32_t g = 0; g < pool.groups(); ++g) block_bytes_ += pool.slab_bytes(g);
}

void Scheduler::Enter(Sequence& sequence, Sequence::State state) {
  CHECK(sequence.state == Sequence::State::kOutside);
  sequence.state = state;
  if (state == Sequence::State::kRunning) {
    sequence.started = true;
    CHECK(running_.insert(&sequence).second);
  } else if (state == Sequence::State::kParked) {
    ++parked_;
  } else {
    CHECK(waiting_.insert(&sequence).second);
    if (!sequence.started) ++waiting_to_start_;
  }
}

void Scheduler::Leave(Sequence& sequence) {
  if (sequence.state == Sequence::State::kRunning) {
    CHECK_EQ(running_.erase(&sequence), 1u);
  } else if (sequence.state == Sequence::State::kWaiting) {
    CHECK_EQ(waiting_.erase(&sequence), 1u);
    if (!sequence.started) --waiting_to_start_;
  } else if (sequence.state == Sequence::State::kParked) {
    --parked_;
  }
  sequence.state = Sequence::State::kOutside;
}

void Scheduler::Add(Sequence& sequence) { Enter(sequence, Sequence::State::kWaiting); }

void Scheduler::Fork(const Sequence& prompt, Sequence& answer) {
  answer.chains = prompt.chains;
  answer.started = true;
  if (running() >= options_.sequences_max) {
    Enter(answer, Sequence::State::kWaiting);
    return;
  }
  answer.blocks.ShareFrom(prompt.blocks);
  answer.computed = prompt.computed;
  Enter(answer, Sequence::State::kRunning);
}

std::optional<std::int32_t> Scheduler::Reserve(std::int32_t tokens, std::span<const Chain> chains,
                                               LossClass accepts, BlockTable& blocks) {
  if (running() + reservations_ >= options_.sequences_max) return std::nullopt;
  std::int32_t reused = 0;
  if (options_.share_prefixes) reused = blocks.ReusePrefix(spaces_, accepts, chains);
  blocks.StartAtVisible(tokens);
  const std::int32_t last_block = tokens / pool_.block_tokens();  // Of the next token.
  if (!HasRoomFor(blocks.BytesMissing(tokens + 1)) || !blocks.ExtendTo(last_block)) {
    blocks.Release();
    return std::nullopt;
  }
  ++reservations_;
  return reused;
}

void Scheduler::EndReservation() {
  CHECK_GT(reservations_, 0);
  --reservations_;
}

void Scheduler::Adopt(Sequence& sequence) {
  EndReservation();
  if (options_.share_prefixes) {
    sequence.blocks.Seal(spaces_, sequence.Chains(sequence.computed / pool_.block_tokens()));
  }
  Enter(sequence, Sequence::State::kRunning);
}

void Scheduler::Park(Sequence& sequence) {
  CHECK(sequence.state == Sequence::State::kRunning);
  Leave(sequence);
  Enter(sequence, Sequence::State::kParked);
}

void Scheduler::Remove(Sequence& sequence) {
  Leave(sequence);
  std::erase_if(plan_, [&](const Item& item) { return item.sequence == &sequence; });
  sequence.blocks.Release();
  sequence.saved.reset();
}

const std::vector<Scheduler::Item>& Scheduler::Plan() {
  ++step_;
  plan_.clear();
  rows_left_ = options_.step_tokens;
  chunks_ = 0;
  preempted_ = 0;
  PlanAnswers();
  PlanPrompts();
  CHECK(!plan_.empty() || (running_.empty() && waiting_.empty()) || parked_ + reservations_ > 0);
  return plan_;
}

void Scheduler::PlanAnswers() {
  // A copy, since preemption takes sequences out of running_.
  const std::vector<Sequence*> in_order(running_.begin(), running_.end());
  for (Sequence* const sequence : in_order) {
    if (sequence->state != Sequence::State::kRunning || sequence->pending() != 1) continue;
    sequence->considered_in = step_;
    PlanRows(*sequence, 1);
  }
}

void Scheduler::PlanPrompts() {
  bool may_start = true;
  while (rows_left_ > 0) {
    const auto running = std::find_if(running_.begin(), running_.end(),
                                      [&](const Sequence* s) { return s->considered_in != step_; });
    Sequence* next = running == running_.end() ? nullptr : *running;
    // Whoever was just preempted is not let in again in the same step.
    if (may_start && preempted_ == 0 && !waiting_.empty()) {
      Sequence* const first = *waiting_.begin();
      if (next == nullptr || first->rank < next->rank) {
        if (!TryStart(*first)) {
          may_start = false;
          continue;
        }
        next = first;
      }
    }
    if (next == nullptr) return;
    next->considered_in = step_;
    PlanRows(*next, NextChunk(*next));
  }
}

std::int32_t Scheduler::NextChunk(Sequence& sequence) {
  const std::int32_t block_tokens = pool_.block_tokens();
  const auto chunk = [&] { return std::min(options_.chunk_tokens, sequence.pending()); };
  if (!options_.share_prefixes || sequence.computed % block_tokens != 0) return chunk();
  const std::int32_t at = sequence.computed / block_tokens;
  // One token is left to compute, as in TryStart.
  const std::span<const Chain> chains =
      sequence.Chains((static_cast<std::int32_t>(sequence.tokens.size()) - 1) / block_tokens);
  const std::int32_t begin = sequence.blocks.ReuseMore(spaces_, sequence.accepts, chains, at);
  sequence.computed = begin * block_tokens;
  if (sequence.preemptions == 0) sequence.reused_tokens += (begin - at) * block_tokens;
  // Where blocks begin that are there, or those that come end.
  const std::int32_t coming =
      std::min<std::int32_t>(sequence.coming.end_block, static_cast<std::int32_t>(chains.size()));
  const std::int32_t look_to =
      std::min<std::int32_t>(static_cast<std::int32_t>(chains.size()),
                             std::max(coming, (sequence.computed + chunk()) / block_tokens));
  std::int32_t meets = begin + 1;
  while (meets < look_to &&
         sequence.blocks.UsableEnd(spaces_, sequence.accepts, chains, meets) == meets) {
    ++meets;
  }
  if (meets >= look_to && coming <= begin) return chunk();
  std::int32_t blocks = meets - begin;
  if (coming > begin) {
    blocks = std::max(1, static_cast<std::int32_t>(std::lround(sequence.coming.share * blocks)));
  }
  return std::min(chunk(), blocks * block_tokens);
}

void Scheduler::PlanRows(Sequence& sequence, std::int32_t rows) {
  const std::int32_t block_tokens = pool_.block_tokens();
  const bool is_chunk = sequence.pending() > 1;
  std::int32_t end = sequence.computed + std::min(rows, rows_left_);
  if (end < static_cast<std::int32_t>(sequence.tokens.size())) {
    const std::int32_t whole_blocks_end = end / block_tokens * block_tokens;
    if (whole_blocks_end > sequence.computed) {
      end = whole_blocks_end;
    } else if (chunks_ > 0) {
      return;  // Others leave less than a block in this step; with none, less must do.
    }
  }
  if (!Ensure(sequence, sequence.computed / block_tokens)) return;
  for (std::int32_t b = sequence.computed / block_tokens + 1; b * block_tokens < end; ++b) {
    if (!sequence.blocks.Extend(b)) end = b * block_tokens;
  }
  plan_.push_back({.sequence = &sequence, .rows = end - sequence.computed});
  rows_left_ -= plan_.back().rows;
  if (is_chunk) ++chunks_;
}

bool Scheduler::Ensure(Sequence& sequence, std::int32_t block) {
  while (!sequence.blocks.Extend(block) || !sequence.blocks.MakeOwn(block)) {
    if (!PreemptBelow(sequence)) return false;
  }
  return true;
}

bool Scheduler::PreemptBelow(const Sequence& sequence) {
  for (auto it = running_.rbegin(); it != running_.rend(); ++it) {
    Sequence* const victim = *it;
    if (victim->blocks.empty() || victim->prefill_only) continue;
    if (!sequence.prefill_only && !(sequence.rank < victim->rank)) return false;
    Preempt(*victim);
    return true;
  }
  return false;
}

void Scheduler::Preempt(Sequence& victim) {
  const auto planned = std::find_if(plan_.begin(), plan_.end(),
                                    [&](const Item& item) { return item.sequence == &victim; });
  if (planned != plan_.end()) {
    rows_left_ += planned->rows;
    if (victim.pending() > 1) --chunks_;
    plan_.erase(planned);
  }
  victim.blocks.DropFrom((victim.computed + pool_.block_tokens() - 1) / pool_.block_tokens());
  const double swap_s =
      2 * static_cast<double>(swap_.BytesOf(victim.blocks)) / options_.swap_bytes_per_s;
  if (swap_s < victim.computed / options_.compute_tokens_per_s) {
    victim.saved = swap_.Save(victim.blocks);
  }
  victim.blocks.Release();
  if (victim.saved == nullptr) victim.computed = 0;
  ++victim.preemptions;
  ++preempted_;
  Leave(victim);
  Enter(victim, Sequence::State::kWaiting);
}

bool Scheduler::TryStart(Sequence& sequence) {
  if (running() + reservations_ >= options_.sequences_max) return false;
  const std::int32_t block_tokens = pool_.block_tokens();
  if (sequence.saved == nullptr && options_.share_prefixes) {
    // One token is left to compute: for its logits, and so that every sequence has a step.
    const auto blocks = static_cast<std::int32_t>((sequence.tokens.size() - 1) /
                                                  static_cast<std::size_t>(block_tokens));
    sequence.computed = block_tokens * sequence.blocks.ReusePrefix(spaces_, sequence.accepts,
                                                                   sequence.Chains(blocks));
  }
  if (!HasRoomFor(sequence)) {
    if (sequence.saved == nullptr) {
      sequence.blocks.Release();
      sequence.computed = 0;
    }
    return false;
  }
  if (sequence.saved != nullptr) {
    const std::int32_t sealed = options_.share_prefixes ? sequence.computed / block_tokens : 0;
    swap_.Restore(*sequence.saved, spaces_, sequence.Chains(sealed), sequence.blocks);
    sequence.saved.reset();
  }
  if (!sequence.started) sequence.reused_tokens = sequence.computed;
  Leave(sequence);
  Enter(sequence, Sequence::State::kRunning);
  return true;
}

bool Scheduler::HasRoomFor(const Sequence& sequence) const {
  // Alone, every sequence fits.
  if (running_.empty() && parked_ + reservations_ == 0) return true;
  return HasRoomFor(
      sequence.blocks.BytesMissing(static_cast<std::int32_t>(sequence.tokens.size())) +
      block_bytes_ * static_cast<std::size_t>(sequence.answers_to_come));
}

bool Scheduler::HasRoomFor(std::size_t bytes) const {
  for (const Sequence* const other : running_) {
    bytes += other->blocks.BytesMissing(static_cast<std::int32_t>(other->tokens.size()));
    bytes += block_bytes_ * static_cast<std::size_t>(1 + other->answers_to_come);
  }
  return bytes <= pool_.bytes_available();
}

void Scheduler::Advance(const Item& item) {
  Sequence& sequence = *item.sequence;
  sequence.computed += item.rows;
  if (options_.share_prefixes) {
    sequence.blocks.Seal(spaces_, sequence.Chains(sequence.computed / pool_.block_tokens()));
  }
  sequence.blocks.DropInvisible(sequence.computed);
}

}  // namespace penstock::engine
