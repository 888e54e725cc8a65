// SPDX-License-Identifier: Apache-2.0
// One request over two engines: this one computes the KV of a prompt for another (prefill), or
// answers on KV that another computed (reserve, adopt).
#include <algorithm>
#include <utility>

#include "absl/functional/function_ref.h"
#include "base/check.h"
#include "base/status.h"
#include "engine/engine_impl.h"

namespace penstock::engine {
namespace {

// Calls visit(group, slab) for each block that somebody needs.
void ForEachTold(const PrefillBlocks& told,
                 absl::FunctionRef<void(std::size_t g, SlabRef slab)> visit) {
  for (std::size_t g = 0; g < told.blocks.size(); ++g) {
    const SequenceInput::Blocks& blocks = told.blocks[g];
    for (std::int32_t b = std::max(told.first_block, told.first_needed[g]); b < told.end_block;
         ++b) {
      visit(g, blocks.slabs[static_cast<std::size_t>(b - blocks.first_block)]);
    }
  }
}

}  // namespace

absl::StatusOr<RequestId> Engine::Impl::SubmitPrefill(PrefillRequest request) {
  RETURN_IF_ERROR(CheckPrompt("tokens", request.tokens));
  RETURN_IF_ERROR(CheckQueue());
  const RequestId id{next_id_++};
  const auto tokens = static_cast<std::int32_t>(request.tokens.size());
  Prefill& prefill = prefills_[id];
  const std::int32_t last_block = (tokens - 1) / parts_.pool->block_tokens();
  for (std::int32_t g = 0; g < parts_.pool->groups(); ++g) {
    const std::int32_t visible = FirstVisibleBlock(
        tokens, parts_.pool->layout(g).group.window_tokens, parts_.pool->block_tokens());
    prefill.first_needed.push_back(std::max(visible, std::min(request.first_missing, last_block)));
  }
  prefill.pinned.resize(prefill.first_needed.size());
  prefill.to_host = request.to_host;
  prefill.sequence = std::make_unique<Sequence>(
      *parts_.pool, Rank{request.priority, static_cast<std::uint64_t>(id), 0},
      std::move(request.tokens), request.root, request.tenant, request.accepts);
  prefill.sequence->prefill_only = true;
  prefill.sequence->coming = request.coming;
  ++prefills_running_;
  scheduler_.Add(*prefill.sequence);
  return id;
}

std::vector<PrefillBlocks> Engine::Impl::CompletedBy(std::span<const Scheduler::Item> items) const {
  std::vector<PrefillBlocks> completed;
  const std::int32_t block_tokens = parts_.pool->block_tokens();
  for (const Scheduler::Item& item : items) {
    const Sequence& sequence = *item.sequence;
    if (!sequence.prefill_only) continue;
    const RequestId id{sequence.rank.request};
    // A block that a later pass writes again is not told yet.
    std::int32_t end = (sequence.computed + item.rows) / block_tokens;
    if (item.rows == sequence.pending()) {
      end = (sequence.computed + item.rows + block_tokens - 1) / block_tokens;
    }
    const Prefill& prefill = prefills_.at(id);
    if (end == prefill.blocks_told) continue;
    completed.push_back({.request = id,
                         .first_block = prefill.blocks_told,
                         .end_block = end,
                         .rows = item.rows,
                         .lineage = sequence.blocks.lineage(),
                         .blocks = sequence.blocks.views(),
                         .first_needed = prefill.first_needed});
  }
  return completed;
}

std::vector<std::vector<SlabRef>> Engine::Impl::ShowTold(std::span<const PrefillBlocks> told) {
  std::vector<std::vector<SlabRef>> unseen(static_cast<std::size_t>(parts_.pool->groups()));
  for (const PrefillBlocks& prefill : told) {
    if (!prefills_.at(prefill.request).to_host) continue;
    ForEachTold(prefill, [&](std::size_t g, SlabRef slab) {
      if (parts_.pool->Show(static_cast<std::int32_t>(g), slab)) unseen[g].push_back(slab);
    });
  }
  return unseen;
}

void Engine::Impl::LayerToHost(std::int32_t layer, std::span<const std::vector<SlabRef>> slabs) {
  if (!parts_.pool->staged()) return;
  const KvLayerRef cache = parts_.pool->spec().layers[static_cast<std::size_t>(layer)];
  parts_.pool->ToHost(cache.group, slabs[static_cast<std::size_t>(cache.group)], cache.cache_layer);
}

void Engine::Impl::Pin(const PrefillBlocks& told) {
  Prefill& prefill = prefills_.at(told.request);
  ForEachTold(told, [&](std::size_t g, SlabRef slab) {
    parts_.pool->AddRef(static_cast<std::int32_t>(g), slab);
    prefill.pinned[g].push_back(slab);
  });
  prefill.blocks_told = told.end_block;
  prefill.last_copy = parts_.pool->last_copy();
}

void Engine::Impl::Advance(const Scheduler::Item& item, StepReport& report) {
  scheduler_.Advance(item);
  Sequence& sequence = *item.sequence;
  const RequestId id{sequence.rank.request};
  if (sequence.coming.end_block > 0) {
    report.reached.push_back({id, sequence.computed / sequence.block_tokens});
    if (sequence.pending() == 0) sequence.coming = {};
  }
  if (!sequence.prefill_only || sequence.pending() > 0) return;
  EndRunning(prefills_.at(id));
  report.prefilled.push_back(id);
}

void Engine::Impl::EndRunning(Prefill& prefill) {
  prefill.ended = true;
  --prefills_running_;
  scheduler_.Park(*prefill.sequence);
}

void Engine::Impl::SetComing(RequestId id, const Coming& coming) {
  if (const auto prefill = prefills_.find(id); prefill != prefills_.end()) {
    prefill->second.sequence->coming = coming;
  } else if (const auto live = live_.find(id); live != live_.end() && !live->second.forked) {
    live->second.answers[0].sequence->coming = coming;
  }
}

absl::Status Engine::Impl::CopyMapped(RequestId id, std::int32_t first_block,
                                      std::int32_t end_block) {
  const auto it = prefills_.find(id);
  if (it == prefills_.end()) return absl::OkStatus();
  Prefill& prefill = it->second;
  KvPool& pool = *parts_.pool;
  PrefillBlocks told = {.request = id,
                        .first_block = prefill.blocks_told,
                        .end_block = 0,
                        .rows = 0,
                        .lineage = prefill.sequence->blocks.lineage(),
                        .blocks = {},
                        .first_needed = prefill.first_needed};
  for (std::int32_t g = 0; g < pool.groups(); ++g) {
    std::vector<SlabRef>& pinned = prefill.pinned[static_cast<std::size_t>(g)];
    const std::int32_t first = prefill.first_needed[static_cast<std::size_t>(g)];
    for (std::size_t i = 0; i < pinned.size(); ++i) {
      const std::int32_t block = first + static_cast<std::int32_t>(i);
      if (block < first_block || block >= end_block || !KvPool::IsMapped(pinned[i])) continue;
      bool changed = false;
      if (!pool.MakeOwn(g, pinned[i], changed)) {
        return absl::UnavailableError(absl::StrCat("a copy of a mapped block needs ",
                                                   pool.slab_bytes(g), " bytes of KV, of which ",
                                                   pool.bytes_available(), " are left"));
      }
      if (changed) return absl::AbortedError("a mapped block changed before it was copied");
      told.first_block = std::min(told.first_block, block);
      told.end_block = std::max(told.end_block, block + 1);
    }
  }
  if (told.end_block == 0 || layer_done_ == nullptr) return absl::OkStatus();
  std::vector<SequenceInput::Blocks> blocks;
  for (std::size_t g = 0; g < prefill.pinned.size(); ++g) {
    blocks.push_back({.slabs = prefill.pinned[g], .first_block = prefill.first_needed[g]});
  }
  told.blocks = blocks;
  const auto layers = static_cast<std::int32_t>(pool.spec().layers.size());
  for (std::int32_t layer = 0; layer < layers; ++layer) layer_done_(layer, {&told, 1});
  return absl::OkStatus();
}

void Engine::Impl::EndPrefill(RequestId id) {
  const auto it = prefills_.find(id);
  if (it == prefills_.end()) return;
  Prefill& prefill = it->second;
  if (!prefill.ended) --prefills_running_;
  // Made long ago, but for a prefill that is given up.
  parts_.pool->WaitForCopy(prefill.last_copy);
  for (std::size_t g = 0; g < prefill.pinned.size(); ++g) {
    // From the last to the first, as sequences do: a chain's tail goes before its head.
    for (auto slab = prefill.pinned[g].rbegin(); slab != prefill.pinned[g].rend(); ++slab) {
      if (prefill.to_host) parts_.pool->Hide(static_cast<std::int32_t>(g), *slab);
      parts_.pool->Release(static_cast<std::int32_t>(g), *slab);
    }
  }
  scheduler_.Remove(*prefill.sequence);
  prefills_.erase(it);
}

absl::StatusOr<Reservation> Engine::Impl::Reserve(std::int32_t tokens,
                                                  std::span<const Chain> chains, LossClass accepts,
                                                  std::uint32_t tenant) {
  // One less, since the request that comes has one token more.
  const std::int32_t most = std::min(tokens_max_, options_.context_tokens_max) - 1;
  RETURN_IF_ERROR(CheckRange("tokens", tokens, 1, most));
  const auto full_blocks = tokens / parts_.pool->block_tokens();
  if (static_cast<std::int32_t>(chains.size()) != full_blocks) {
    return absl::InvalidArgumentError(absl::StrCat("chains must name the ", full_blocks,
                                                   " full blocks of ", tokens, " tokens, got ",
                                                   chains.size()));
  }
  const ReservationId id{next_id_++};
  Reserved& reserved = reserved_.try_emplace(id, *parts_.pool, tenant).first->second;
  const std::optional<std::int32_t> reused =
      scheduler_.Reserve(tokens, chains, accepts, reserved.blocks);
  if (!reused.has_value()) {
    reserved_.erase(id);
    return absl::ResourceExhaustedError(absl::StrCat(
        tokens, " tokens need ", BytesToHold(*parts_.pool, tokens + 1), " bytes of KV, of which ",
        parts_.pool->bytes_available(), " are left, and one of ", options_.sequences_max,
        " places, of which ", scheduler_.running() + reservations(), " are taken"));
  }
  reserved.tokens = tokens;
  reserved.reused_tokens = *reused * parts_.pool->block_tokens();
  reserved.chains.assign(chains.begin(), chains.end());
  BeginFilling(reserved, *reused);
  return Reservation{.id = id,
                     .reused_tokens = reserved.reused_tokens,
                     .blocks = reserved.blocks.views(),
                     .mapped = reserved.blocks.Mapped()};
}

void Engine::Impl::BeginFilling(Reserved& reserved, std::int32_t first) {
  KvPool& pool = *parts_.pool;
  if (!pool.staged()) return;
  for (std::int32_t g = 0; g < pool.groups(); ++g) {
    std::int32_t block = reserved.blocks.first_block(g);
    for (const SlabRef slab : reserved.blocks.slabs(g)) {
      if (block >= first) {
        pool.AddRef(g, slab);
        CHECK(pool.Show(g, slab));
        reserved.filling.push_back({.group = g, .block = block, .slab = slab});
      }
      ++block;
    }
  }
}

void Engine::Impl::CopyToDevice(std::span<Reserved::Filling> filling) {
  KvPool& pool = *parts_.pool;
  std::vector<std::vector<SlabRef>> slabs(static_cast<std::size_t>(pool.groups()));
  for (Reserved::Filling& filled : filling) {
    if (filled.encoded != nullptr) {
      pool.Decode(filled.group, filled.slab, std::exchange(filled.encoded, nullptr));
      filled.copy = pool.last_copy();
    } else if (filled.copy == 0) {
      slabs[static_cast<std::size_t>(filled.group)].push_back(filled.slab);
    }
  }
  // All of a group together: one slab is being packed while the one before is on its way.
  for (std::int32_t g = 0; g < pool.groups(); ++g) {
    pool.ToDevice(g, slabs[static_cast<std::size_t>(g)]);
  }
  for (Reserved::Filling& filled : filling) {
    if (filled.copy == 0) filled.copy = pool.last_copy();
  }
}

void Engine::Impl::FinishFilling(Reserved& reserved) {
  for (Reserved::Filling& filled : reserved.filling) {
    parts_.pool->WaitForCopy(filled.copy);
    if (filled.seal.has_value()) SealFilled(reserved, filled);
    parts_.pool->Hide(filled.group, filled.slab);
    parts_.pool->Release(filled.group, filled.slab);
  }
  reserved.filling.clear();
}

void Engine::Impl::SealFilled(Reserved& reserved, Reserved::Filling& filled) {
  const LossClass loss = *std::exchange(filled.seal, std::nullopt);
  reserved.blocks.SealBlock(parts_.spaces, reserved.chains, filled.group, filled.block, loss);
}

void Engine::Impl::SealCopied() {
  if (!parts_.pool->staged()) return;
  for (auto& [id, reserved] : reserved_) {
    for (Reserved::Filling& filled : reserved.filling) {
      if (filled.seal.has_value() && parts_.pool->Copied(filled.copy)) {
        SealFilled(reserved, filled);
      }
    }
  }
}

void Engine::Impl::Fill(ReservationId id, std::function<void()> done) {
  if (const auto it = reserved_.find(id); it != reserved_.end()) CopyToDevice(it->second.filling);
  parts_.pool->AfterCopies(std::move(done));
}

void Engine::Impl::CameOnDevice(ReservationId id, std::int32_t host_first, std::int32_t host_end) {
  const auto it = reserved_.find(id);
  if (it == reserved_.end()) return;
  KvPool& pool = *parts_.pool;
  std::erase_if(it->second.filling, [&](const Reserved::Filling& came) {
    if (came.block >= host_first && came.block < host_end) return false;
    CHECK_EQ(came.copy, 0u);
    pool.Hide(came.group, came.slab);
    pool.Release(came.group, came.slab);
    return true;
  });
}

void Engine::Impl::MapReserved(ReservationId id, std::int32_t group, std::int32_t block,
                               std::shared_ptr<const MappedBlock> mapped) {
  const auto it = reserved_.find(id);
  if (it == reserved_.end()) return;
  Reserved& reserved = it->second;
  KvPool& pool = *parts_.pool;
  const std::int32_t i = block - reserved.blocks.first_block(group);
  const std::span<const SlabRef> slabs = reserved.blocks.slabs(group);
  if (i < 0 || i >= static_cast<std::int32_t>(slabs.size())) return;
  CHECK(!pool.staged());  // Nobody maps into a device's own memory.
  if (const std::optional<SlabRef> slab = pool.Map(group, mapped)) {
    return reserved.blocks.Replace(group, block, *slab);
  }
  pool.Restore(group, mapped->bytes(), slabs[static_cast<std::size_t>(i)]);
  reserved.spoiled |= mapped->Changed();
}

void Engine::Impl::DecodeReserved(ReservationId id, std::int32_t group, std::int32_t block,
                                  std::shared_ptr<const kernels::EncodedBlock> encoded) {
  const auto it = reserved_.find(id);
  if (it == reserved_.end()) return;
  std::vector<Reserved::Filling>& filling = it->second.filling;
  const std::pair place(group, block);
  const auto filled = std::ranges::lower_bound(filling, place, {}, &Reserved::Filling::place);
  if (filled == filling.end() || filled->place() != place) return;
  CHECK_EQ(filled->copy, 0u);
  filled->encoded = std::move(encoded);
}

void Engine::Impl::SealReserved(ReservationId id, std::int32_t group, std::int32_t block,
                                LossClass loss) {
  const auto it = reserved_.find(id);
  if (it == reserved_.end() || !options_.share_prefixes || it->second.spoiled) return;
  Reserved& reserved = it->second;
  const std::int32_t i = block - reserved.blocks.first_block(group);
  const auto held = static_cast<std::int32_t>(reserved.blocks.slabs(group).size());
  if (i < 0 || i >= held || block >= static_cast<std::int32_t>(reserved.chains.size())) return;
  const std::pair place(group, block);
  const auto filled =
      std::ranges::lower_bound(reserved.filling, place, {}, &Reserved::Filling::place);
  if (filled == reserved.filling.end() || filled->place() != place) {
    return reserved.blocks.SealBlock(parts_.spaces, reserved.chains, group, block, loss);
  }
  CopyToDevice({&*filled, 1});
  filled->seal = loss;
}

absl::StatusOr<RequestId> Engine::Impl::Adopt(ReservationId reservation, Request request,
                                              const Lineage& came) {
  const auto it = reserved_.find(reservation);
  if (it == reserved_.end()) {
    return absl::FailedPreconditionError(
        absl::StrCat("no reservation ", static_cast<std::uint64_t>(reservation)));
  }
  Reserved& reserved = it->second;
  RETURN_IF_ERROR(Check(request));
  if (reserved.spoiled) return absl::AbortedError("a mapped block changed before it was copied");
  if (static_cast<std::int64_t>(request.prompt.size()) != std::int64_t{reserved.tokens} + 1) {
    return absl::InvalidArgumentError(absl::StrCat("a reservation of ", reserved.tokens,
                                                   " tokens is for a prompt of one more, got ",
                                                   request.prompt.size()));
  }
  const RequestId id{next_id_++};
  Live& live = MakeLive(id, std::move(request));
  Sequence& sequence = *live.answers[0].sequence;
  const std::span<const Chain> chains =
      sequence.Chains(static_cast<std::int32_t>(reserved.chains.size()));
  if (!std::ranges::equal(chains, reserved.chains)) {
    live_.erase(id);
    return absl::InvalidArgumentError(
        "the prompt is not the one that the reservation's chains name");
  }
  CopyToDevice(reserved.filling);
  FinishFilling(reserved);
  sequence.blocks.ShareFrom(reserved.blocks);
  sequence.blocks.Join(came);
  sequence.computed = reserved.tokens;
  sequence.reused_tokens = reserved.reused_tokens;
  reserved_.erase(it);
  scheduler_.Adopt(sequence);
  return id;
}

void Engine::Impl::EndReservation(ReservationId reservation, std::int32_t valid_tokens,
                                  const Lineage& came) {
  const auto it = reserved_.find(reservation);
  if (it == reserved_.end()) return;
  Reserved& reserved = it->second;
  CHECK(valid_tokens >= 0 && valid_tokens <= reserved.tokens);
  if (valid_tokens > 0) CopyToDevice(reserved.filling);
  FinishFilling(reserved);
  if (options_.share_prefixes && !reserved.spoiled) {
    reserved.blocks.Join(came);
    reserved.blocks.Seal(
        parts_.spaces,
        std::span(reserved.chains)
            .first(static_cast<std::size_t>(valid_tokens / parts_.pool->block_tokens())));
  }
  scheduler_.EndReservation();
  reserved_.erase(it);
}

}  // namespace penstock::engine
