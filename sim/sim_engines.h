// SPDX-License-Identifier: Apache-2.0
// Engines of the simulator: they take time, fill and judge bytes, and compute nothing.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "base/event_loop.h"
#include "decode/decode_state.h"
#include "gtest/gtest.h"
#include "prefill/prefill_state.h"
#include "sim/sim_memory.h"
#include "sim/sim_tokens.h"

namespace penstock::sim {

class FakePrefillEngine final : public prefill::PrefillEngine {
 public:
  FakePrefillEngine(Loop& loop, Memory& memory, std::mt19937& rng, double refuse)
      : loop_(loop), memory_(memory), rng_(rng), refuse_(refuse) {}
  ~FakePrefillEngine() override {
    for (auto& [id, job] : jobs_) CancelTimers(job);
  }
  void Connect(prefill::PrefillState& state) { state_ = &state; }
  std::size_t jobs() const { return jobs_.size(); }
  // The prompt that is submitted next begins so much later: its first blocks are fetched.
  void DelayNext(Duration delay) { delay_ = delay; }

  void Submit(prefill::JobId id, prefill::Prompt prompt) override {
    Job& job = jobs_[id];
    job.tokens = std::move(prompt.tokens);
    job.first_missing = std::min(prompt.first_missing, BlocksOf(job.tokens.size()) - 1);
    job.timer = loop_.At(loop_.Now() + std::exchange(delay_, Duration()) + Think(),
                         [this, id] { Begin(id); });
  }
  // Later, between two chunks.
  void CopyMapped(prefill::JobId id, std::int32_t first_block, std::int32_t end_block) override {
    const auto it = jobs_.find(id);
    if (it == jobs_.end()) return;
    Job& job = it->second;
    const std::int32_t end = std::min(end_block, job.mapped);
    job.copies.push_back(loop_.At(loop_.Now() + Think(),
                                  [this, id, first_block, end] { Tell(id, first_block, end); }));
  }
  void End(prefill::JobId id) override {
    const auto it = jobs_.find(id);
    if (it == jobs_.end()) return;
    CancelTimers(it->second);
    memory_.GiveAll(it->second.slabs);
    jobs_.erase(it);
  }

 private:
  struct Job {
    std::vector<TokenId> tokens;
    std::vector<std::vector<std::uint32_t>> slabs{2};
    std::int32_t first_missing = 0;
    std::int32_t done = 0;    // Blocks.
    std::int32_t mapped = 0;  // Of these, the first ones: told when they are wanted.
    Loop::TimerId timer{};
    std::vector<Loop::TimerId> copies;
  };
  Duration Think() { return std::chrono::microseconds(rng_() % 20000); }
  void CancelTimers(Job& job) {
    loop_.CancelTimer(job.timer);
    for (const Loop::TimerId timer : job.copies) loop_.CancelTimer(timer);
  }

  void Begin(prefill::JobId id) {
    Job& job = jobs_.at(id);
    const std::int32_t blocks = BlocksOf(job.tokens.size());
    if (!memory_.Has(static_cast<std::size_t>(blocks)) ||
        std::uniform_real_distribution<>()(rng_) < refuse_) {
      jobs_.erase(id);
      state_->OnRefused(id, absl::ResourceExhaustedError("no room"));
      return;
    }
    for (std::int32_t g = 0; g < memory_.groups(); ++g) {
      for (std::int32_t b = 0; b < blocks; ++b) {
        job.slabs[static_cast<std::size_t>(g)].push_back(memory_.Take(g));
      }
    }
    job.timer = loop_.At(loop_.Now() + Think(), [this, id] { Chunk(id); });
  }
  // Some blocks, in all layers.
  void Chunk(prefill::JobId id) {
    Job& job = jobs_.at(id);
    const std::int32_t blocks = BlocksOf(job.tokens.size());
    const auto left = static_cast<unsigned>(blocks - job.done);
    const std::int32_t begin = job.done;
    const std::int32_t end = begin + 1 + static_cast<std::int32_t>(rng_() % left);
    if (begin == 0 && rng_() % 2 == 0) {
      job.mapped = static_cast<std::int32_t>(rng_() % static_cast<unsigned>(end));
    }
    job.done = end;
    if (end < blocks) job.timer = loop_.At(loop_.Now() + Think(), [this, id] { Chunk(id); });
    const std::int32_t mapped = job.mapped;
    const std::int32_t first = std::max(begin, job.first_missing);
    if (first < mapped) state_->OnMapped(id, first, mapped);
    if (!jobs_.contains(id)) return;  // It has ended inside.
    Tell(id, std::max(first, mapped), end);
    if (end == blocks) state_->OnComputed(id);
  }
  // In all layers.
  void Tell(prefill::JobId id, std::int32_t begin, std::int32_t end) {
    Job& job = jobs_.at(id);
    std::vector<transfer::HandoffSender::Told> all;
    for (std::int32_t g = 0; g < memory_.groups(); ++g) {
      for (std::int32_t layer = 0; layer < memory_.layout(g).group.cache_layers; ++layer) {
        transfer::HandoffSender::Told told{
            .group = g, .cache_layer = layer, .first_block = 0, .slabs = {}};
        told.first_block =
            std::max(begin, memory_.FirstNeeded(g, static_cast<std::int32_t>(job.tokens.size())));
        for (std::int32_t b = begin; b < end; ++b) {
          const std::uint32_t slab =
              job.slabs[static_cast<std::size_t>(g)][static_cast<std::size_t>(b)];
          memory_.Fill(g, slab, layer, job.tokens, b);
          if (b >= told.first_block) told.slabs.push_back(slab);
        }
        if (!told.slabs.empty()) all.push_back(std::move(told));
      }
    }
    for (const transfer::HandoffSender::Told& told : all) state_->OnTold(id, told);
  }

  Loop& loop_;
  Memory& memory_;
  std::mt19937& rng_;
  const double refuse_;
  prefill::PrefillState* state_ = nullptr;
  Duration delay_{};
  std::map<prefill::JobId, Job> jobs_;
};

// What a gateway asks of a decode worker. Its tokens are a function of all before them, the seed
// and the choice (sim_tokens.h), so that a wrong, missing or repeated one changes the rest.
struct FakeWork final : decode::DecodeEngine::Work {
  std::vector<TokenId> prompt;  // Its last token's KV is not moved.
  std::int32_t answers = 1;
  std::int32_t first_choice = 0;
  std::int32_t max_tokens = 1;
  std::uint64_t seed = 0;
  bool ignore_eos = true;
};

struct FakeTokens final : decode::DecodeEngine::Tokens {
  struct Output {
    std::int32_t choice = 0;  // Of this work's.
    TokenId token = 0;
    bool stopped = false;
    bool last = false;
  };
  std::vector<Output> outputs;
};

class FakeDecodeEngine final : public decode::DecodeEngine {
 public:
  FakeDecodeEngine(Loop& loop, Memory& memory, std::mt19937& rng, double refuse)
      : loop_(loop), memory_(memory), rng_(rng), refuse_(refuse) {}
  ~FakeDecodeEngine() override {
    for (auto& [id, job] : jobs_) {
      loop_.CancelTimer(job.timer);
      loop_.CancelTimer(job.fetch);
    }
    for (const auto& [id, timers] : imports_) {
      for (const Loop::TimerId timer : timers) loop_.CancelTimer(timer);
    }
  }
  void Connect(decode::DecodeState& state) { state_ = &state; }
  // The tokens that the next Reserve is about, which it does not say itself.
  void KnowNext(std::vector<TokenId> moved) { next_ = std::move(moved); }
  std::size_t jobs() const { return jobs_.size(); }

  void Reserve(decode::JobId id, std::int32_t tokens, std::vector<Chain> chains, LossClass,
               std::uint32_t, std::function<void(absl::StatusOr<decode::Room>)> done) override {
    Job& job = jobs_[id];
    job.moved = std::exchange(next_, {});
    job.reserved = true;
    EXPECT_EQ(job.moved.size(), static_cast<std::size_t>(tokens));
    job.timer = loop_.At(
        loop_.Now() + Think(),
        [this, id, blocks = chains.size(), done = std::move(done)] { done(Room(id, blocks)); });
  }
  void EndReservation(decode::JobId id, std::int32_t blocks_valid, const Lineage&) override {
    ExpectRight(jobs_.at(id), blocks_valid);
    Free(id);
  }
  void Run(decode::JobId id, std::unique_ptr<Work> work, LossClass, const Lineage&) override {
    Job& job = jobs_[id];
    const auto& asked = static_cast<FakeWork&>(*work);
    ASSERT_FALSE(asked.prompt.empty());
    if (job.reserved) {  // Else it prefills by itself.
      ASSERT_TRUE(std::equal(job.moved.begin(), job.moved.end(), asked.prompt.begin(),
                             asked.prompt.end() - 1))
          << "reserved for another prompt";
      ExpectRight(job, BlocksOf(job.moved.size()));
    }
    job.left = asked.max_tokens;
    job.ignore_eos = asked.ignore_eos;
    for (std::int32_t i = 0; i < asked.answers; ++i) {
      job.answers.push_back({TokenSource(asked.prompt, asked.seed, asked.first_choice + i), true});
    }
    job.timer = loop_.At(loop_.Now() + Think(), [this, id] { Step(id); });
  }
  void Cancel(decode::JobId id) override { Free(id); }
  // Nothing comes, early or late: what could be had is computed.
  void Import(decode::JobId id, std::vector<Chain>, std::vector<kvstore::Fetcher::Source>,
              LossClass, std::uint32_t, std::function<void()> ready,
              std::function<void(const kvstore::Fetcher::Outcome&)> done) override {
    const MonoTime begins = loop_.Now() + Think();
    const MonoTime ends = rng_() % 2 == 0 ? begins + Think() : begins;
    // As it says: the end first, unless it comes later.
    imports_[id] = {loop_.At(ends, [done = std::move(done)] { done({}); }),
                    loop_.At(begins, std::move(ready))};
  }
  void EndImport(decode::JobId id) override {
    for (const Loop::TimerId timer : imports_.at(id)) loop_.CancelTimer(timer);
    imports_.erase(id);
  }
  // Some of them come.
  void Fetch(decode::JobId id, std::vector<transfer::HandoffReceiver::Target::Group>,
             std::vector<Chain>, std::int32_t first_block,
             std::vector<kvstore::Fetcher::Source> sources,
             std::function<void(const kvstore::Fetcher::Outcome&)> done) override {
    const auto most = static_cast<unsigned>(sources.back().end_block - first_block);
    const std::int32_t end = first_block + static_cast<std::int32_t>(rng_() % (most + 1));
    jobs_.at(id).fetch =
        loop_.At(loop_.Now() + Think(), [this, id, first_block, end, done = std::move(done)] {
          const Job& job = jobs_.at(id);
          for (std::int32_t g = 0; g < memory_.groups(); ++g) {
            const std::int32_t first = job.first[static_cast<std::size_t>(g)];
            for (std::int32_t b = std::max(first_block, first); b < end; ++b) {
              for (std::int32_t layer = 0; layer < memory_.layout(g).group.cache_layers; ++layer) {
                memory_.Fill(
                    g, job.slabs[static_cast<std::size_t>(g)][static_cast<std::size_t>(b - first)],
                    layer, job.moved, b);
              }
            }
          }
          done({.end_block = end});
        });
  }
  void CancelFetch(decode::JobId) override {}
  void CameOnDevice(decode::JobId, std::int32_t, std::int32_t) override {}
  void StopChoice(decode::JobId id, std::int32_t choice) {
    Job& job = jobs_.at(id);
    Answer& answer = job.answers.at(static_cast<std::size_t>(choice));
    answer.live = false;
  }

 private:
  struct Answer {
    TokenSource source;
    bool live = true;
  };
  struct Job {
    bool reserved = false;
    std::vector<TokenId> moved;
    std::vector<std::vector<std::uint32_t>> slabs{2};
    std::vector<std::int32_t> first{0, 0};
    std::vector<Answer> answers;
    std::int32_t left = 0;
    bool ignore_eos = true;
    Loop::TimerId timer{};
    Loop::TimerId fetch{};
  };
  Duration Think() { return std::chrono::microseconds(rng_() % 20000); }

  absl::StatusOr<decode::Room> Room(decode::JobId id, std::size_t full_blocks) {
    Job& job = jobs_.at(id);
    const auto tokens = static_cast<std::int32_t>(job.moved.size());
    const std::int32_t blocks = BlocksOf(job.moved.size());
    if (!memory_.Has(static_cast<std::size_t>(blocks)) ||
        std::uniform_real_distribution<>()(rng_) < refuse_) {
      jobs_.erase(id);
      return absl::ResourceExhaustedError("no room");
    }
    std::int32_t reused = 0;
    if (rng_() % 2 == 0) reused = static_cast<std::int32_t>(rng_() % (full_blocks + 1));
    decode::Room room{.reused_tokens = reused * kBlockTokens, .groups = {}};
    for (std::int32_t g = 0; g < memory_.groups(); ++g) {
      const auto i = static_cast<std::size_t>(g);
      job.first[i] = memory_.FirstNeeded(g, tokens);
      transfer::HandoffReceiver::Target::Group group{.first_block = job.first[i], .slabs = {}};
      for (std::int32_t b = job.first[i]; b < blocks; ++b) {
        const std::uint32_t slab = memory_.Take(g);
        job.slabs[i].push_back(slab);
        group.slabs.push_back(memory_.Address(g, slab));
        if (b >= reused) continue;
        for (std::int32_t layer = 0; layer < memory_.layout(g).group.cache_layers; ++layer) {
          memory_.Fill(g, slab, layer, job.moved, b);
        }
      }
      room.groups.push_back(std::move(group));
    }
    return room;
  }
  void ExpectRight(const Job& job, std::int32_t blocks) {
    for (std::int32_t g = 0; g < memory_.groups(); ++g) {
      const auto i = static_cast<std::size_t>(g);
      for (std::int32_t b = job.first[i]; b < blocks; ++b) {
        const std::uint32_t slab = job.slabs[i][static_cast<std::size_t>(b - job.first[i])];
        EXPECT_TRUE(memory_.IsRight(g, memory_.Address(g, slab), job.moved, b))
            << "group " << g << ", block " << b << " of " << job.moved.size() << " tokens";
      }
    }
  }
  // One token of each answer.
  void Step(decode::JobId id) {
    Job& job = jobs_.at(id);
    --job.left;
    FakeTokens tokens;
    bool live = false;
    for (std::size_t i = 0; i < job.answers.size(); ++i) {
      Answer& answer = job.answers[i];
      if (!answer.live) continue;
      const TokenId token = answer.source.Next();
      const bool stopped = !job.ignore_eos && IsEos(token);
      answer.live = !stopped && job.left > 0;
      live |= answer.live;
      tokens.outputs.push_back(
          {static_cast<std::int32_t>(i), token, stopped, !stopped && job.left == 0});
    }
    if (live) {
      job.timer = loop_.At(loop_.Now() + Think(), [this, id] { Step(id); });
    } else {
      Free(id);
    }
    state_->OnTokens(id, tokens);
    if (!live) state_->OnEnd(id, absl::OkStatus());
  }
  void Free(decode::JobId id) {
    const auto it = jobs_.find(id);
    if (it == jobs_.end()) return;
    loop_.CancelTimer(it->second.timer);
    memory_.GiveAll(it->second.slabs);
    jobs_.erase(it);
  }

  Loop& loop_;
  Memory& memory_;
  std::mt19937& rng_;
  const double refuse_;
  decode::DecodeState* state_ = nullptr;
  std::vector<TokenId> next_;
  std::map<decode::JobId, Job> jobs_;
  std::map<decode::JobId, std::array<Loop::TimerId, 2>>
      imports_;  // When they end, and are to begin.
};

}  // namespace penstock::sim
