// SPDX-License-Identifier: Apache-2.0
// Prompts that are computed from the front while their blocks come from elsewhere, in any order,
// late or never: what leaves is what computing all would give, bit by bit.
#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "base/seed_testing.h"
#include "engine/engine.h"
#include "engine/fake_worker.h"
#include "gtest/gtest.h"

namespace penstock::engine {
namespace {

using Bytes = std::vector<std::byte>;

std::vector<TokenId> RandomTokens(std::mt19937& rng, std::size_t count) {
  std::vector<TokenId> tokens(count);
  for (TokenId& token : tokens) token = static_cast<TokenId>(rng() % kVocab);
  return tokens;
}

// What prefills tell of, by request, group and block.
class Told {
 public:
  explicit Told(Worker& worker) : worker_(worker) {
    worker.engine->set_layer_done([this](std::int32_t g, std::span<const PrefillBlocks> prefills) {
      for (const PrefillBlocks& told : prefills) Take(g, told);
    });
  }
  using Blocks = std::map<std::pair<std::int32_t, std::int32_t>, Bytes>;
  Blocks take(RequestId request) { return std::exchange(of_[request], {}); }

 private:
  void Take(std::int32_t g, const PrefillBlocks& told) {
    const SequenceInput::Blocks& blocks = told.blocks[static_cast<std::size_t>(g)];
    const std::int32_t first = told.first_needed[static_cast<std::size_t>(g)];
    for (std::int32_t b = std::max(told.first_block, first); b < told.end_block; ++b) {
      const SlabRef slab = blocks.slabs[static_cast<std::size_t>(b - blocks.first_block)];
      worker_.pool->WaitForCopy(worker_.pool->last_copy());
      const std::byte* const at = worker_.pool->Address(g, slab);
      EXPECT_TRUE(of_[told.request].emplace(std::pair(g, b), Bytes(at, at + kSlabBytes)).second)
          << "told twice";
    }
  }

  Worker& worker_;
  std::map<RequestId, Blocks> of_;
};

// All blocks of a prompt, computed on a worker of its own; of window groups, too.
std::map<std::pair<std::int32_t, std::int32_t>, Bytes> Computed(
    const std::vector<std::int32_t>& windows, const std::vector<TokenId>& tokens) {
  Worker worker({.windows = windows, .slabs = 512});
  std::map<std::pair<std::int32_t, std::int32_t>, Bytes> all;
  worker.engine->set_layer_done([&](std::int32_t g, std::span<const PrefillBlocks> prefills) {
    const SequenceInput::Blocks& blocks = prefills[0].blocks[static_cast<std::size_t>(g)];
    for (std::size_t i = 0; i < blocks.slabs.size(); ++i) {
      const std::byte* const at = worker.pool->Address(g, blocks.slabs[i]);
      all[{g, blocks.first_block + static_cast<std::int32_t>(i)}] = Bytes(at, at + kSlabBytes);
    }
  });
  const auto submitted = worker.engine->SubmitPrefill({.tokens = tokens});
  EXPECT_TRUE(submitted.ok()) << submitted.status();
  while (!worker.engine->idle()) worker.engine->Step();
  return all;
}

// What a worker of its own answers.
std::vector<TokenId> Answered(const std::vector<std::int32_t>& windows, const Request& request) {
  Worker worker({.windows = windows, .slabs = 512});
  EXPECT_TRUE(worker.engine->Submit(request).ok());
  std::vector<TokenId> answer;
  while (!worker.engine->idle()) {
    for (const TokenOutput& output : worker.engine->Step().outputs) {
      answer.push_back(output.token->token);
    }
  }
  return answer;
}

// The rows of one block that hold tokens; what lies behind them means nothing.
void ExpectSame(const Bytes& got, const Bytes& want, std::int32_t rows) {
  EXPECT_EQ(std::memcmp(got.data(), want.data(), sizeof(FakeValue) * static_cast<unsigned>(rows)),
            0);
}

// One prompt's blocks on their way.
struct Flight {
  std::vector<TokenId> tokens = {};
  std::map<std::pair<std::int32_t, std::int32_t>, Bytes> want = {};
  std::optional<Request> decode = {};  // None: a prefill.
  std::vector<TokenId> want_answer = {}, answer = {};
  RequestId id{};
  ReservationId reservation{};
  bool coming = false;
  std::int32_t end_block = 0;
  std::map<std::pair<std::int32_t, std::int32_t>, std::byte*> slabs = {};
  std::vector<std::pair<std::int32_t, std::int32_t>> to_come = {};  // The next one last.
  std::size_t lost = 0;                                             // Of those, that never come.
};

class Trial {
 public:
  explicit Trial(std::uint32_t seed)
      : rng_(seed),
        windows_(std::vector<std::vector<std::int32_t>>{{0}, {0, 12}, {0, 30}, {20}}[seed % 4]),
        worker_({.windows = windows_,
                 .slabs = seed % 5 == 0 ? 60 : 200,
                 .options = {.step_tokens = static_cast<std::int32_t>(seed % 3 == 0 ? 21 : 128),
                             .chunk_tokens = 64,
                             .sequences_max = 6},
                 .far = seed % 2 == 1}),
        told_(worker_),
        system_(RandomTokens(rng_, 64)) {}

  void Run() {
    int started = 0;
    for (int round = 0; round < 5000 && (started < 12 || !flights_.empty()); ++round) {
      if (started < 12 && flights_.size() < 3 && rng_() % 2 == 0) {
        ++started;
        Start();
      }
      for (auto& flight : flights_) {
        if (flight->coming) Bring(*flight);
      }
      const StepReport report = worker_.engine->Step();
      rows += report.prefill_rows;
      for (const StepReport::Reached& reached : report.reached) OnReached(reached);
      for (const RequestId id : report.prefilled) JudgeBlocks(id);
      for (const TokenOutput& output : report.outputs) OnOutput(output);
      if (!flights_.empty() && rng_() % 100 == 0) GiveUp();
    }
    worker_.engine->Step();  // Says who was given up last.
    EXPECT_TRUE(flights_.empty()) << "somebody waits for ever";
    EXPECT_TRUE(worker_.engine->idle());
    EXPECT_EQ(worker_.bytes_held(), 0u);
  }

  std::int64_t rows = 0;
  std::int64_t tokens = 0;
  int judged = 0;
  int told_reached = 0;

 private:
  void Start() {
    auto made = std::make_unique<Flight>();
    Flight& flight = *made;
    flight.tokens = RandomTokens(rng_, 1 + rng_() % 120);
    flight.tokens.insert(flight.tokens.begin(), system_.begin(),
                         system_.begin() + static_cast<std::ptrdiff_t>(rng_() % 65));
    flight.want = Computed(windows_, flight.tokens);
    const std::vector<Chain> chains = ChainsOf(flight.tokens, "", kBlockTokens);
    flight.end_block = static_cast<std::int32_t>(rng_() % (chains.size() + 1));
    if (flight.end_block > 0) Reserve(flight, chains);
    Submit(flight);
    flights_.push_back(std::move(made));
  }

  void Reserve(Flight& flight, const std::vector<Chain>& chains) {
    const auto reserved = worker_.engine->Reserve(
        flight.end_block * kBlockTokens,
        std::span(chains).first(static_cast<std::size_t>(flight.end_block)));
    if (!reserved.ok()) return;
    flight.coming = true;
    flight.reservation = reserved->id;
    const std::int32_t missing = reserved->reused_tokens / kBlockTokens;
    for (std::size_t g = 0; g < reserved->blocks.size(); ++g) {
      const SequenceInput::Blocks& blocks = reserved->blocks[g];
      for (std::int32_t b = std::max(missing, blocks.first_block); b < flight.end_block; ++b) {
        const std::pair at(static_cast<std::int32_t>(g), b);
        flight.slabs[at] = worker_.pool->Address(
            at.first, blocks.slabs[static_cast<std::size_t>(b - blocks.first_block)]);
        std::memset(flight.slabs[at], 0xab, kSlabBytes);  // Whoever reads it now makes nonsense.
        flight.to_come.push_back(at);
      }
    }
    std::ranges::sort(flight.to_come, {}, [](const auto& at) { return at.second; });
    if (rng_() % 3 == 0) std::ranges::shuffle(flight.to_come, rng_);
    if (rng_() % 3 == 0) flight.lost = rng_() % (flight.to_come.size() + 1);
  }

  void Submit(Flight& flight) {
    const Coming coming = {.end_block = flight.coming ? flight.end_block : 0,
                           .share = static_cast<double>(rng_() % 101) / 100};
    absl::StatusOr<RequestId> submitted;
    if (rng_() % 2 == 0) {
      flight.decode = Greedy(flight.tokens, 1 + static_cast<std::int32_t>(rng_() % 5));
      flight.want_answer = Answered(windows_, *flight.decode);
      flight.decode->coming = coming;
      submitted = worker_.engine->Submit(*flight.decode);
    } else {
      submitted = worker_.engine->SubmitPrefill({.tokens = flight.tokens, .coming = coming});
    }
    ASSERT_TRUE(submitted.ok()) << submitted.status();
    flight.id = *submitted;
  }

  void Bring(Flight& flight) {
    for (std::size_t n = rng_() % 4; n > 0 && flight.to_come.size() > flight.lost; --n) {
      const auto at = flight.to_come.back();
      flight.to_come.pop_back();
      std::memcpy(flight.slabs.at(at), flight.want.at(at).data(), kSlabBytes);
      worker_.engine->SealReserved(flight.reservation, at.first, at.second);
    }
    if (flight.to_come.size() > flight.lost || rng_() % 4 != 0) return;
    flight.coming = false;
    worker_.engine->EndReservation(flight.reservation, 0);
    worker_.engine->SetComing(flight.id, {});
  }

  void End(std::size_t i) {
    Flight& flight = *flights_[i];
    if (flight.coming) worker_.engine->EndReservation(flight.reservation, 0);
    if (flight.decode.has_value()) {
      worker_.engine->Cancel(flight.id);
    } else {
      worker_.engine->EndPrefill(flight.id);
    }
    told_.take(flight.id);
    flights_.erase(flights_.begin() + static_cast<std::ptrdiff_t>(i));
  }

  void GiveUp() { End(rng_() % flights_.size()); }

  auto Find(RequestId id) {
    return std::ranges::find_if(flights_, [&](const auto& f) { return f->id == id; });
  }

  void OnReached(const StepReport::Reached& reached) {
    const auto at = Find(reached.request);
    ASSERT_NE(at, flights_.end());
    EXPECT_LE(reached.block * kBlockTokens, static_cast<std::int32_t>((*at)->tokens.size()));
    ++told_reached;
  }

  void OnOutput(const TokenOutput& output) {
    if (output.finish == FinishReason::kCancelled) return;  // Given up.
    const auto at = Find(output.request);
    ASSERT_NE(at, flights_.end());
    Flight& flight = **at;
    ASSERT_TRUE(output.token.has_value()) << output.error;
    flight.answer.push_back(output.token->token);
    if (!output.finish.has_value()) return;
    EXPECT_EQ(flight.answer, flight.want_answer);
    tokens += static_cast<std::int64_t>(flight.tokens.size());
    ++judged;
    End(static_cast<std::size_t>(at - flights_.begin()));
  }

  void JudgeBlocks(RequestId id) {
    const auto at = Find(id);
    ASSERT_NE(at, flights_.end());
    const Flight& flight = **at;
    const Told::Blocks told = told_.take(id);
    const auto count = static_cast<std::int32_t>(flight.tokens.size());
    for (std::size_t g = 0; g < windows_.size(); ++g) {
      for (std::int32_t b = FirstVisibleBlock(count, windows_[g], kBlockTokens);
           b * kBlockTokens < count; ++b) {
        SCOPED_TRACE(testing::Message() << "group " << g << " block " << b);
        const std::pair key(static_cast<std::int32_t>(g), b);
        ASSERT_TRUE(told.contains(key));
        ExpectSame(told.at(key), flight.want.at(key),
                   std::min(kBlockTokens, count - b * kBlockTokens));
      }
    }
    tokens += count;
    ++judged;
    End(static_cast<std::size_t>(at - flights_.begin()));
  }

  std::mt19937 rng_;
  const std::vector<std::int32_t> windows_;
  Worker worker_;
  Told told_;
  const std::vector<TokenId> system_;
  std::vector<std::unique_ptr<Flight>> flights_;
};

TEST(ComingTest, WhateverComesWhenever) {
  std::int64_t rows = 0, tokens = 0, judged = 0, reached = 0;
  for (std::uint32_t seed = 0; seed < 120; ++seed) {
    const RunningSeed running(seed);
    Trial trial(seed);
    trial.Run();
    if (testing::Test::HasFailure()) return;
    rows += trial.rows;
    tokens += trial.tokens;
    judged += trial.judged;
    reached += trial.told_reached;
  }
  EXPECT_GT(judged, 1000);
  // Much was not computed, and much was.
  EXPECT_LT(rows, tokens * 9 / 10);
  EXPECT_GT(rows, tokens / 10);
  EXPECT_GT(reached, judged);
}

struct Meeting {
  explicit Meeting(const std::vector<std::int32_t>& windows, double share)
      : worker({.windows = windows, .slabs = 200, .options = {.chunk_tokens = 512}}) {
    std::mt19937 rng(1);
    tokens = RandomTokens(rng, 10 * kBlockTokens + 5);
    want = Computed(windows, tokens);
    const std::vector<Chain> chains = ChainsOf(tokens, "", kBlockTokens);
    const auto reserved = worker.engine->Reserve(10 * kBlockTokens, std::span(chains).first(10));
    EXPECT_TRUE(reserved.ok()) << reserved.status();
    reservation = reserved->id;
    blocks.assign(reserved->blocks.begin(), reserved->blocks.end());
    prefill = *worker.engine->SubmitPrefill(
        {.tokens = tokens, .coming = {.end_block = 10, .share = share}});
  }
  void Bring(std::int32_t block) {
    for (std::size_t g = 0; g < blocks.size(); ++g) {
      const auto number = static_cast<std::int32_t>(g);
      if (block < blocks[g].first_block) continue;
      const SlabRef slab = blocks[g].slabs[static_cast<std::size_t>(block - blocks[g].first_block)];
      std::memcpy(worker.pool->Address(number, slab), want.at({number, block}).data(), kSlabBytes);
      worker.engine->SealReserved(reservation, number, block);
    }
  }
  FakeStepRunner::Chunk Step() {
    worker.engine->Step();
    EXPECT_EQ(worker.runner->last_run().size(), 1u);
    return worker.runner->last_run().at(0);
  }

  Worker worker;
  std::vector<TokenId> tokens;
  std::map<std::pair<std::int32_t, std::int32_t>, Bytes> want;
  ReservationId reservation{};
  std::vector<SequenceInput::Blocks> blocks;
  RequestId prefill{};
};

using Chunk = FakeStepRunner::Chunk;

TEST(ComingTest, BothMeetInTheMiddle) {
  for (const std::vector<std::int32_t>& windows : {std::vector{0}, std::vector{0, 20}}) {
    Meeting m(windows, 0.4);
    EXPECT_EQ(m.Step(), (Chunk{0, 4 * kBlockTokens}));
    for (std::int32_t b = 9; b >= 4; --b) m.Bring(b);
    EXPECT_EQ(m.Step(), (Chunk{10 * kBlockTokens, 5}));
    m.worker.engine->EndPrefill(m.prefill);
  }
}

// The one that comes too late is computed, and no more of it.
TEST(ComingTest, AChunkEndsWhereBlocksBegin) {
  Meeting m({0}, 0.4);
  EXPECT_EQ(m.Step(), (Chunk{0, 4 * kBlockTokens}));
  for (std::int32_t b = 9; b >= 6; --b) m.Bring(b);
  // 0.4 of two is one.
  EXPECT_EQ(m.Step(), (Chunk{4 * kBlockTokens, kBlockTokens}));
  EXPECT_EQ(m.Step(), (Chunk{5 * kBlockTokens, kBlockTokens}));
  EXPECT_EQ(m.Step(), (Chunk{10 * kBlockTokens, 5}));
}

// Once the prompt is computed nothing can come any more.
TEST(ComingTest, ARequestSaysHowFarItIs) {
  Worker worker({.options = {.chunk_tokens = 512}});
  Request request = Greedy(std::vector<TokenId>(4 * kBlockTokens + 1, 7), 3);
  request.coming = {.end_block = 4, .share = 0.5};
  const RequestId id = *worker.engine->Submit(request);
  std::vector<std::int32_t> reached;
  while (!worker.engine->idle()) {
    for (const StepReport::Reached& r : worker.engine->Step().reached) {
      EXPECT_EQ(r.request, id);
      reached.push_back(r.block);
    }
    worker.engine->SetComing(id, {.end_block = 4, .share = 0.5});
  }
  EXPECT_EQ(reached, (std::vector<std::int32_t>{2, 3, 4, 4}));
}

TEST(ComingTest, WhatNeverComesIsComputed) {
  Meeting m({0}, 0.4);
  EXPECT_EQ(m.Step(), (Chunk{0, 4 * kBlockTokens}));
  m.Bring(9);
  m.worker.engine->EndReservation(m.reservation, 0);
  m.worker.engine->SetComing(m.prefill, {});
  EXPECT_EQ(m.Step(), (Chunk{4 * kBlockTokens, 5 * kBlockTokens}));
  EXPECT_EQ(m.Step(), (Chunk{10 * kBlockTokens, 5}));
}

// Of a window group only what the first token behind them sees comes: an end before is no end.
TEST(ComingTest, BlocksWithoutTheirWindowAreNotUsable) {
  Meeting m({0, 20}, 0.4);
  EXPECT_EQ(m.Step(), (Chunk{0, 4 * kBlockTokens}));
  for (std::int32_t b = 4; b < 7; ++b) m.Bring(b);  // Of the full group alone.
  EXPECT_EQ(m.blocks[1].first_block, 7);
  EXPECT_EQ(m.Step(), (Chunk{4 * kBlockTokens, 2 * kBlockTokens}));
}

}  // namespace
}  // namespace penstock::engine
