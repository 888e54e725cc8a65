// SPDX-License-Identifier: Apache-2.0
#include "engine/engine.h"

#include <map>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "engine/block_table.h"
#include "engine/fake_worker.h"
#include "gtest/gtest.h"

namespace penstock::engine {
namespace {

// Tokens that differ from those of other `salt`s.
std::vector<TokenId> Prompt(std::int32_t tokens, std::int32_t salt = 0) {
  std::vector<TokenId> prompt;
  for (std::int32_t i = 0; i < tokens; ++i) prompt.push_back((i * 7 + salt * 13 + 1) % kVocab);
  return prompt;
}

class EngineTest : public testing::Test {
 protected:
  void Make(WorkerSetup setup) {
    setup.end_of_generation = {0};
    worker_ = std::make_unique<Worker>(std::move(setup));
    engine_ = worker_->engine.get();
    runner_ = worker_->runner;
  }

  RequestId Submit(Request request) { return *engine_->Submit(std::move(request)); }

  StepReport Step() {
    StepReport report = engine_->Step();
    for (const TokenOutput& output : report.outputs) {
      auto& [tokens, finish] = answers_[{output.request, output.choice}];
      if (output.token.has_value()) tokens.push_back(output.token->token);
      finish = output.finish;
    }
    return report;
  }
  void RunAll() {
    for (int i = 0; i < 10000 && !engine_->idle(); ++i) Step();
    ASSERT_TRUE(engine_->idle());
    EXPECT_EQ(engine_->PoolStats().bytes_held, 0u);
  }
  std::vector<TokenId> Tokens(RequestId request, std::int32_t choice = 0) {
    return answers_[{request, choice}].first;
  }
  std::optional<FinishReason> Finish(RequestId request, std::int32_t choice = 0) {
    return answers_[{request, choice}].second;
  }
  std::int64_t SlabsHeld(std::size_t group) {
    return engine_->PoolStats().groups[group].slabs_held;
  }

  std::unique_ptr<Worker> worker_;
  Engine* engine_ = nullptr;
  FakeStepRunner* runner_ = nullptr;
  std::map<std::pair<RequestId, std::int32_t>,
           std::pair<std::vector<TokenId>, std::optional<FinishReason>>>
      answers_;
};

using Chunks = std::vector<FakeStepRunner::Chunk>;

TEST_F(EngineTest, RefusesBadRequestsWithBothNumbers) {
  Make({.slabs = 5, .options = {.context_tokens_max = 60}});
  ASSERT_EQ(engine_->tokens_max(), 40);
  const auto message = [&](auto change) {
    Request request = Greedy(Prompt(10), 5);
    change(request);
    const absl::Status status = engine_->Submit(request).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(ToStd(status.message()));
  };
  EXPECT_EQ(message([](Request& r) { r.prompt.clear(); }),
            "prompt must have at least 1 token, got 0");
  EXPECT_EQ(message([](Request& r) { r.prompt = Prompt(61); }),
            "prompt has 61 tokens, the context holds 60");
  EXPECT_EQ(message([](Request& r) { r.prompt = Prompt(41); }),
            "prompt has 41 tokens, the KV pool of 20480 bytes holds 40");
  EXPECT_EQ(message([](Request& r) { r.prompt[3] = 100; }),
            "prompt[3] must be from 0 to 99, got 100");
  EXPECT_EQ(message([](Request& r) { r.prompt[0] = -1; }),
            "prompt[0] must be from 0 to 99, got -1");
  EXPECT_EQ(message([](Request& r) { r.n = 65; }), "n must be from 1 to 64, got 65");
  EXPECT_EQ(message([](Request& r) { r.max_tokens = 0; }),
            "max_tokens must be from 1 to 2147483647, got 0");
  EXPECT_EQ(message([](Request& r) {
              r.stop_tokens = {5, 101};
            }),
            "stop_tokens[1] must be from 0 to 99, got 101");
  EXPECT_NE(message([](Request& r) { r.sampling.temperature = -1; }), "");
  EXPECT_TRUE(engine_->idle());
}

TEST_F(EngineTest, RefusesOptionsOutOfRange) {
  const auto message = [&](const Engine::Options& options) {
    Engine::RunnerParts parts;
    parts.context_tokens_max = 1000;
    const absl::Status status = Engine::MakeOn(std::move(parts), options).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(ToStd(status.message()));
  };
  Engine::Options options;
  options.step_tokens = 63;
  EXPECT_EQ(message(options), "step_tokens must be from 64 to 1048576, got 63");
  options = {};
  options.context_tokens_max = 1001;
  EXPECT_EQ(message(options), "context_tokens_max must be from 0 to 1000, got 1001");
  options = {};
  options.compute_tokens_per_s = 0;
  EXPECT_EQ(message(options), "compute_tokens_per_s must be above 0, got 0");
}

TEST_F(EngineTest, RefusesWhenTooManyWait) {
  Make({.options = {.requests_max = 2}});
  Submit(Greedy(Prompt(3), 2));
  Submit(Greedy(Prompt(3), 2));
  EXPECT_EQ(engine_->Submit(Greedy(Prompt(3), 2)).status().code(),
            absl::StatusCode::kResourceExhausted);
  Step();
  EXPECT_TRUE(engine_->Submit(Greedy(Prompt(3), 2)).ok()) << "those that run do not wait";
  RunAll();
}

TEST_F(EngineTest, AnswersAreCutToWhatPoolAndContextHold) {
  Make({.slabs = 5});
  const RequestId id = Submit(Greedy(Prompt(38), 256));
  RunAll();
  EXPECT_EQ(Tokens(id).size(), 3u) << "38 + 3 tokens, of which the last needs no KV";
  EXPECT_EQ(Finish(id), FinishReason::kLength);
  const RequestId full = Submit(Greedy(Prompt(40), 256));
  RunAll();
  EXPECT_EQ(Tokens(full).size(), 1u);
}

TEST_F(EngineTest, ChunksEndOnBlockBordersBesideRunningAnswers) {
  Make({.options = {.step_tokens = 30, .chunk_tokens = 20, .sequences_max = 4}});
  Submit(Greedy(Prompt(5, 1), 20));
  Step();
  EXPECT_EQ(runner_->last_run(), (Chunks{{0, 5}}));
  Submit(Greedy(Prompt(37, 2), 5));
  Submit(Greedy(Prompt(50, 3), 5));
  Step();  // 29 rows are left: 16 of at most 20, then 8 of 13.
  EXPECT_EQ(runner_->last_run(), (Chunks{{5, 1}, {0, 16}, {0, 8}}));
  Step();
  EXPECT_EQ(runner_->last_run(), (Chunks{{6, 1}, {16, 16}, {8, 8}}));
  const StepReport report = Step();
  EXPECT_EQ(runner_->last_run(), (Chunks{{7, 1}, {32, 5}, {16, 16}}));
  EXPECT_EQ(report.decode_rows, 1);
  EXPECT_EQ(report.prefill_rows, 21);
  RunAll();
}

TEST_F(EngineTest, LessThanABlockPerStepStillGoesOn) {
  Make({.options = {.step_tokens = 4, .chunk_tokens = 512, .sequences_max = 3}});
  Submit(Greedy(Prompt(2, 1), 30));
  Submit(Greedy(Prompt(20, 2), 3));
  Step();
  Step();
  EXPECT_EQ(runner_->last_run(), (Chunks{{2, 1}, {0, 3}}));
  RunAll();
}

TEST_F(EngineTest, HigherPriorityGoesFirst) {
  Make({.options = {.step_tokens = 16, .chunk_tokens = 16, .sequences_max = 2}});
  Request later = Greedy(Prompt(16, 1), 1);
  Request urgent = Greedy(Prompt(16, 2), 1);
  urgent.priority = 1;
  const RequestId first = Submit(later);
  const RequestId second = Submit(later);
  const RequestId third = Submit(urgent);
  std::vector<RequestId> order;
  while (!engine_->idle()) {
    for (const TokenOutput& output : Step().outputs) order.push_back(output.request);
  }
  EXPECT_EQ(order, (std::vector{third, first, second}));
}

TEST_F(EngineTest, PrefixesAreSharedUnderTheSameSaltOnly) {
  Make({});
  Submit(Greedy(Prompt(32), 4));
  RunAll();
  const RequestId same = Submit(Greedy(Prompt(32), 4));
  Request salted = Greedy(Prompt(32), 4);
  salted.root = RootChain("tenant", 8);
  const RequestId other = Submit(salted);
  RunAll();
  EXPECT_EQ(engine_->Stats(same)->reused_tokens, 24) << "one token must be computed";
  EXPECT_EQ(engine_->Stats(other)->reused_tokens, 0);
  EXPECT_EQ(Tokens(same), Tokens(other));
  const RequestId longer = Submit(Greedy(Prompt(60), 1));
  RunAll();
  EXPECT_EQ(engine_->Stats(longer)->reused_tokens, 32);
}

TEST_F(EngineTest, BlocksOfAnAnswerAreReusedByTheNextTurn) {
  Make({});
  const RequestId first = Submit(Greedy(Prompt(20), 21));
  RunAll();
  std::vector<TokenId> next = Prompt(20);
  for (const TokenId token : Tokens(first)) next.push_back(token);
  ASSERT_EQ(next.size(), 41u);
  const RequestId second = Submit(Greedy(next, 2));
  RunAll();
  EXPECT_EQ(engine_->Stats(second)->reused_tokens, 40);
}

TEST_F(EngineTest, WindowGroupsHoldOnlyTheirWindow) {
  Make({.windows = {0, 16}, .options = {.chunk_tokens = 24}});
  Submit(Greedy(Prompt(80), 60));
  while (!engine_->idle()) {
    Step();
    if (!engine_->idle()) {
      EXPECT_LE(SlabsHeld(1), 3) << "15 tokens before a row span three blocks at most";
    }
  }
  EXPECT_GT(engine_->PoolStats().groups[0].slabs_cached, 15);
}

TEST_F(EngineTest, AnswersOfOneRequestShareThePromptsBlocks) {
  Make({});
  Request request = Greedy(Prompt(36), 3);
  request.n = 4;
  request.sampling.temperature = 1;
  const RequestId id = Submit(request);
  Step();
  Step();
  EXPECT_EQ(SlabsHeld(0), 4 + 4) << "four full blocks for all, a tail for each";
  RunAll();
  for (std::int32_t c = 0; c < 4; ++c) EXPECT_EQ(Tokens(id, c).size(), 3u);
  EXPECT_NE(Tokens(id, 0), Tokens(id, 1));
}

TEST_F(EngineTest, CancelFreesAtOnceAndReportsNext) {
  Make({});
  Request request = Greedy(Prompt(36), 50);
  request.n = 3;
  const RequestId id = Submit(request);
  const RequestId waiting = Submit(Greedy(Prompt(5), 5));
  Step();
  engine_->Cancel(id);
  engine_->Cancel(id);
  engine_->Cancel(waiting);
  EXPECT_EQ(engine_->PoolStats().bytes_held, 0u);
  EXPECT_FALSE(engine_->idle()) << "there is something to report";
  const StepReport report = Step();
  ASSERT_EQ(report.outputs.size(), 4u);
  for (std::size_t c = 0; c < 3; ++c) {
    EXPECT_EQ(report.outputs[c].choice, static_cast<std::int32_t>(c));
    EXPECT_EQ(report.outputs[c].finish, FinishReason::kCancelled);
    EXPECT_FALSE(report.outputs[c].token.has_value());
  }
  EXPECT_TRUE(engine_->idle());
  engine_->Cancel(RequestId{12345});
  EXPECT_TRUE(engine_->idle());
}

TEST_F(EngineTest, StopChoiceEndsOneAnswerInSilence) {
  Make({});
  Request request = Greedy(Prompt(10), 6);
  request.n = 2;
  const RequestId id = Submit(request);
  Step();
  engine_->StopChoice(id, 0);
  engine_->StopChoice(id, 7);
  RunAll();
  EXPECT_EQ(Tokens(id, 0).size(), 1u);
  EXPECT_FALSE(Finish(id, 0).has_value());
  EXPECT_EQ(Tokens(id, 1).size(), 6u);
  const RequestId early = Submit(request);
  engine_->StopChoice(early, 0);
  RunAll();
  EXPECT_TRUE(Tokens(early, 0).empty());
  EXPECT_EQ(Tokens(early, 1), Tokens(id, 1));
}

TEST_F(EngineTest, StopsAtStopTokensAndEndOfGeneration) {
  Make({});
  const RequestId plain = Submit(Greedy(Prompt(10), 12));
  RunAll();
  const std::vector<TokenId> tokens = Tokens(plain);
  Request request = Greedy(Prompt(10), 12);
  request.stop_tokens = {tokens[4]};
  const RequestId stopped = Submit(request);
  RunAll();
  EXPECT_EQ(Finish(stopped), FinishReason::kStop);
  EXPECT_EQ(Tokens(stopped).back(), tokens[4]) << "the stop token is emitted";
  request.stop_tokens.clear();
  request.sampling.logit_bias = {{0, 100.0}};
  request.ignore_eos = false;
  const RequestId ended = Submit(request);
  RunAll();
  EXPECT_EQ(Tokens(ended), std::vector<TokenId>{0});
  EXPECT_EQ(Finish(ended), FinishReason::kStop);
}

TEST_F(EngineTest, ABrokenRowEndsItsRequestAlone) {
  Make({});
  runner_->BreakOn(99);
  std::vector<TokenId> poisoned = Prompt(10);
  poisoned.back() = 99;
  Request healthy = Greedy(Prompt(10, 1), 1);
  const RequestId bad = Submit(Greedy(poisoned, 5));
  const RequestId good = Submit(healthy);
  const StepReport report = Step();
  ASSERT_EQ(report.outputs.size(), 2u);
  EXPECT_EQ(report.outputs[0].finish, FinishReason::kError);
  EXPECT_EQ(report.outputs[0].error.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(Finish(bad), FinishReason::kError);
  EXPECT_EQ(Finish(good), FinishReason::kLength);
  EXPECT_TRUE(engine_->idle());
}

TEST_F(EngineTest, StatsStayForTwoSteps) {
  Make({});
  const RequestId id = Submit(Greedy(Prompt(10), 1));
  EXPECT_EQ(engine_->Stats(id)->prompt_tokens, 10);
  Step();
  EXPECT_TRUE(engine_->Stats(id).has_value());
  Step();
  EXPECT_TRUE(engine_->Stats(id).has_value());
  Step();
  EXPECT_FALSE(engine_->Stats(id).has_value());
}

// Two answers that outgrow the pool together: the later one gives way, once, and gives the same
// tokens in the end, whether it computed its blocks again or had them saved.
TEST_F(EngineTest, ThePreemptedResumeWithTheSameTokens) {
  Make({.slabs = 64});
  const RequestId a = Submit(Greedy(Prompt(20, 1), 40));
  const RequestId b = Submit(Greedy(Prompt(20, 2), 40));
  RunAll();
  const std::vector<TokenId> want_a = Tokens(a), want_b = Tokens(b);
  for (const std::size_t swap_bytes : {std::size_t{0}, std::size_t{1} << 20}) {
    SCOPED_TRACE(absl::StrCat("swap_bytes ", swap_bytes));
    answers_.clear();
    Make({.slabs = 10, .options = {.swap_bytes = swap_bytes}});
    const RequestId first = Submit(Greedy(Prompt(20, 1), 40));
    const RequestId second = Submit(Greedy(Prompt(20, 2), 40));
    std::int32_t prefill_rows = 0, preempted = 0;
    std::size_t swapped = 0;
    while (!engine_->idle()) {
      const StepReport report = Step();
      prefill_rows += report.prefill_rows;
      preempted += report.preempted;
      swapped = std::max(swapped, engine_->swap_bytes_used());
    }
    EXPECT_EQ(Tokens(first), want_a);
    EXPECT_EQ(Tokens(second), want_b);
    EXPECT_EQ(preempted, 1);
    EXPECT_EQ(engine_->Stats(second)->preemptions, 1) << "the later one";
    EXPECT_EQ(swapped > 0, swap_bytes > 0);
    if (swap_bytes > 0) {
      EXPECT_EQ(prefill_rows, 40) << "nothing was computed twice";
    } else {
      EXPECT_GT(prefill_rows, 40);
    }
  }
}

TEST_F(EngineTest, ALargeRequestIsNotOvertakenForEver) {
  Make({.slabs = 8, .options = {.sequences_max = 8}});
  for (std::int32_t i = 0; i < 3; ++i) Submit(Greedy(Prompt(10, i), 10));
  Step();
  const RequestId large = Submit(Greedy(Prompt(60, 9), 2));
  std::int32_t steps = 0;
  for (; !Finish(large).has_value() && steps < 200; ++steps) {
    Submit(Greedy(Prompt(10, steps), 10));  // Always another small one that would fit.
    Step();
  }
  EXPECT_LT(steps, 20);
  RunAll();
}

TEST_F(EngineTest, SameCallsGiveTheSameSteps) {
  std::vector<std::string> runs;
  for (int run = 0; run < 2; ++run) {
    Make({.windows = {0, 16}, .slabs = 20, .options = {.step_tokens = 40, .sequences_max = 6}});
    std::string log;
    for (std::int32_t i = 0; i < 12; ++i) {
      Request request = Greedy(Prompt(10 + i * 3, i % 4), 10 + i);
      request.n = 1 + i % 3;
      Submit(request);
    }
    while (!engine_->idle()) {
      const StepReport report = Step();
      absl::StrAppend(&log, report.prefill_rows, "/", report.decode_rows, "/", report.preempted,
                      ":");
      for (const FakeStepRunner::Chunk& chunk : runner_->last_run()) {
        absl::StrAppend(&log, chunk.position, "+", chunk.rows, " ");
      }
    }
    runs.push_back(log);
  }
  EXPECT_EQ(runs[0], runs[1]);
}

}  // namespace
}  // namespace penstock::engine
