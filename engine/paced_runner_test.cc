// SPDX-License-Identifier: Apache-2.0
#include "engine/paced_runner.h"

#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include "device/cpu_device.h"
#include "engine/engine.h"
#include "gtest/gtest.h"

namespace penstock::engine {
namespace {

constexpr std::int32_t kVocab = 1000;
constexpr std::int32_t kPromptTokens = 150;

KvSpec Spec(KvDtype dtype) {
  const KvGroup full = {.window_tokens = 0,
                        .cache_layers = 2,
                        .kv_heads = 2,
                        .k_dim = 16,
                        .v_dim = 8,
                        .dtype = dtype};
  KvGroup window = full;
  window.window_tokens = 40;
  return {.groups = {full, window}, .layers = {{0, 0}, {1, 0}, {1, 1}, {0, 1}}};
}

class FakeClock final : public Clock {
 public:
  MonoTime Now() const override { return now; }
  MonoTime now = {};
};

// An engine on a runner whose time passes as it is waited for.
struct Paced {
  Paced(std::int32_t block_tokens, std::int32_t chunk_tokens, KvDtype dtype = KvDtype::kF16) {
    Engine::Options options;
    options.chunk_tokens = chunk_tokens;
    options.pool = {.pool_bytes = 1 << 22, .block_tokens = block_tokens, .page_tokens = 16};
    Engine::RunnerParts parts;
    parts.pool = *KvPool::Make(*device, Spec(dtype), options.pool);
    pool = parts.pool.get();
    parts.runner = std::make_unique<PacedRunner>(
        *pool,
        PacedRunner::Options{.pace = pace,
                             .vocab = kVocab,
                             .rows_max = options.step_tokens,
                             .logit_rows_max = options.sequences_max},
        clock, [this](MonoTime when) { clock.now = std::max(clock.now, when); });
    parts.vocab = kVocab;
    parts.context_tokens_max = 4096;
    engine = *Engine::MakeOn(std::move(parts), options);
  }
  std::vector<TokenId> Answer(const std::vector<TokenId>& prompt, std::int32_t tokens) {
    Request request;
    request.prompt = prompt;
    request.max_tokens = tokens;
    EXPECT_TRUE(engine->Submit(request).ok());
    return Drain();
  }
  std::vector<TokenId> Drain() {
    std::vector<TokenId> answer;
    while (!engine->idle()) {
      for (const TokenOutput& output : engine->Step().outputs) {
        answer.push_back(output.token->token);
      }
    }
    return answer;
  }

  const Pace pace = {.prefill_tokens_per_s = 1000,
                     .step = std::chrono::milliseconds(5),
                     .sequence = std::chrono::milliseconds(1)};
  FakeClock clock;
  const std::unique_ptr<CpuDevice> device = *CpuDevice::Make({.threads = 1});
  KvPool* pool = nullptr;
  std::unique_ptr<Engine> engine;
};

std::vector<TokenId> Prompt() {
  std::vector<TokenId> prompt(kPromptTokens);
  for (std::size_t i = 0; i < prompt.size(); ++i) prompt[i] = static_cast<TokenId>(i * 7 % kVocab);
  return prompt;
}

TEST(PacedRunnerTest, TokensDependOnTheTokensBeforeThemAlone) {
  const std::vector<TokenId> want = Paced(32, 512).Answer(Prompt(), 20);
  ASSERT_EQ(want.size(), 20u);
  EXPECT_EQ(Paced(16, 512).Answer(Prompt(), 20), want);
  EXPECT_EQ(Paced(32, 32).Answer(Prompt(), 20), want);
  EXPECT_EQ(Paced(32, 512, KvDtype::kInt8).Answer(Prompt(), 20), want);
  Paced busy(32, 64);
  busy.Answer(std::vector<TokenId>(70, 3), 5);
  EXPECT_EQ(busy.Answer(Prompt(), 20), want);
  EXPECT_EQ(busy.Answer(Prompt(), 20), want);  // Its prefix is found.

  std::vector<TokenId> other = Prompt();
  other[0] = 999;
  EXPECT_NE(Paced(32, 512).Answer(other, 20), want);
}

TEST(PacedRunnerTest, DamagedKvShowsInTheAnswer) {
  const std::vector<TokenId> want = Paced(32, 512).Answer(Prompt(), 20);
  for (std::int32_t g = 0; g < 2; ++g) {
    Paced damaged(32, 512);
    // Of the positions that it samples, 0 to 128, one is in each cached block.
    damaged.Answer(Prompt(), 1);
    std::byte* const bytes = damaged.pool->memory(g).data();
    for (std::size_t i = 0; i < 5 * damaged.pool->slab_bytes(g); i += 8) bytes[i] ^= std::byte{1};
    EXPECT_NE(damaged.Answer(Prompt(), 20), want) << "group " << g;
  }
}

TEST(PacedRunnerTest, APassTakesItsTimeLayerByLayer) {
  Paced paced(32, 512);
  std::vector<MonoTime> layers;
  paced.engine->set_layer_done(
      [&](std::int32_t, std::span<const PrefillBlocks>) { layers.push_back(paced.clock.now); });
  ASSERT_TRUE(paced.engine->SubmitPrefill({.tokens = Prompt()}).ok());
  paced.engine->Step();
  // 5 ms and 150 tokens at 1,000 a second.
  ASSERT_EQ(layers.size(), 4u);
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(layers[i].time_since_epoch(), std::chrono::microseconds(155000) * (i + 1) / 4);
  }
  paced.clock.now = {};
  paced.engine->set_layer_done(nullptr);
  for (int i = 0; i < 3; ++i) {
    Request request;
    request.prompt = {1};
    request.max_tokens = 1;
    ASSERT_TRUE(paced.engine->Submit(request).ok());
  }
  paced.engine->Step();
  EXPECT_EQ(paced.clock.now.time_since_epoch(), std::chrono::milliseconds(5 + 3));
}

TEST(PacedRunnerTest, PacesOutOfRangeAreErrors) {
  EXPECT_TRUE(Pace().Validate().ok());
  EXPECT_EQ(Pace{.prefill_tokens_per_s = 0}.Validate().message(),
            "prefill_tokens_per_s must be from 1 to 1000000000, got 0");
  EXPECT_EQ(Pace{.step = std::chrono::seconds(11)}.Validate().message(),
            "microseconds of a step must be from 0 to 10000000, got 11000000");
}

}  // namespace
}  // namespace penstock::engine
