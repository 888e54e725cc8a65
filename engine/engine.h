// SPDX-License-Identifier: Apache-2.0
// The batching engine of one worker: requests join and leave at every step, prompts are computed in
// chunks beside running answers, prefixes are shared, and when memory runs out the least important
// sequence waits.
//
// One thread owns an Engine and calls everything on it: Submit, Cancel, Step, again and again. It
// has no thread, clock or I/O of its own, so the same calls give the same steps. Tokens in, tokens
// out; text is the caller's (model/text_stream.h).
//
// An answer depends on its request alone (D3): not on what else runs, on prefixes found, chunks, or
// how often it had to wait. Who runs when is scheduler.h's.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/key.h"
#include "base/loss_class.h"
#include "base/mapped_block.h"
#include "base/time.h"
#include "engine/coming.h"
#include "engine/kv_pool.h"
#include "engine/model_parts.h"
#include "engine/sampler.h"
#include "engine/step_runner.h"
#include "model/architecture.h"

namespace penstock::engine {

enum class RequestId : std::uint64_t {};

enum class FinishReason : std::uint8_t {
  kStop,    // A stop token, or the model's end of generation.
  kLength,  // max_tokens, or the context is full.
  kCancelled,
  kError,  // The model broke: no finite logits. Or, ABORTED, mapped memory changed: ask again.
};
std::string_view ToString(FinishReason reason);  // "stop", "length", "cancelled", "error".

struct Request {
  std::vector<TokenId> prompt;  // At least one token, at most tokens_max() of the engine.
  SamplingParams sampling;
  // Of the prompt, the last so many are the beginning of its one answer, from an engine that is
  // gone: the answer goes on as it would have there. max_tokens counts what is to come.
  std::int32_t emitted_tokens = 0;
  std::int32_t first_choice = 0;  // Of several answers: draws as choices first_choice, ... would.
  std::int32_t n = 1;  // Answers that share the prompt's pages; 1 to 64, 1 with emitted_tokens.
  // Of each answer; at least 1. Cut to what tokens_max() leaves; the last token needs no KV, so a
  // prompt of tokens_max() tokens gets one.
  std::int32_t max_tokens = 256;
  std::vector<TokenId> stop_tokens;  // The stop token itself is emitted as the last one.
  bool ignore_eos = false;
  std::int32_t priority = 0;  // Higher first; equal ones in order of arrival.
  // Of the chains: prefixes are shared only under the same. None: that of no salt.
  std::optional<Chain> root;
  std::uint32_t tenant = 0;  // See TenantOf: whose blocks these are.
  // Blocks of the prompt may be reused up to this loss; what is computed behind such a one is of
  // its class, too.
  LossClass accepts = LossClass::kExact;
  Coming coming = {};  // As of SetComing.
};

// What one step made for one answer.
struct TokenOutput {
  RequestId request{};
  std::int32_t choice = 0;
  std::optional<SampledToken> token;  // None when it only finished (cancelled, error).
  std::optional<FinishReason> finish;
  absl::Status error;  // Of kError.
};

// A prompt whose KV is computed here to be spent by another worker; no token is drawn.
struct PrefillRequest {
  // All positions that are wanted: the prompt but for its last token.
  std::vector<TokenId> tokens = {};
  std::int32_t priority = 0;
  std::optional<Chain> root = {};  // As of Request.
  std::uint32_t tenant = 0;
  LossClass accepts = LossClass::kExact;  // As in Request.
  // The other worker has the blocks before: they are not told of, unless all would be; then the last
  // one is.
  std::int32_t first_missing = 0;
  // Where the pool is staged: what is told is copied to the host. Else it is there for those alone
  // who read the device's memory, once that has come to pool().Written() of the time of telling.
  bool to_host = true;
  Coming coming = {};  // As of SetComing.
};

// What a pass has just completed for one prefill, in one layer: the KV of blocks first_block up to
// end_block (of those found in the pool, too, with its first pass). They stay held, unmoved, until
// EndPrefill; but only from first_needed on: the other worker has those before, or, of a window
// group, its first token sees none of them. Mapped ones are among them (KvPool::IsMapped), which the other worker cannot read
// here: it has them where they are, or wants them (CopyMapped).
struct PrefillBlocks {
  RequestId request{};
  std::int32_t first_block = 0;
  std::int32_t end_block = 0;  // The last one may be partial: the prompt's end.
  std::int32_t rows = 0;  // Positions that the pass computes of it; 0: told again, by CopyMapped.
  Lineage lineage = {};   // Of its blocks.
  std::span<const SequenceInput::Blocks> blocks;  // One per group, as in SequenceInput.
  std::span<const std::int32_t> first_needed;     // One per group.
};

// Room for a prompt whose KV is computed elsewhere.
enum class ReservationId : std::uint64_t {};
struct Reservation {
  ReservationId id{};
  std::int32_t reused_tokens = 0;  // Whole blocks that the pool had: nobody need send them.
  // One per group: of every block from reused_tokens on that the next token will see, and of those
  // before. Valid until the reservation ends.
  std::span<const SequenceInput::Blocks> blocks;
  // Of the reused ones those that are mapped: while somebody has them, others find them, too.
  std::vector<std::shared_ptr<const MappedBlock>> mapped = {};
};

// How a request spent its tokens so far.
struct RequestStats {
  std::int32_t prompt_tokens = 0;
  std::int32_t reused_tokens = 0;  // Of the prompt, found in the pool.
  std::int32_t preemptions = 0;    // Of all its answers.
};

struct StepReport {
  std::vector<TokenOutput> outputs;  // By request, then choice.
  // Of requests and prefills for which blocks are coming: all before `block` is there or computed.
  struct Reached {
    RequestId request{};
    std::int32_t block = 0;
  };
  std::vector<Reached> reached;
  std::vector<RequestId> prefilled;  // Prefills that are now complete.
  // Prefills that read mapped blocks of which one has changed: they go no further.
  std::vector<RequestId> prefills_changed;
  std::int32_t prefill_rows = 0;
  std::int32_t decode_rows = 0;
  std::int32_t sequences_running = 0;
  std::int32_t sequences_waiting = 0;  // Preempted ones, too.
  std::int32_t preempted = 0;          // In this step.
  std::int32_t changed = 0;  // Requests that it ended because a mapped block changed under them; of
                             // both kinds.
};

class Engine {
 public:
  struct Options {
    std::int32_t step_tokens = 512;       // Token budget of a step; running answers come first. At
                                          // least sequences_max.
    std::int32_t chunk_tokens = 512;      // Of one prompt per step at most.
    std::int32_t sequences_max = 64;      // Running together.
    std::int32_t requests_max = 4096;     // Waiting to start; more are refused.
    std::int32_t context_tokens_max = 0;  // 0: the model's own, which is also the limit.
    bool share_prefixes = true;
    // Host memory for the KV of preempted sequences; 0: always recompute. They are saved when that
    // takes less time by these two rates than computing them again.
    std::size_t swap_bytes = 0;
    double swap_bytes_per_s = 4e9;
    double compute_tokens_per_s = 500;
    KvPool::Options pool = {};
  };

  // A model on its devices. All of it must outlive the engine. `end_of_generation` are the model's;
  // `spaces` its block namespaces.
  struct Parts {
    const model::Architecture* architecture = nullptr;  // Of the whole model.
    std::span<const ShardParts> shards;           // Among `pool.stages` of the options' stages.
    transfer::CollectivesMaker collectives = {};  // As RunnerOptions, and the next one.
    OnExchangeFailed exchange_failed = {};
    KvDtype kv_dtype = KvDtype::kF16;
    LossSpaces spaces;
    std::vector<TokenId> end_of_generation;
  };
  // INVALID_ARGUMENT or RESOURCE_EXHAUSTED, naming the option, its value and the limit.
  static absl::StatusOr<std::unique_ptr<Engine>> Make(const Parts& parts, const Options& options);

  // The same on any runner. Its limits must be at least step_tokens rows and sequences_max logit
  // rows, its pool this one.
  struct RunnerParts {
    std::unique_ptr<KvPool> pool;
    std::unique_ptr<StepRunner> runner;
    std::int32_t vocab = 0;
    std::int32_t context_tokens_max = 0;  // The model's.
    LossSpaces spaces;
    std::vector<TokenId> end_of_generation;
  };
  static absl::StatusOr<std::unique_ptr<Engine>> MakeOn(RunnerParts parts, const Options& options);
  ~Engine();

  // INVALID_ARGUMENT: empty prompt, ids out of range, prompt longer than the context or than the
  // whole pool can hold, parameters out of range; every message has both numbers.
  // RESOURCE_EXHAUSTED: requests_max are waiting.
  absl::StatusOr<RequestId> Submit(Request request);
  // Ends a request; its pages are free when this returns. Each unfinished choice is reported as
  // kCancelled by the next Step. Unknown or finished ids are ignored.
  void Cancel(RequestId request);
  // Ends one answer of a request (its text met a stop string) as kStop without a report; its pages
  // are free when this returns. Unknown or finished ones are ignored.
  void StopChoice(RequestId request, std::int32_t choice);

  // ---- One request over two engines.

  // Computes KV for another worker. Errors as Submit. The request's memory is its own until
  // EndPrefill, whoever else needs some.
  absl::StatusOr<RequestId> SubmitPrefill(PrefillRequest request);
  // Called by Step, for each model layer of a pass that completes blocks of prefills, as soon as
  // their KV in that layer is on its way: while the next layer computes. Not of a prefill under
  // which a mapped block has changed by then. Where the pool is staged it can be read once
  // pool().AfterCopies has called.
  using LayerDone =
      std::function<void(std::int32_t layer, std::span<const PrefillBlocks> prefills)>;
  void set_layer_done(LayerDone layer_done);
  // What is known by now of the blocks that are being brought (SealReserved) while the prefill, or a
  // request's prompt, is computed; an end_block of 0 once no more come. Unknown ones are ignored.
  void SetComing(RequestId request, const Coming& coming);
  // Of the blocks of a prefill that were told, those from first_block up to end_block are in own
  // memory from now on: mapped ones are copied, and such blocks told again in all layers, from
  // inside this call. Unknown requests are ignored. UNAVAILABLE: no memory is left, with both
  // numbers. ABORTED: a mapped block changed. Nothing was told then; end the prefill.
  absl::Status CopyMapped(RequestId request, std::int32_t first_block, std::int32_t end_block);
  // Ends a prefill, complete or not, and frees all that it holds. Unknown ones are ignored.
  void EndPrefill(RequestId request);

  // Takes memory for `tokens` positions, the full blocks of which `chains` name. RESOURCE_EXHAUSTED
  // with both numbers when the pool cannot hold them beside what runs, or sequences_max run or are
  // reserved: try another worker. INVALID_ARGUMENT as Submit.
  absl::StatusOr<Reservation> Reserve(std::int32_t tokens, std::span<const Chain> chains,
                                      LossClass accepts = LossClass::kExact,
                                      std::uint32_t tenant = 0);
  // Block `block` of group `group`, whole and verified, is `mapped`: it takes the place of the
  // memory taken for it, or, where the pool cannot name it, is copied there. Nothing writes to that
  // memory. Unknown reservations, and blocks that have no place in it, are ignored.
  void MapReserved(ReservationId reservation, std::int32_t group, std::int32_t block,
                   std::shared_ptr<const MappedBlock> mapped);
  // Block `block` of group `group`, whole and verified, is what the device makes of `encoded`
  // (KvPool::Decode): nothing of it is on the host. Before Fill, Adopt, and any SealReserved or
  // EndReservation that counts it. Unknown reservations, and blocks that have no place in it, are
  // ignored.
  void DecodeReserved(ReservationId reservation, std::int32_t group, std::int32_t block,
                      std::shared_ptr<const kernels::EncodedBlock> encoded);
  // Block `block` of group `group`, whole and verified, is a copy of class `loss`: from now on
  // anybody finds it, whether those before it are there or not; once for each. Unknown
  // reservations, and blocks that have no place in it or no chain, are ignored.
  void SealReserved(ReservationId reservation, std::int32_t group, std::int32_t block,
                    LossClass loss = LossClass::kExact);
  // Where the pool is staged, begins to bring what came for the reservation from the host to the
  // device, ahead of Adopt and EndReservation, which wait for that; nothing writes to it on the
  // host any more. Calls `done` when it is there, on another thread; at once where it is not
  // staged. Nothing is brought for an unknown reservation; `done` is called all the same.
  void Fill(ReservationId reservation, std::function<void()> done);
  // Where the pool is staged: of the reservation's blocks all but those from host_first up to
  // host_end came to the device by themselves, and nothing of them to the host. Once at most, before
  // Fill, Adopt and EndReservation; unknown reservations are ignored.
  void CameOnDevice(ReservationId reservation, std::int32_t host_first, std::int32_t host_end);
  // Ends the reservation by starting a request on it, in the next step: the KV of all reserved
  // positions is in its blocks; what came there is of lineage `came`. FAILED_PRECONDITION: no such
  // reservation. ABORTED: a mapped block changed before it was copied; the reservation stays.
  // INVALID_ARGUMENT as Submit, or a prompt that is not one token longer than the reservation, or
  // not the one its chains name; the reservation then stays.
  absl::StatusOr<RequestId> Adopt(ReservationId reservation, Request request,
                                  const Lineage& came = {});
  // Frees the memory: call it when nothing writes there any more. What was filled is not lost: the
  // full blocks of the first `valid_tokens` positions can be found by the next request. Unknown
  // ones are ignored.
  void EndReservation(ReservationId reservation, std::int32_t valid_tokens,
                      const Lineage& came = {});
  std::int32_t reservations() const;

  // Nothing to run and nothing to report. Reservations and complete prefills do not count.
  bool idle() const;
  // Runs one batch. An answer whose logits are not finite ends as kError, others go on. So does a
  // request that read mapped blocks of which one has changed by the end of the pass, with ABORTED:
  // nothing that the pass made for it is told, or found by others. A prefill likewise, as
  // prefills_changed; layers of it that were told before that are good.
  StepReport Step();

  // Counters of a live or just finished request; nothing once the report that finished it is two
  // steps old.
  std::optional<RequestStats> Stats(RequestId request) const;
  KvPool::Stats PoolStats() const;
  // For its layouts and addresses alone, which never change; all else is the engine's.
  KvPool& pool();
  std::size_t swap_bytes_used() const;
  // Tokens that one sequence may have KV for: context_tokens_max, or less where the pool holds
  // less.
  std::int32_t tokens_max() const;
  const Options& options() const;

 private:
  class Impl;
  explicit Engine(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace penstock::engine
