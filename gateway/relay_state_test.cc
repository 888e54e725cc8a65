// SPDX-License-Identifier: Apache-2.0
#include "gateway/relay_state.h"

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_join.h"
#include "base/seed_testing.h"
#include "base/status.h"
#include "base/virtual_loop.h"
#include "gateway/relay_world.h"
#include "gtest/gtest.h"

namespace penstock::gateway {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

std::shared_ptr<const ModelFront> TinyModel() {
  static const auto model =
      ModelFront::Open("tiny", std::string(PENSTOCK_SOURCE_DIR) + "/tests/golden/tiny/llama3");
  return *model;
}

// A relay in a world, with all that it needs.
struct Bench {
  explicit Bench(std::uint64_t seed, RelayWorld::Faults faults = {},
                 std::size_t events_max = 1 << 20)
      : world(loop, seed, faults), sink(events_max) {}
  ~Bench() { world.Serve(nullptr); }

  RelayState& Begin(Request request, RelayState::Options options = {}) {
    request.sampling.seed = request.sampling.seed.value_or(7);
    const std::string id = request.id.empty() ? "a" : request.id;
    const Duration end_within = request.end_within.value_or(seconds(100));
    Prepared prepared = *Prepare(std::move(request), TinyModel(),
                                 {.block_tokens = 4, .context_tokens = 512}, 0, CivilTime());
    prepared.id = id;
    prepared.arrived = loop.Now();
    prepared.deadline = loop.Now() + end_within;
    relay = std::make_unique<RelayState>(loop, world, world, sink, std::move(prepared), options,
                                         [this] { ++over; });
    world.Serve(relay.get());
    relay->Start();
    return *relay;
  }
  void Run() { loop.RunAll(loop.Now() + seconds(1000)); }
  std::string Log() const { return absl::StrJoin(world.log(), "\n"); }

  VirtualLoop loop;
  RelayWorld world;
  RecordingSink sink;
  std::unique_ptr<RelayState> relay;
  int over = 0;
};

Request RandomRequest(std::mt19937_64& random) {
  const auto draw = [&random](int least, int most) {
    return std::uniform_int_distribution(least, most)(random);
  };
  Request request;
  Request::Tokens prompt(static_cast<std::size_t>(draw(1, 20)));
  for (TokenId& token : prompt) token = draw(3, 200);
  request.prompt = prompt;
  request.n = draw(0, 2) == 0 ? draw(2, 5) : 1;
  request.max_tokens = draw(1, 60);
  request.sampling.seed = random();
  for (int i = draw(0, 3); i > 1; --i) {
    request.stops.push_back(TinyModel()->tokenizer().Piece(draw(30, 200), false));
    if (request.stops.back().empty() ||
        model::ValidateStopStrings(request.stops) != absl::OkStatus()) {
      request.stops.pop_back();
    }
  }
  return request;
}

void ExpectWhole(Bench& bench) {
  const Prepared& request = bench.relay->request();
  EXPECT_EQ(bench.sink.started, 1);
  EXPECT_EQ(bench.sink.usages, 1);
  ASSERT_EQ(bench.sink.choices.size(), static_cast<std::size_t>(request.n));
  std::int32_t tokens = 0;
  for (std::int32_t i = 0; i < request.n; ++i) {
    const RecordingSink::Choice want = Alone(request, i);
    EXPECT_EQ(bench.sink.choices[i].tokens, want.tokens);
    EXPECT_EQ(bench.sink.choices[i].text, want.text);
    EXPECT_EQ(bench.sink.choices[i].finished, 1);
    EXPECT_EQ(bench.sink.choices[i].reason, want.reason);
    EXPECT_EQ(bench.sink.choices[i].stopped_by, want.stopped_by);
    tokens += static_cast<std::int32_t>(want.tokens.size());
  }
  EXPECT_EQ(bench.sink.usage.completion_tokens, tokens);
}

void ExpectNothingLeft(const Bench& bench) {
  EXPECT_EQ(bench.sink.ends, 1);
  EXPECT_EQ(bench.over, 1);
  EXPECT_EQ(bench.world.open_calls(), 0U);
  EXPECT_EQ(bench.world.live_requests(), 0U);
}

// Whatever breaks, comes twice or too late: each token once, in order, and nothing is left behind.
TEST(RelayStateTest, RandomOrdersLoseAndDoubleNothing) {
  int lost = 0, unavailable = 0;
  for (std::uint64_t seed = 1; seed <= 2000; ++seed) {
    const RunningSeed running(seed);
    std::mt19937_64 random(seed);
    const double scale = seed % 4 == 0 ? 0 : 0.04;
    Bench bench(seed, {.broken = scale,
                       .lost = scale,
                       .replanned = scale,
                       .repeated = 0.1,
                       .detached = seed % 3 == 0 ? scale : 0,
                       .forgotten = 0});
    bench.Begin(RandomRequest(random), {.failures_max = 1000});
    bench.Run();
    ExpectNothingLeft(bench);
    // A coordinator that leaves before the first token costs the request, and says so.
    if (!bench.sink.status.ok()) {
      EXPECT_EQ(seed % 3, 0U);
      EXPECT_EQ(bench.sink.status.code(), absl::StatusCode::kUnavailable);
      EXPECT_TRUE(bench.sink.choices.empty());
      ++unavailable;
      continue;
    }
    ExpectWhole(bench);
    lost += bench.world.losses();
    if (HasFailure()) {
      ADD_FAILURE() << bench.Log();
      return;
    }
  }
  EXPECT_GT(lost, 500);
  EXPECT_LT(unavailable, 200);
}

// Attempts are told apart by their numbers alone: what comes of one that was left, while another is
// open, is none of its business, be it a token, an end, a loss or the plan itself.
TEST(RelayStateTest, WhatIsLateOfAnotherAttemptChangesNothing) {
  int lost = 0;
  for (std::uint64_t seed = 1; seed <= 1000; ++seed) {
    const RunningSeed running(seed);
    std::mt19937_64 random(seed);
    Bench bench(seed,
                {.broken = 0.02, .lost = 0.02, .replanned = 0.04, .repeated = 0.1, .late = 0.8});
    bench.Begin(RandomRequest(random), {.failures_max = 1000});
    bench.Run();
    ExpectNothingLeft(bench);
    ASSERT_EQ(bench.sink.status, absl::OkStatus()) << bench.Log();
    ExpectWhole(bench);
    lost += bench.world.losses();
    if (HasFailure()) {
      ADD_FAILURE() << bench.Log();
      return;
    }
  }
  EXPECT_GT(lost, 500);
}

// The same, one by one.
TEST(RelayStateTest, AnOlderAttemptIsOver) {
  Bench bench(3);
  RelayState& relay =
      bench.Begin({.prompt = Request::Tokens{5, 6, 7}, .sampling = {.seed = 11}, .max_tokens = 40});
  const auto until = [&](const char* said) {
    while (bench.Log().find(said) == std::string::npos) {
      bench.loop.AdvanceTo(*bench.loop.next_timer());
    }
  };
  until("decode a#1");
  relay.OnLost({"a", 1});
  until("decode a#2");
  const std::string before = bench.Log();
  for (const std::uint32_t number : {1, 3}) {
    const Attempt other{"a", number};
    DecodeStep step;
    step.outputs.emplace_back().token = SampledToken{.token = 199};
    relay.OnStep(other, step);
    relay.OnLost(other);
    relay.OnDecodeEnd(other, absl::UnavailableError("broken"));
    relay.OnDecodeEnd(other, absl::InvalidArgumentError("top_k"));
  }
  for (const std::uint32_t number : {1, 2}) {
    relay.OnPlanned({.attempt = {"a", number},
                     .decode_name = "d",
                     .decode_endpoint = "d:1",
                     .prefill_name = "d",
                     .prompt_tokens = 3});
  }
  EXPECT_EQ(bench.Log(), before);
  EXPECT_FALSE(relay.ended());
  bench.Run();
  ExpectWhole(bench);
  ExpectNothingLeft(bench);
  EXPECT_EQ(bench.sink.usage.attempts, 2U);
}

// The client leaves, or its time is over, at any moment.
TEST(RelayStateTest, EndsAtAnyMomentWithNothingLeft) {
  for (std::uint64_t seed = 1; seed <= 1000; ++seed) {
    const RunningSeed running(seed);
    std::mt19937_64 random(seed);
    Bench bench(seed, {.broken = 0.03, .lost = 0.03, .replanned = 0.03, .repeated = 0.1});
    Request request = RandomRequest(random);
    const Duration when =
        std::chrono::microseconds(std::uniform_int_distribution(0, 40000)(random));
    if (seed % 2 == 0) request.end_within = when + Duration(1);
    RelayState& relay = bench.Begin(std::move(request), {.failures_max = 1000});
    if (seed % 2 == 1) {
      bench.loop.At(bench.loop.Now() + when, [&] { relay.Cancel(absl::CancelledError("left")); });
    }
    bench.Run();
    ExpectNothingLeft(bench);
    if (bench.sink.status.ok()) {
      ExpectWhole(bench);
      continue;
    }
    EXPECT_EQ(bench.sink.status.code(),
              seed % 2 == 0 ? absl::StatusCode::kDeadlineExceeded : absl::StatusCode::kCancelled);
    for (const auto& [index, choice] :
         bench.sink.choices) {  // What came is right, as far as it goes.
      const std::vector<TokenId> whole = Alone(relay.request(), index).tokens;
      ASSERT_LE(choice.tokens.size(), whole.size());
      EXPECT_TRUE(std::equal(choice.tokens.begin(), choice.tokens.end(), whole.begin()));
    }
  }
}

// A request that the coordinator has already ended goes on under another name, once.
TEST(RelayStateTest, GoesOnWhenTheCoordinatorHasEndedIt) {
  int renewed = 0;
  for (std::uint64_t seed = 1; seed <= 200; ++seed) {
    const RunningSeed running(seed);
    Bench bench(seed, {.broken = 0.03, .forgotten = 1});
    bench.Begin({.prompt = Request::Tokens{5, 6, 7}, .max_tokens = 40});
    bench.Run();
    ExpectNothingLeft(bench);
    if (bench.sink.status.ok()) {
      ExpectWhole(bench);
      renewed += bench.Log().find("route a.0") != std::string::npos;
    } else {
      EXPECT_EQ(bench.sink.status.code(), absl::StatusCode::kUnavailable);
    }
  }
  EXPECT_GT(renewed, 10);
}

TEST(RelayStateTest, AnswersGoOnAloneAfterALoss) {
  Bench bench(3);
  RelayState& relay = bench.Begin(
      {.prompt = Request::Tokens{5, 6, 7}, .sampling = {.seed = 11}, .n = 3, .max_tokens = 20});
  while (bench.sink.choices.size() < 3) bench.loop.AdvanceTo(*bench.loop.next_timer());
  relay.OnLost({"a", 1});
  bench.Run();
  ExpectWhole(bench);
  ExpectNothingLeft(bench);
  EXPECT_EQ(bench.sink.usage.attempts, 2U);
  const std::string log = bench.Log();
  for (const char* part :
       {"decode a#1 n 3 choice 0 emitted 0", "close a#1", "cancel a\n", "route a.0 4 after 0",
        "route a.2 4 after 0", "decode a.1#1 n 1 choice 1 emitted 1"}) {
    EXPECT_NE(log.find(part), std::string::npos) << part << " is not in\n" << log;
  }
}

TEST(RelayStateTest, NothingEmittedYetIsOneRequestStill) {
  Bench bench(3);
  RelayState& relay = bench.Begin({.prompt = Request::Tokens{5, 6, 7}, .n = 3, .max_tokens = 20});
  while (bench.world.open_calls() == 0) bench.loop.AdvanceTo(*bench.loop.next_timer());
  relay.OnDecodeEnd({"a", 1}, absl::UnavailableError("died"));
  bench.Run();
  ExpectWhole(bench);
  EXPECT_NE(bench.Log().find("route a 3 after 1\n"), std::string::npos) << bench.Log();
}

TEST(RelayStateTest, EndsWithWhatItWasTold) {
  struct Case {
    const char* name;
    std::function<void(RelayState&)> told;
    absl::StatusCode want;
    Duration retry_after;
  };
  const absl::Status full = absl::ResourceExhaustedError("full");
  const std::vector<Case> cases = {
      {"full", [&](RelayState& r) { r.OnRouted("a", full, seconds(2)); },
       absl::StatusCode::kResourceExhausted, seconds(2)},
      {"no workers yet",
       [](RelayState& r) { r.OnRouted("a", absl::NotFoundError("no worker has registered"), {}); },
       absl::StatusCode::kUnavailable, milliseconds(250)},
      {"used",
       [](RelayState& r) { r.OnRouted("a", absl::FailedPreconditionError("ended"), {}); },
       absl::StatusCode::kAlreadyExists,
       {}},
      {"no worker",
       [](RelayState& r) { r.OnEnded("a", absl::UnavailableError("none"), seconds(1)); },
       absl::StatusCode::kUnavailable, seconds(1)},
      {"no coordinator", [](RelayState& r) { r.OnDetached(); }, absl::StatusCode::kUnavailable,
       milliseconds(250)},
      {"left",
       [](RelayState& r) { r.Cancel(absl::CancelledError("left")); },
       absl::StatusCode::kCancelled,
       {}},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    Bench bench(1);
    c.told(bench.Begin({.prompt = Request::Tokens{5}}));
    EXPECT_EQ(bench.sink.ends, 1);
    EXPECT_EQ(bench.sink.status.code(), c.want);
    EXPECT_EQ(bench.sink.retry_after, c.retry_after);
    bench.Run();
    EXPECT_EQ(bench.sink.ends, 1);
    EXPECT_EQ(bench.world.open_calls(), 0U);
  }
}

TEST(RelayStateTest, AWrongRequestIsNotTriedAgain) {
  Bench bench(1);
  RelayState& relay = bench.Begin({.prompt = Request::Tokens{5, 6}});
  while (bench.world.open_calls() == 0) bench.loop.AdvanceTo(*bench.loop.next_timer());
  relay.OnDecodeEnd({"a", 1}, absl::InvalidArgumentError("top_k"));
  EXPECT_EQ(bench.sink.status.code(), absl::StatusCode::kInvalidArgument);
}

TEST(RelayStateTest, GivesUpAfterSoManyFailuresInARow) {
  Bench bench(1, {.broken = 1});
  bench.Begin({.prompt = Request::Tokens{5, 6}}, {.failures_max = 3});
  bench.Run();
  ExpectNothingLeft(bench);
  EXPECT_EQ(bench.sink.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(bench.sink.status.message(),
            "4 attempts failed without a new token, the last one with: broken");
}

TEST(RelayStateTest, ASlowReaderIsCut) {
  Bench bench(1, {}, /*events_max=*/5);
  bench.Begin({.prompt = Request::Tokens{5, 6, 9}, .sampling = {.seed = 2}, .max_tokens = 50});
  bench.Run();
  ExpectNothingLeft(bench);
  EXPECT_EQ(bench.sink.status.code(), absl::StatusCode::kResourceExhausted);
}

TEST(RelayStateTest, ACoordinatorThatSaysNothingIsNotWaitedForLong) {
  VirtualLoop loop;
  class Silent final : public Coordinator {
    void Route(const RouteOrder&) override {}
    void Cancel(const std::string&) override {}
    bool attending() const override { return true; }
  } coordinator;
  RelayWorld workers(loop, 1, {});
  RecordingSink sink;
  Prepared prepared = *Prepare({.prompt = Request::Tokens{5}}, TinyModel(),
                               {.block_tokens = 4, .context_tokens = 512}, 0, CivilTime());
  prepared.id = "a";
  prepared.arrived = loop.Now();
  prepared.deadline = loop.Now() + seconds(100);
  const MonoTime start = loop.Now();
  RelayState relay(loop, coordinator, workers, sink, std::move(prepared), {}, [] {});
  relay.Start();
  loop.AdvanceTo(start + seconds(5));
  EXPECT_EQ(sink.status.code(), absl::StatusCode::kUnavailable);
}

TEST(RelayStateTest, NamesOfLegs) {
  EXPECT_EQ(RelayState::OwnerOfLeg("a.b.3"), "a.b");
  for (const char* none : {"a", "a.", "a.01", "a.x", ".1", "a.1x"}) {
    EXPECT_EQ(RelayState::OwnerOfLeg(none), std::nullopt) << none;
  }
}

}  // namespace
}  // namespace penstock::gateway
