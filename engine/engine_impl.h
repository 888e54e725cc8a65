// SPDX-License-Identifier: Apache-2.0
// The inside of an Engine, shared by the files that implement it: engine.cc (requests from Submit
// to their end), engine_step.cc (one batch) and engine_handoff.cc (one request over two engines).
#pragma once

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "engine/scheduler.h"

namespace penstock::engine {

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

// A prefill from SubmitPrefill to EndPrefill.
struct Prefill {
  std::unique_ptr<Sequence> sequence;
  bool ended = false;            // Complete, or a block changed under it.
  std::int32_t blocks_told = 0;  // To layer_done.
  // Those, held whatever becomes of the sequence's own (sealing may put a twin in the place of
  // one). pinned[g][i] is block first_needed[g] + i.
  std::vector<std::vector<SlabRef>> pinned;
  std::vector<std::int32_t> first_needed;
  bool to_host = true;          // Pinned ones are shown, where the pool is staged.
  std::uint64_t last_copy = 0;  // Of a pinned one to the host.
};

struct Reserved {
  Reserved(KvPool& pool, std::uint32_t tenant) : blocks(pool, tenant) {}
  std::int32_t tokens = 0;
  std::int32_t reused_tokens = 0;
  std::vector<Chain> chains;
  BlockTable blocks;
  // Where the pool is staged: what is filled on the host, shown and held until it is on the device.
  struct Filling {
    std::int32_t group = 0;
    std::int32_t block = 0;
    SlabRef slab = {};
    std::uint64_t copy = 0;              // To the device; 0: not asked for.
    std::optional<LossClass> seal = {};  // Of what is to be found as soon as it is there.
    std::shared_ptr<const kernels::EncodedBlock> encoded = {};  // What it is made of, until asked.

    std::pair<std::int32_t, std::int32_t> place() const { return {group, block}; }
  };
  std::vector<Filling> filling;  // By place.
  bool spoiled = false;          // Something was copied of a mapped block that had changed.
};

class Engine::Impl {
 public:
  Impl(RunnerParts parts, const Options& options)
      : parts_(std::move(parts)),
        options_(options),
        tokens_max_(TokensThatFit(*parts_.pool, options.context_tokens_max)),
        scheduler_(*parts_.pool, parts_.spaces,
                   {.step_tokens = options.step_tokens,
                    .chunk_tokens = options.chunk_tokens,
                    .sequences_max = options.sequences_max,
                    .share_prefixes = options.share_prefixes,
                    .swap_bytes = options.swap_bytes,
                    .swap_bytes_per_s = options.swap_bytes_per_s,
                    .compute_tokens_per_s = options.compute_tokens_per_s}) {}

  absl::StatusOr<RequestId> Submit(Request request);
  absl::StatusOr<RequestId> SubmitPrefill(PrefillRequest request);
  void set_layer_done(LayerDone layer_done) { layer_done_ = std::move(layer_done); }
  void SetComing(RequestId id, const Coming& coming);
  absl::Status CopyMapped(RequestId id, std::int32_t first_block, std::int32_t end_block);
  void EndPrefill(RequestId id);
  absl::StatusOr<Reservation> Reserve(std::int32_t tokens, std::span<const Chain> chains,
                                      LossClass accepts, std::uint32_t tenant);
  void MapReserved(ReservationId id, std::int32_t group, std::int32_t block,
                   std::shared_ptr<const MappedBlock> mapped);
  void CameOnDevice(ReservationId id, std::int32_t host_first, std::int32_t host_end);
  void DecodeReserved(ReservationId id, std::int32_t group, std::int32_t block,
                      std::shared_ptr<const kernels::EncodedBlock> encoded);
  void SealReserved(ReservationId id, std::int32_t group, std::int32_t block, LossClass loss);
  void Fill(ReservationId id, std::function<void()> done);
  absl::StatusOr<RequestId> Adopt(ReservationId id, Request request, const Lineage& came);
  void EndReservation(ReservationId id, std::int32_t valid_tokens, const Lineage& came);
  std::int32_t reservations() const { return static_cast<std::int32_t>(reserved_.size()); }
  void Cancel(RequestId id);
  void StopChoice(RequestId id, std::int32_t choice);
  bool idle() const { return live_.empty() && cancelled_.empty() && prefills_running_ == 0; }
  StepReport Step();
  std::optional<RequestStats> Stats(RequestId id) const;

  KvPool& pool() { return *parts_.pool; }
  const Options& options() const { return options_; }
  std::int32_t tokens_max() const { return tokens_max_; }
  std::size_t swap_bytes_used() const { return scheduler_.swap_bytes_used(); }

 private:
  struct Finished {
    RequestStats stats;
    std::int64_t step = 0;  // Whose report told the end.
  };

  absl::Status Check(const Request& request) const;
  absl::Status CheckQueue() const;
  absl::Status CheckPrompt(std::string_view field, std::span<const TokenId> tokens) const;
  Live& MakeLive(RequestId id, Request request);
  // The blocks of prefills that `items` complete. Pinned after the pass, before anything can move
  // them: pages that a pass writes have one holder.
  std::vector<PrefillBlocks> CompletedBy(std::span<const Scheduler::Item> items) const;
  // Of slabs that those tell of, those that the host does not see yet, by group: shown from now on.
  std::vector<std::vector<SlabRef>> ShowTold(std::span<const PrefillBlocks> told);
  void LayerToHost(std::int32_t layer, std::span<const std::vector<SlabRef>> slabs);
  void Pin(const PrefillBlocks& told);
  // Shows what is to come from block `first` on.
  void BeginFilling(Reserved& reserved, std::int32_t first);
  // Asks for copies to the device of those for which nobody has yet.
  void CopyToDevice(std::span<Reserved::Filling> filling);
  // Waits for all that were asked for, and then shows nothing of it any more.
  void FinishFilling(Reserved& reserved);
  // Seals what SealReserved was told of and is on the device by now.
  void SealCopied();
  void SealFilled(Reserved& reserved, Reserved::Filling& filled);
  void Advance(const Scheduler::Item& item, StepReport& report);
  void Run(std::span<const Scheduler::Item> items, StepReport& report);
  // Of those that read mapped blocks in the pass, which changed.
  static std::vector<RequestId> ChangedUnder(std::span<const Scheduler::Item> items);
  // Of the answers that are not finished; EndIfFinished ends the request.
  void FinishAll(RequestId id, FinishReason reason, const absl::Status& error,
                 std::vector<TokenOutput>& outputs);
  void EndChanged(RequestId id, StepReport& report);
  // Nothing more is computed of it.
  void EndRunning(Prefill& prefill);
  // The next token of each answer that `sequence` has, drawn from that row of the step's logits.
  void AddDraws(const Sequence& sequence, std::int32_t row, std::vector<TokenDraw>& draws) const;
  void Emit(RequestId id, Sequence& sequence, std::span<const TokenDraw> draws, StepReport& report);
  void Fork(RequestId id, Live& live, std::span<const TokenDraw> draws, StepReport& report);
  // Whether that was the answer's last token.
  bool Report(RequestId id, const Request& request, const TokenDraw& draw,
              StepReport& report) const;
  void End(Live& live, std::unique_ptr<Sequence> sequence);
  void EndIfFinished(RequestId id, std::int64_t step);

  RunnerParts parts_;
  const Options options_;
  const std::int32_t tokens_max_;
  Scheduler scheduler_;
  std::map<RequestId, Live> live_;  // After the pool: they give their blocks back.
  std::map<RequestId, Prefill> prefills_;
  std::int32_t prefills_running_ = 0;  // Not ended.
  std::map<ReservationId, Reserved> reserved_;
  LayerDone layer_done_;
  std::map<RequestId, Finished> finished_;
  std::vector<TokenOutput> cancelled_;  // To be reported.
  std::uint64_t next_id_ = 1;
  std::int64_t step_ = 0;
};

}  // namespace penstock::engine
