// SPDX-License-Identifier: Apache-2.0
// Engines of the simulator: they take time, fill and judge bytes, and compute nothing.
#pragma once

#include <algorithm>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "base/event_loop.h"
#include "decode/decode_state.h"
#include "gtest/gtest.h"
#include "prefill/prefill_state.h"
#include "sim/sim_memory.h"

namespace penstock::sim {

class FakePrefillEngine final : public prefill::PrefillEngine {
 public:
  FakePrefillEngine(Loop& loop, Memory& memory, std::mt19937& rng, double refuse)
      : loop_(loop), memory_(memory), rng_(rng), refuse_(refuse) {}
  ~FakePrefillEngine() override {
    for (auto& [id, job] : jobs_) loop_.CancelTimer(job.timer);
  }
  void Connect(prefill::PrefillState& state) { state_ = &state; }

  void Submit(prefill::JobId id, prefill::Prompt prompt) override {
    Job& job = jobs_[id];
    job.tokens = std::move(prompt.tokens);
    job.timer = loop_.At(loop_.Now() + Think(), [this, id] { Begin(id); });
  }
  void End(prefill::JobId id) override {
    const auto it = jobs_.find(id);
    if (it == jobs_.end()) return;
    loop_.CancelTimer(it->second.timer);
    memory_.GiveAll(it->second.slabs);
    jobs_.erase(it);
  }

 private:
  struct Job {
    std::vector<TokenId> tokens;
    std::vector<std::vector<std::uint32_t>> slabs{2};
    std::int32_t done = 0;  // Blocks.
    Loop::TimerId timer{};
  };
  Duration Think() { return std::chrono::microseconds(rng_() % 20000); }

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
    const std::int32_t end = job.done + 1 + static_cast<std::int32_t>(rng_() % left);
    std::vector<transfer::HandoffSender::Told> all;
    for (std::int32_t g = 0; g < memory_.groups(); ++g) {
      for (std::int32_t layer = 0; layer < memory_.layout(g).group.cache_layers; ++layer) {
        transfer::HandoffSender::Told told{
            .group = g, .cache_layer = layer, .first_block = 0, .slabs = {}};
        told.first_block = std::max(
            job.done, memory_.FirstNeeded(g, static_cast<std::int32_t>(job.tokens.size())));
        for (std::int32_t b = job.done; b < end; ++b) {
          const std::uint32_t slab =
              job.slabs[static_cast<std::size_t>(g)][static_cast<std::size_t>(b)];
          memory_.Fill(g, slab, layer, job.tokens, b);
          if (b >= told.first_block) told.slabs.push_back(slab);
        }
        if (!told.slabs.empty()) all.push_back(std::move(told));
      }
    }
    job.done = end;
    if (end < blocks) job.timer = loop_.At(loop_.Now() + Think(), [this, id] { Chunk(id); });
    for (const transfer::HandoffSender::Told& told : all) state_->OnTold(id, told);
  }

  Loop& loop_;
  Memory& memory_;
  std::mt19937& rng_;
  const double refuse_;
  prefill::PrefillState* state_ = nullptr;
  std::map<prefill::JobId, Job> jobs_;
};

struct FakeWork final : decode::DecodeEngine::Work {
  std::vector<TokenId> moved;  // The prompt but for its last token.
};

class FakeDecodeEngine final : public decode::DecodeEngine {
 public:
  // `prompts` are known by the first chain, or by their size: what Reserve is about.
  FakeDecodeEngine(Loop& loop, Memory& memory, std::mt19937& rng, double refuse)
      : loop_(loop), memory_(memory), rng_(rng), refuse_(refuse) {}
  ~FakeDecodeEngine() override {
    for (auto& [id, job] : jobs_) loop_.CancelTimer(job.timer);
  }
  void Connect(decode::DecodeState& state) { state_ = &state; }
  // The tokens behind chains, which the engine itself never learns.
  void Know(const std::vector<Chain>& chains, const std::vector<TokenId>& moved) {
    if (!chains.empty()) known_[chains.back()] = moved;
  }

  void Reserve(decode::JobId id, std::int32_t tokens, std::vector<Chain> chains,
               std::function<void(absl::StatusOr<decode::Room>)> done) override {
    jobs_[id].timer = loop_.At(loop_.Now() + Think(), [this, id, tokens, chains, done] {
      done(Room(id, tokens, chains));
    });
  }
  void EndReservation(decode::JobId id, std::int32_t blocks_valid) override {
    Job& job = jobs_.at(id);
    ASSERT_FALSE(job.ended);
    job.ended = true;
    if (!job.moved.empty()) ExpectRight(job, blocks_valid);
    Free(id);
  }
  void Run(decode::JobId id, std::unique_ptr<Work> work) override {
    Job& job = jobs_[id];
    const std::vector<TokenId>& moved = static_cast<FakeWork&>(*work).moved;
    job.moved = moved;
    if (!job.slabs[0].empty()) {  // Else it prefills by itself.
      ASSERT_EQ(job.tokens, static_cast<std::int32_t>(moved.size()));
      ExpectRight(job, BlocksOf(moved.size()));
    }
    job.left = 1 + static_cast<int>(rng_() % 5);
    job.timer = loop_.At(loop_.Now() + Think(), [this, id] { Token(id); });
  }
  void Cancel(decode::JobId id) override { Free(id); }

 private:
  struct Job {
    std::int32_t tokens = 0;
    std::vector<TokenId> moved;  // Where known.
    std::vector<std::vector<std::uint32_t>> slabs{2};
    std::vector<std::int32_t> first{0, 0};
    int left = 0;
    bool ended = false;
    Loop::TimerId timer{};
  };
  Duration Think() { return std::chrono::microseconds(rng_() % 20000); }

  absl::StatusOr<decode::Room> Room(decode::JobId id, std::int32_t tokens,
                                    const std::vector<Chain>& chains) {
    Job& job = jobs_.at(id);
    const std::int32_t blocks = BlocksOf(static_cast<std::size_t>(tokens));
    if (!memory_.Has(static_cast<std::size_t>(blocks)) ||
        std::uniform_real_distribution<>()(rng_) < refuse_) {
      jobs_.erase(id);
      return absl::ResourceExhaustedError("no room");
    }
    job.tokens = tokens;
    const auto known = chains.empty() ? known_.end() : known_.find(chains.back());
    std::int32_t reused = 0;
    if (known != known_.end()) {
      job.moved = known->second;
      if (rng_() % 2 == 0) reused = static_cast<std::int32_t>(rng_() % (chains.size() + 1));
    }
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
            << "group " << g << ", block " << b << " of " << job.tokens << " tokens";
      }
    }
  }
  void Token(decode::JobId id) {
    Job& job = jobs_.at(id);
    const bool last = --job.left == 0;
    if (!last) job.timer = loop_.At(loop_.Now() + Think(), [this, id] { Token(id); });
    state_->OnTokens(id, Tokens{});
    if (!last) return;
    Free(id);
    state_->OnEnd(id, absl::OkStatus());
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
  std::map<decode::JobId, Job> jobs_;
  std::map<Chain, std::vector<TokenId>> known_;
};

}  // namespace penstock::sim
