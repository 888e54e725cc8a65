// SPDX-License-Identifier: Apache-2.0
// Who runs in the next step, with how many tokens, and in whose memory.
//
// Sequences wait or run; all order is by rank (priority, arrival, choice), whoever waits. A step
// takes every running sequence that lacks one token, then the chunks of prompts, within
// step_tokens. A waiting sequence starts when it is next and the pool can hold all its tokens
// besides what running prompts still need and one more block for each that runs: so running answers
// rarely run out of memory. When one does, sequences of lower rank are preempted, the lowest first:
// their blocks go, and they wait in their place by rank, before later arrivals of their priority.
// The lowest itself just sits a step out.
//
// Prefills (prefill_only) are computed for others, who read their blocks meanwhile: no one preempts
// them, and they preempt any answer.
//
// What comes into the pool while a prompt is computed, of whomever, is taken when the prompt is
// that far: a chunk ends where blocks begin that are there. Where such are being brought on purpose
// (Coming), the chunk before them is no longer than its share of what is missing between.
//
// Nothing starves: whoever ranks first among those that run always gets its memory, ends in time,
// and whoever ranks first among those that wait is not overtaken. Only an endless stream of higher
// priority keeps a lower one waiting.
//
// Owned by the engine's loop; not thread-safe. No clock, no chance: the same calls give the same
// plans.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <set>
#include <span>
#include <vector>

#include "base/key.h"
#include "engine/kv_pool.h"
#include "engine/sequence.h"
#include "engine/swap_pool.h"

namespace penstock::engine {

class Scheduler {
 public:
  struct Options {
    std::int32_t step_tokens = 512;  // At least sequences_max: every running answer gets its row.
    std::int32_t chunk_tokens = 512;
    std::int32_t sequences_max = 64;
    bool share_prefixes = true;
    std::size_t swap_bytes = 0;
    // A preempted sequence is saved when copying its blocks out and back takes less time than
    // computing its tokens again.
    double swap_bytes_per_s = 4e9;
    double compute_tokens_per_s = 500;
  };
  struct Item {
    Sequence* sequence = nullptr;
    std::int32_t rows = 0;  // The tokens after `computed`.
    bool wants_logits() const { return rows == sequence->pending() && !sequence->prefill_only; }
  };

  // `pool` must outlive the scheduler. Every sequence alone must fit in it (TokensThatFit).
  Scheduler(KvPool& pool, const LossSpaces& spaces, const Options& options);

  // Puts a sequence among the waiting. It stays the caller's, at its address, until Remove.
  void Add(Sequence& sequence);
  // Puts `answer`, whose tokens begin with the computed ones of the running `prompt`, among the
  // running, sharing all blocks; among the waiting where sequences_max run.
  void Fork(const Sequence& prompt, Sequence& answer);

  // Takes memory for `tokens` positions, and one more block's, into the empty `blocks`, beginning
  // with what the pool has of `chains`, up to the loss that is accepted, beside what runs and in
  // the place of one more that does. Returns the blocks found, or nothing (and takes nothing) where
  // there is no room.
  std::optional<std::int32_t> Reserve(std::int32_t tokens, std::span<const Chain> chains,
                                      LossClass accepts, BlockTable& blocks);
  // What Reserve took is given back, or was given to `sequence`, whose first `computed` tokens are
  // in its blocks: it runs from now on.
  void EndReservation();
  void Adopt(Sequence& sequence);
  // Takes a running sequence out, with its blocks, until Remove.
  void Park(Sequence& sequence);

  // Frees all that a sequence holds.
  void Remove(Sequence& sequence);

  // The next step's rows. Their blocks are there, and are nobody else's where they are written.
  // Empty only when no sequence is left, or when those that are lack memory that parked ones or
  // reservations hold. Valid until any other call.
  const std::vector<Item>& Plan();
  std::int32_t preempted() const { return preempted_; }  // By the last Plan.
  // To be called for every item once its rows are computed: seals full blocks and lets go of those
  // that no later token sees.
  void Advance(const Item& item);

  std::int32_t running() const { return static_cast<std::int32_t>(running_.size()); }
  std::int32_t waiting() const { return static_cast<std::int32_t>(waiting_.size()); }
  std::int32_t waiting_to_start() const { return waiting_to_start_; }  // Of those, never ran.
  std::size_t swap_bytes_used() const { return swap_.bytes_used(); }

 private:
  struct ByRank {
    bool operator()(const Sequence* a, const Sequence* b) const { return a->rank < b->rank; }
  };
  using Ranked = std::set<Sequence*, ByRank>;

  void PlanAnswers();
  void PlanPrompts();
  // Takes what the pool has of a prompt by now; how much of the rest is computed next.
  std::int32_t NextChunk(Sequence& sequence);
  void PlanRows(Sequence& sequence, std::int32_t rows);
  // Memory for one block, preempting whoever ranks lower.
  bool Ensure(Sequence& sequence, std::int32_t block);
  bool PreemptBelow(const Sequence& sequence);
  void Preempt(Sequence& victim);
  bool TryStart(Sequence& sequence);
  bool HasRoomFor(const Sequence& sequence) const;
  // For so many bytes, beside what running ones need until their prompts are computed.
  bool HasRoomFor(std::size_t bytes) const;
  void Enter(Sequence& sequence, Sequence::State state);
  void Leave(Sequence& sequence);

  KvPool& pool_;
  const LossSpaces spaces_;
  const Options options_;
  SwapPool swap_;
  std::size_t block_bytes_ = 0;  // One block of every group.
  Ranked running_;
  Ranked waiting_;
  std::int32_t waiting_to_start_ = 0;
  std::int32_t parked_ = 0;
  std::int32_t reservations_ = 0;
  std::vector<Item> plan_;
  std::int32_t rows_left_ = 0;
  std::int32_t chunks_ = 0;  // In plan_.
  std::int32_t preempted_ = 0;
  std::int64_t step_ = 0;
};

}  // namespace penstock::engine
