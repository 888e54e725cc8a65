// SPDX-License-Identifier: Apache-2.0
// Blocks in mapped memory of another process: read there, never written or cached, and nothing made
// from one that changed leaves.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>

#include "engine/fake_worker.h"
#include "engine/mapped_testing.h"
#include "engine/swap_pool.h"

namespace penstock::engine {
namespace {

BlockKey Key(std::uint32_t n) {
  BlockKey key;
  std::memcpy(key.chain.bytes.data(), &n, sizeof(n));
  return key;
}

struct Sealed : KvPool::Observer {
  void OnSealed(std::int32_t, const KvPool::SealedBlock&) override { ++sealed; }
  void OnEvicted(std::int32_t, const KvPool::SealedBlock&, SlabRef) override { ++evicted; }
  int sealed = 0;
  int evicted = 0;
};

class MappedPoolTest : public testing::Test {
 protected:
  Worker worker_{{.slabs = 8}};
  KvPool& pool_ = *worker_.pool;
  const std::shared_ptr<TestMapping> mapping_ = std::make_shared<TestMapping>(16);
};

TEST_F(MappedPoolTest, IsFoundAsLongAsSomebodyHasIt) {
  Sealed told;
  pool_.AddObserver(told);
  std::shared_ptr<const MappedBlock> block = mapping_->Block(3);
  const SlabRef slab = *pool_.Map(0, block);
  EXPECT_TRUE(KvPool::IsMapped(slab));
  EXPECT_EQ(pool_.Address(0, slab), mapping_->page(3));
  EXPECT_EQ(pool_.pools(0).At(slab), mapping_->page(3));
  EXPECT_EQ(pool_.refs(0, slab), 1);
  EXPECT_TRUE(pool_.Seal(0, slab, {.key = Key(1)}));
  EXPECT_EQ(*pool_.Find(0, Key(1)), slab);
  EXPECT_EQ(pool_.refs(0, slab), 2);
  EXPECT_EQ(pool_.stats().groups[0].slabs_mapped, 1);
  EXPECT_EQ(pool_.stats().bytes_mapped, pool_.layout(0).block_bytes());
  EXPECT_EQ(pool_.stats().bytes_held, 0u);
  pool_.Release(0, slab);
  pool_.Release(0, slab);
  EXPECT_EQ(pool_.stats().groups[0].slabs_mapped, 0);
  // Who has it outside keeps it findable, not held.
  EXPECT_TRUE(pool_.Contains(0, Key(1)));
  EXPECT_FALSE(pool_.ContainsOwn(0, Key(1)));
  EXPECT_EQ(*pool_.Find(0, Key(1)), slab);
  block.reset();
  EXPECT_EQ(mapping_->live(), 1);
  pool_.Release(0, slab);
  EXPECT_EQ(mapping_->live(), 0);  // Never cached.
  EXPECT_FALSE(pool_.Contains(0, Key(1)));
  EXPECT_FALSE(pool_.Find(0, Key(1)).has_value());
  EXPECT_EQ(told.sealed + told.evicted, 0);
  pool_.RemoveObserver(told);
}

TEST_F(MappedPoolTest, AnOwnSlabHasTheNameBeforeAMappedOne) {
  const SlabRef mapped = *pool_.Map(0, mapping_->Block(0));
  ASSERT_TRUE(pool_.Seal(0, mapped, {.key = Key(1)}));
  const SlabRef own = *pool_.Allocate(0);
  EXPECT_TRUE(pool_.Seal(0, own, {.key = Key(1)}));
  EXPECT_EQ(*pool_.Find(0, Key(1)), own);
  pool_.Release(0, own);
  pool_.Release(0, own);
  pool_.Release(0, mapped);
  EXPECT_TRUE(pool_.ContainsOwn(0, Key(1)));
  const SlabRef again = *pool_.Map(0, mapping_->Block(0));
  EXPECT_FALSE(pool_.Seal(0, again, {.key = Key(1)}));
  pool_.Release(0, again);
  EXPECT_EQ(mapping_->live(), 0);
}

TEST_F(MappedPoolTest, WhatChangedIsFoundNoMore) {
  const SlabRef slab = *pool_.Map(0, mapping_->Block(5));
  ASSERT_TRUE(pool_.Seal(0, slab, {.key = Key(1)}));
  EXPECT_FALSE(pool_.Changed(0, slab));
  mapping_->Change(5);
  EXPECT_FALSE(pool_.Contains(0, Key(1)));
  EXPECT_TRUE(pool_.Changed(0, slab));
  EXPECT_FALSE(pool_.Find(0, Key(1)).has_value());
  // In its place lies another one by now: not to be mixed up with it while it is held.
  mapping_->Restore();
  EXPECT_FALSE(pool_.Map(0, mapping_->Block(5)).has_value());
  pool_.Release(0, slab);
  const SlabRef other = *pool_.Map(0, mapping_->Block(5));
  EXPECT_TRUE(pool_.Seal(0, other, {.key = Key(2)}));
  EXPECT_FALSE(pool_.Seal(0, other, {.key = Key(3)}));  // Its owner says that it is both.
  EXPECT_FALSE(pool_.Contains(0, Key(3)));
  EXPECT_FALSE(pool_.Changed(0, other));
  // The same again is the same slab.
  EXPECT_EQ(*pool_.Map(0, mapping_->Block(5)), other);
  pool_.Release(0, other);
  pool_.Release(0, other);
}

TEST_F(MappedPoolTest, MappingsAreNumberedAndForgotten) {
  std::vector<std::shared_ptr<TestMapping>> mappings;
  std::vector<SlabRef> slabs;
  for (int i = 0; i < 255; ++i) {
    mappings.push_back(std::make_shared<TestMapping>(1));
    slabs.push_back(*pool_.Map(0, mappings.back()->Block(0)));
    EXPECT_EQ(pool_.Address(0, slabs.back()), mappings.back()->page(0));
  }
  EXPECT_FALSE(pool_.Map(0, mapping_->Block(0)).has_value());
  const std::shared_ptr<const MappedBlock> kept = mappings[7]->Block(0);
  ASSERT_TRUE(pool_.Seal(0, slabs[9], {.key = Key(9)}));
  pool_.Release(0, slabs[9]);
  const SlabRef slab = *pool_.Map(0, mapping_->Block(2));
  EXPECT_EQ(pool_.Address(0, slab), mapping_->page(2));
  pool_.Release(0, slab);
  slabs.erase(slabs.begin() + 9);
  for (const SlabRef each : slabs) pool_.Release(0, each);
  EXPECT_EQ(pool_.stats().bytes_mapped, 0u);
}

TEST_F(MappedPoolTest, IsCopiedBeforeItIsWrittenAndNotSavedOnceItChanged) {
  for (const bool changes : {false, true}) {
    SCOPED_TRACE(changes);
    std::fill_n(mapping_->page(1), MappedBlock::kPageBytes, std::byte{7});
    BlockTable table(pool_);
    table.Append(0, *pool_.Map(0, mapping_->Block(1)));
    SwapPool swap(pool_, 1 << 20);
    EXPECT_NE(swap.Save(table), nullptr);
    if (changes) mapping_->Change(1);
    EXPECT_EQ(swap.Save(table) == nullptr, changes);
    ASSERT_TRUE(table.MakeOwn(0));
    EXPECT_FALSE(KvPool::IsMapped(table.slabs(0)[0]));
    EXPECT_EQ(mapping_->live(), 0);
    EXPECT_EQ(*pool_.Address(0, table.slabs(0)[0]), changes ? std::byte{0xEE} : std::byte{7});
    EXPECT_EQ(table.Changed(), changes);
    table.Release();
    EXPECT_FALSE(table.Changed());
    mapping_->Restore();
  }
}

// ---- Requests on mapped blocks.

std::vector<TokenId> Prompt(int seed, int tokens) {
  std::vector<TokenId> prompt;
  for (int i = 0; i < tokens; ++i) prompt.push_back((seed * 31 + i * 7) % kVocab);
  return prompt;
}

class MappedEngineTest : public testing::Test {
 protected:
  static constexpr int kBlocks = 5;

  static std::vector<Chain> Chains(const std::vector<TokenId>& prompt) {
    return ChainsOf(std::span(prompt).first(prompt.size() - 1), "", kBlockTokens);
  }
  // The blocks of `prompt` as another worker computed them, at `page` and behind.
  void Publish(const std::vector<TokenId>& prompt, std::size_t page) {
    Worker other({});
    ASSERT_TRUE(other.engine->Submit(Greedy(prompt, 1)).ok());
    while (!other.engine->idle()) other.engine->Step();
    for (const Chain& chain : Chains(prompt)) {
      const std::optional<SlabRef> slab = other.pool->Find(0, {{}, chain});
      ASSERT_TRUE(slab.has_value());
      other.pool->Save(0, *slab, mapping_->page(page++));
    }
  }
  static std::vector<TokenId> Cold(const Request& request) {
    Worker other({});
    return Answers(other, *other.engine->Submit(request))[0];
  }
  struct Ended {
    std::map<std::pair<RequestId, std::int32_t>, std::vector<TokenId>> tokens;
    std::map<std::pair<RequestId, std::int32_t>, absl::Status> errors;
    int changed = 0;
  };
  static void Step(Worker& worker, Ended& ended) {
    const StepReport report = worker.engine->Step();
    ended.changed += report.changed;
    for (const TokenOutput& output : report.outputs) {
      const std::pair name(output.request, output.choice);
      if (output.token.has_value()) ended.tokens[name].push_back(output.token->token);
      if (output.finish == FinishReason::kError) ended.errors[name] = output.error;
    }
  }
  static std::vector<std::vector<TokenId>> Answers(Worker& worker, RequestId id) {
    Ended ended;
    while (!worker.engine->idle()) Step(worker, ended);
    EXPECT_TRUE(ended.errors.empty());
    std::vector<std::vector<TokenId>> answers;
    for (const auto& [name, tokens] : ended.tokens) {
      if (name.first == id) answers.push_back(tokens);
    }
    return answers;
  }
  // A reservation of all but the last token, its full blocks mapped at `page` and behind.
  Reservation Reserve(Worker& worker, const std::vector<TokenId>& prompt, std::size_t page) {
    const std::vector<Chain> chains = Chains(prompt);
    const absl::StatusOr<Reservation> made =
        worker.engine->Reserve(static_cast<std::int32_t>(chains.size()) * kBlockTokens, chains);
    EXPECT_TRUE(made.ok()) << made.status();
    for (std::size_t b = 0; b < chains.size(); ++b) {
      worker.engine->MapReserved(made->id, 0, static_cast<std::int32_t>(b),
                                 mapping_->Block(page + b));
    }
    return *made;
  }
  // One token behind full blocks.
  const std::vector<TokenId> prompt_ = Prompt(1, kBlocks* kBlockTokens + 1);
  const std::shared_ptr<TestMapping> mapping_ = std::make_shared<TestMapping>(64);
};

TEST_F(MappedEngineTest, AReservationOfMappedBlocksAnswersAsAColdRun) {
  Publish(prompt_, 4);
  Worker worker({});
  const Reservation reservation = Reserve(worker, prompt_, 4);
  const absl::StatusOr<RequestId> id = worker.engine->Adopt(reservation.id, Greedy(prompt_, 20));
  ASSERT_TRUE(id.ok()) << id.status();
  EXPECT_EQ(mapping_->live(), kBlocks);
  EXPECT_EQ(worker.bytes_held(), kSlabBytes);  // The next block's alone.
  EXPECT_THAT(Answers(worker, *id), testing::ElementsAre(Cold(Greedy(prompt_, 20))));
  EXPECT_EQ(mapping_->live(), 0);
  EXPECT_EQ(worker.bytes_held(), 0u);
}

TEST_F(MappedEngineTest, ImportedBlocksAreFoundWhileSomebodyHasThem) {
  Publish(prompt_, 0);
  for (const bool keeps : {true, false}) {
    SCOPED_TRACE(keeps);
    Worker worker({});
    std::vector<std::shared_ptr<const MappedBlock>> kept;
    for (int b = 0; b < kBlocks && keeps; ++b) {
      kept.push_back(mapping_->Block(static_cast<std::size_t>(b)));
    }
    const std::vector<Chain> chains = Chains(prompt_);
    const Reservation made = *worker.engine->Reserve(kBlocks * kBlockTokens, chains);
    for (int b = 0; b < kBlocks; ++b) {
      worker.engine->MapReserved(
          made.id, 0, b,
          keeps ? kept[static_cast<std::size_t>(b)] : mapping_->Block(static_cast<std::size_t>(b)));
    }
    worker.engine->EndReservation(made.id, kBlocks * kBlockTokens);
    const RequestId id = *worker.engine->Submit(Greedy(prompt_, 8));
    worker.engine->Step();
    kept.clear();
    EXPECT_EQ(worker.engine->Stats(id)->reused_tokens, keeps ? kBlocks * kBlockTokens : 0);
    while (!worker.engine->idle()) worker.engine->Step();
    EXPECT_EQ(mapping_->live(), 0);
  }
}

TEST_F(MappedEngineTest, NothingMadeFromAChangedBlockLeaves) {
  const std::vector<TokenId> cold = Cold(Greedy(prompt_, 20));
  Publish(prompt_, 0);
  for (int steps = 0; steps < 12; ++steps) {
    SCOPED_TRACE(steps);
    for (int answers = 1; answers <= 2; ++answers) {
      Publish(prompt_, 0);
      Worker worker({});
      Request request = Greedy(prompt_, 20);
      request.n = answers;
      const RequestId id = *worker.engine->Adopt(Reserve(worker, prompt_, 0).id, request);
      const RequestId other = *worker.engine->Submit(Greedy(Prompt(2, 21), 20));
      Ended ended;
      for (int i = 0; i < steps; ++i) Step(worker, ended);
      mapping_->Change(static_cast<std::size_t>(steps % kBlocks));
      Step(worker, ended);
      EXPECT_EQ(ended.changed, 1);
      for (int c = 0; c < answers; ++c) {
        EXPECT_TRUE(absl::IsAborted(ended.errors.at({id, c})));
        EXPECT_EQ(ended.tokens[std::pair(id, c)],
                  std::vector<TokenId>(cold.begin(), cold.begin() + steps));
      }
      EXPECT_EQ(mapping_->live(), 0);
      // What it had is not found, and another attempt is as a cold run.
      EXPECT_EQ(worker.pool->stats().bytes_mapped, 0u);
      const RequestId again = *worker.engine->Submit(Greedy(prompt_, 20));
      while (!worker.engine->idle()) Step(worker, ended);
      EXPECT_EQ(ended.tokens.at({again, 0}), cold);
      EXPECT_EQ(ended.tokens.at({other, 0}), Cold(Greedy(Prompt(2, 21), 20)));
      EXPECT_EQ(ended.errors.size(), static_cast<std::size_t>(answers));
      mapping_->Restore();
    }
  }
}

TEST_F(MappedEngineTest, BlocksThatCannotBeNamedAreCopied) {
  Publish(prompt_, 0);
  for (const bool changes : {false, true}) {
    SCOPED_TRACE(changes);
    Worker worker({});
    std::vector<std::shared_ptr<TestMapping>> others;
    std::vector<SlabRef> held;
    for (int i = 0; i < 255; ++i) {
      others.push_back(std::make_shared<TestMapping>(1));
      held.push_back(*worker.pool->Map(0, others.back()->Block(0)));
    }
    if (changes) mapping_->Change(2);
    const Reservation made = Reserve(worker, prompt_, 0);
    const absl::StatusOr<RequestId> id = worker.engine->Adopt(made.id, Greedy(prompt_, 9));
    if (changes) {
      EXPECT_TRUE(absl::IsAborted(id.status())) << id.status();
      worker.engine->EndReservation(made.id, kBlocks * kBlockTokens);
      EXPECT_FALSE(worker.pool->Contains(0, {{}, Chains(prompt_)[0]}));  // Nor kept.
    } else {
      EXPECT_THAT(Answers(worker, *id), testing::ElementsAre(Cold(Greedy(prompt_, 9))));
    }
    for (const SlabRef slab : held) worker.pool->Release(0, slab);
  }
}

// ---- Prefills for another worker.

class MappedPrefillTest : public MappedEngineTest {
 protected:
  static constexpr int kTail = 2 * kBlockTokens + 3;  // Behind the mapped blocks.

  // What was told of, as it was then: by block; mapped ones by their number alone.
  struct Told {
    std::map<std::int32_t, std::vector<std::byte>> own;
    std::vector<std::int32_t> mapped;
  };
  static void Listen(Worker& worker, Told& told) {
    worker.engine->set_layer_done([&](std::int32_t, std::span<const PrefillBlocks> prefills) {
      for (const PrefillBlocks& prefill : prefills) {
        const SequenceInput::Blocks& blocks = prefill.blocks[0];
        for (std::int32_t b = prefill.first_block; b < prefill.end_block; ++b) {
          const SlabRef slab = blocks.slabs[static_cast<std::size_t>(b - blocks.first_block)];
          const std::byte* const at = worker.pool->Address(0, slab);
          if (KvPool::IsMapped(slab)) {
            told.mapped.push_back(b);
          } else {
            told.own[b].assign(at, at + kSlabBytes);
          }
        }
      }
    });
  }
  // The first kBlocks are mapped, and found as long as somebody has them.
  std::vector<std::shared_ptr<const MappedBlock>> Import(Worker& worker) {
    Publish(whole_, 0);
    std::vector<std::shared_ptr<const MappedBlock>> mapped;
    const std::span<const Chain> chains = std::span(chains_).first(kBlocks);
    const Reservation made = *worker.engine->Reserve(kBlocks * kBlockTokens, chains);
    for (int b = kBlocks - 1; b >= 0; --b) {
      mapped.push_back(mapping_->Block(static_cast<std::size_t>(b)));
      worker.engine->MapReserved(made.id, 0, b, mapped.back());
      worker.engine->SealReserved(made.id, 0, b);
    }
    worker.engine->EndReservation(made.id, 0);
    return mapped;
  }
  RequestId Submit(Worker& worker) {
    return *worker.engine->SubmitPrefill({.tokens = {whole_.begin(), whole_.end() - 1}});
  }
  void ExpectRight(const Told& told, std::int32_t first, std::int32_t end) {
    Worker other({});
    Told cold;
    Listen(other, cold);
    const RequestId id = Submit(other);
    while (!other.engine->idle()) other.engine->Step();
    other.engine->EndPrefill(id);
    for (std::int32_t b = first; b < end; ++b) {
      ASSERT_TRUE(told.own.contains(b)) << b;
      const auto rows = std::min<std::size_t>(
          kBlockTokens, whole_.size() - 1 - static_cast<std::size_t>(b) * kBlockTokens);
      EXPECT_EQ(std::memcmp(told.own.at(b).data(), cold.own.at(b).data(), rows * sizeof(FakeValue)),
                0)
          << b;
    }
  }

  const std::vector<TokenId> whole_ = Prompt(1, kBlocks* kBlockTokens + kTail + 1);
  const std::vector<Chain> chains_ = Chains(whole_);
  static constexpr std::int32_t kAll = kBlocks + 3;
};

TEST_F(MappedPrefillTest, ReadsThemWhereTheyAreAndCopiesWhatIsWanted) {
  for (const auto& wanted : {std::pair(0, 0), std::pair(2, 4), std::pair(0, 1000)}) {
    SCOPED_TRACE(wanted.second);
    Worker worker({});
    Told told;
    Listen(worker, told);
    auto mapped = Import(worker);
    const RequestId prefill = Submit(worker);
    worker.engine->Step();
    EXPECT_EQ(worker.engine->Stats(prefill)->reused_tokens, kBlocks * kBlockTokens);
    EXPECT_THAT(told.mapped, testing::ElementsAre(0, 1, 2, 3, 4));
    EXPECT_EQ(told.own.size(), static_cast<std::size_t>(kAll - kBlocks));
    EXPECT_EQ(worker.bytes_held(), (kAll - kBlocks) * kSlabBytes);
    mapped.clear();
    ASSERT_TRUE(worker.engine->CopyMapped(prefill, wanted.first, wanted.second).ok());
    const int copied = std::min(wanted.second, kBlocks) - wanted.first;
    EXPECT_EQ(told.own.size(), static_cast<std::size_t>(kAll - kBlocks + copied));
    ExpectRight(told, kBlocks, kAll);
    ExpectRight(told, wanted.first, wanted.first + copied);
    worker.engine->EndPrefill(prefill);
    EXPECT_EQ(mapping_->live(), 0);
    EXPECT_EQ(worker.bytes_held(), 0u);
  }
}

TEST_F(MappedPrefillTest, NothingMadeFromAChangedBlockIsTold) {
  for (int when = 0; when < 6; ++when) {  // In a layer of a pass, of three.
    SCOPED_TRACE(when);
    Worker worker({.windows = {0, 0}, .options = {.chunk_tokens = kBlockTokens}});
    int layers = 0;
    worker.engine->set_layer_done([&](std::int32_t, std::span<const PrefillBlocks> prefills) {
      if (layers == when) mapping_->Change(3);
      layers += static_cast<int>(prefills.size());
    });
    std::vector<std::shared_ptr<const MappedBlock>> mapped;
    const Reservation made =
        *worker.engine->Reserve(kBlocks * kBlockTokens, std::span(chains_).first(kBlocks));
    for (std::int32_t b = 0; b < kBlocks; ++b) {
      for (std::int32_t g = 0; g < 2; ++g) {
        mapped.push_back(mapping_->Block(static_cast<std::size_t>(2 * b + g)));
        worker.engine->MapReserved(made.id, g, b, mapped.back());
        worker.engine->SealReserved(made.id, g, b);
      }
    }
    worker.engine->EndReservation(made.id, 0);
    const RequestId prefill = Submit(worker);
    for (int pass = 0; pass < when / 2; ++pass) {
      EXPECT_TRUE(worker.engine->Step().prefills_changed.empty());
    }
    const StepReport report = worker.engine->Step();
    EXPECT_THAT(report.prefills_changed, testing::ElementsAre(prefill));
    EXPECT_TRUE(report.prefilled.empty());
    EXPECT_EQ(report.changed, 1);
    EXPECT_EQ(layers, when + 1);
    // What that pass made is not found, and nobody goes on with it.
    const auto at = static_cast<std::size_t>(kBlocks + when / 2);
    if (at < chains_.size()) {
      EXPECT_FALSE(worker.pool->Contains(0, {{}, chains_[at]}));
    }
    EXPECT_TRUE(worker.engine->idle());
    worker.engine->EndPrefill(prefill);
    mapped.clear();
    EXPECT_EQ(mapping_->live(), 0);
    EXPECT_EQ(worker.bytes_held(), 0u);
    mapping_->Restore();
  }
}

TEST_F(MappedPrefillTest, ACopyOfAChangedBlockIsNotTold) {
  Worker worker({});
  Told told;
  Listen(worker, told);
  auto mapped = Import(worker);
  const RequestId prefill = Submit(worker);
  worker.engine->Step();
  mapping_->Change(2);
  EXPECT_TRUE(absl::IsAborted(worker.engine->CopyMapped(prefill, 0, kBlocks)));
  EXPECT_EQ(told.own.size(), static_cast<std::size_t>(kAll - kBlocks));
  worker.engine->EndPrefill(prefill);
}

TEST_F(MappedPrefillTest, WithoutMemoryForCopiesItSaysSo) {
  Worker worker({.slabs = kAll + 1});
  auto mapped = Import(worker);
  const RequestId prefill = Submit(worker);
  worker.engine->Step();
  std::vector<SlabRef> others;
  while (const std::optional<SlabRef> slab = worker.pool->Allocate(0)) others.push_back(*slab);
  const absl::Status status = worker.engine->CopyMapped(prefill, 0, kBlocks);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(status.message(),
            "a copy of a mapped block needs 4096 bytes of KV, of which 0 are left");
  worker.engine->EndPrefill(prefill);
  for (const SlabRef slab : others) worker.pool->Release(0, slab);
  EXPECT_EQ(worker.bytes_held(), 0u);
}

TEST_F(MappedPrefillTest, WhatAReservationFoundMappedStaysWithWhoKeepsIt) {
  Worker worker({});
  auto mapped = Import(worker);
  const Reservation found =
      *worker.engine->Reserve(kBlocks * kBlockTokens, std::span(chains_).first(kBlocks));
  EXPECT_EQ(found.reused_tokens, kBlocks * kBlockTokens);
  EXPECT_EQ(found.mapped.size(), static_cast<std::size_t>(kBlocks));
  mapped.clear();
  worker.engine->EndReservation(found.id, 0);
  const RequestId prefill = Submit(worker);
  worker.engine->Step();
  EXPECT_EQ(worker.engine->Stats(prefill)->reused_tokens, kBlocks * kBlockTokens);
  worker.engine->EndPrefill(prefill);
}

}  // namespace
}  // namespace penstock::engine
