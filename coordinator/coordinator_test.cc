// SPDX-License-Identifier: Apache-2.0
#include "coordinator/coordinator.h"

#include "coordinator/coordinator_testing.h"

namespace penstock::coordinator {
namespace {

TEST_F(CoordinatorTest, ARequestGoesItsWay) {
  Start({}, 1, 1);
  const RouteAnswer answer = Route("r");
  ASSERT_TRUE(answer.status.ok()) << answer.status;
  EXPECT_EQ(answer.state, RequestState::kReserving);
  EXPECT_EQ(answer.attempt, 1u);
  EXPECT_EQ(Route("r").attempt, 1u) << "the same once more";
  EXPECT_EQ(Decode("r"), std::pair(std::string("p0"), std::string("d0")));
  EXPECT_EQ(Last<ReleaseAction>().worker.ref.name, "p0");
  EXPECT_EQ(coordinator_->stats().booked_prefills, 0u);
  EXPECT_EQ(coordinator_->stats().booked_sequences, 1u);
  ASSERT_TRUE(Say("d0", Kind::kFinished, {"r", 1}).ok());
  const auto ended = Last<EndedAction>();
  EXPECT_TRUE(ended.status.ok());
  EXPECT_EQ(ended.gateway, "g");
  EXPECT_EQ(coordinator_->stats().booked_sequences, 0u);
  EXPECT_EQ(Say("d0", Kind::kFinished, {"r", 1}).code(), absl::StatusCode::kAborted);
  EXPECT_EQ(Route("r").status.code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(CoordinatorTest, EitherSidesRefusalReleasesTheOther) {
  Start({}, 2, 2);
  Route("r");
  const auto first = Last<ReserveAction>();
  ASSERT_TRUE(Say(first.worker.ref.name, Kind::kRefused, first.id).ok());
  const auto second = Last<ReserveAction>();
  EXPECT_EQ(second.id.number, 2u);
  EXPECT_NE(second.worker.ref.name, first.worker.ref.name);
  ASSERT_TRUE(Say(second.worker.ref.name, Kind::kGranted, second.id).ok());
  coordinator_->TakeActions();
  ASSERT_TRUE(Say(second.prefill.ref.name, Kind::kRefused, second.id).ok());
  bool released = false;
  std::string third;
  for (const Action& action : coordinator_->TakeActions()) {
    if (const auto* release = std::get_if<ReleaseAction>(&action)) {
      released |= release->worker.ref.name == second.worker.ref.name && release->id == second.id;
    } else if (const auto* planned = std::get_if<ReserveAction>(&action)) {
      EXPECT_TRUE(released) << "before anyone else is asked";
      third = planned->prefill.ref.name;
    }
  }
  EXPECT_TRUE(released);
  EXPECT_NE(third, second.prefill.ref.name);
  // A late grant of the first attempt is let go.
  EXPECT_EQ(Say(first.worker.ref.name, Kind::kGranted, first.id).code(),
            absl::StatusCode::kAborted);
  EXPECT_EQ(Last<ReleaseAction>().id, first.id);
}

TEST_F(CoordinatorTest, SilenceIsARefusalAndAttemptsAreBounded) {
  Coordinator::Options options;
  options.members.ttl = 1000s;
  Start(options, 1, 1);
  Route("r");
  for (int i = 0; i < 1000 && StateOf("r") != RequestState::kEnded; ++i) {
    now_ = std::max(now_, coordinator_->NextDeadline());
    coordinator_->Tick(now_);
  }
  const Explanation why = *coordinator_->Explain("r");
  EXPECT_EQ(why.state, RequestState::kEnded);
  EXPECT_EQ(why.plans.size(), 4u);
  EXPECT_EQ(why.status.code(), absl::StatusCode::kUnavailable) << why.status;
  EXPECT_NE(ToString(why).find("attempt 4 (timed out: nothing came in time while reserving)"),
            std::string::npos)
      << ToString(why);
}

TEST_F(CoordinatorTest, AfterALossTheGatewayAsksAgain) {
  Start({}, 1, 2);
  Route("r");
  const auto [prefill, decode] = Decode("r");
  coordinator_->TakeActions();
  ASSERT_TRUE(coordinator_->Leave({decode, 1}, now_).ok());
  const auto lost = Last<LostAction>();
  EXPECT_EQ(lost.id, (Attempt{"r", 1}));
  EXPECT_EQ(StateOf("r"), RequestState::kLost);
  RouteQuery query = Query("r", 330);
  query.lost_attempt = 1;
  EXPECT_EQ(coordinator_->Route(query, now_).attempt, 2u);
  EXPECT_EQ(coordinator_->Route(query, now_).attempt, 2u) << "sent twice";
  const auto planned = Last<ReserveAction>();
  EXPECT_EQ(planned.prompt_tokens, 330u);
  EXPECT_NE(planned.worker.ref.name, decode);
}

TEST_F(CoordinatorTest, AGatewayThatDoesNotAskAgainEndsTheRequest) {
  Coordinator::Options options;
  options.members.ttl = 1000s;
  Start(options, 1, 2);
  Route("r");
  ASSERT_TRUE(coordinator_->Leave({Decode("r").second, 1}, now_).ok());
  now_ += options.resume_timeout - 1ns;
  coordinator_->Tick(now_);
  EXPECT_EQ(StateOf("r"), RequestState::kLost);
  coordinator_->Tick(now_ += 1ns);
  EXPECT_EQ(StateOf("r"), RequestState::kEnded);
}

// This coordinator was restarted, and never heard of the request.
TEST_F(CoordinatorTest, AnUnknownRequestGoesOnWithTheNextNumber) {
  Start({}, 1, 1);
  RouteQuery query = Query("r");
  query.lost_attempt = 5;
  EXPECT_EQ(coordinator_->Route(query, now_).attempt, 6u);
  // What runs from before is not touched; what is stale is.
  coordinator_->TakeActions();
  const Attempt live[] = {{"other", 3}, {"r", 5}};
  ASSERT_TRUE(coordinator_->Report({"d0", 1}, {}, live, now_).ok());
  const std::vector<Action> actions = coordinator_->TakeActions();
  ASSERT_EQ(actions.size(), 1u);
  EXPECT_EQ(std::get<ReleaseAction>(actions[0]).id, (Attempt{"r", 5}));
}

TEST_F(CoordinatorTest, ARunningRequestThatIsNotListedIsLost) {
  Start({}, 1, 1);
  Route("r");
  Decode("r");
  const Attempt live[] = {{"r", 1}};
  ASSERT_TRUE(coordinator_->Report({"d0", 1}, {}, {}, now_).ok());
  ASSERT_TRUE(coordinator_->Report({"d0", 1}, {}, live, now_).ok());
  ASSERT_TRUE(coordinator_->Report({"d0", 1}, {}, {}, now_).ok());
  EXPECT_EQ(StateOf("r"), RequestState::kDecoding);
  ASSERT_TRUE(coordinator_->Report({"d0", 1}, {}, {}, now_).ok());
  EXPECT_EQ(StateOf("r"), RequestState::kLost);
}

TEST_F(CoordinatorTest, WhatCannotBeginInTimeIsRefusedAtOnce) {
  Coordinator::Options options;
  options.queued_max = 2;
  Start(options, 1, 1);
  RouteQuery late = Query("late", 1000);
  late.first_token_within = 500ms;  // 1,000 tokens at 1,000 a second.
  const RouteAnswer refused = coordinator_->Route(late, now_);
  EXPECT_EQ(refused.status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_GE(refused.retry_after, 400ms);
  EXPECT_TRUE(coordinator_->TakeActions().empty());
  EXPECT_EQ(coordinator_->stats().booked_sequences, 0u);
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(Route(absl::StrCat("r", i), 32).state, RequestState::kReserving);
  }
  EXPECT_EQ(Route("q0", 32).state, RequestState::kQueued) << "four sequences run at most";
  EXPECT_EQ(Route("q1", 32).state, RequestState::kQueued);
  const RouteAnswer full = Route("q2", 32);
  EXPECT_EQ(full.status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_GT(full.retry_after, Duration());
  coordinator_->TakeActions();
  coordinator_->Cancel("r0", now_);
  EXPECT_EQ(Last<ReserveAction>().id.request_id, "q0");
  coordinator_->Cancel("q1", now_);
  EXPECT_EQ(Last<EndedAction>().status.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(coordinator_->stats().queued, 0u);
}

TEST_F(CoordinatorTest, HigherPriorityGoesFirst) {
  Start({}, 1, 1);
  for (int i = 0; i < 4; ++i) Route(absl::StrCat("r", i), 32);
  RouteQuery low = Query("low", 32);
  RouteQuery high = Query("high", 32);
  high.priority = 1;
  coordinator_->Route(low, now_);
  coordinator_->Route(high, now_);
  coordinator_->TakeActions();
  coordinator_->Cancel("r0", now_);
  EXPECT_EQ(Last<ReserveAction>().id.request_id, "high");
}

TEST_F(CoordinatorTest, ABigRequestIsNotOvertakenForEver) {
  Coordinator::Options options;
  options.overtaken_max = 3;
  Start(options, 1, 1);
  Route("r", 1200);  // 75 of 100 blocks.
  EXPECT_EQ(Route("big", 1600).state, RequestState::kQueued);
  for (int i = 0; i < 6; ++i) {
    const std::string id = absl::StrCat("small", i);
    Route(id, 16);
    coordinator_->Cancel(id, now_);
  }
  int overtook = 0;
  for (int i = 0; i < 6; ++i) {
    overtook += coordinator_->Explain(absl::StrCat("small", i))->plans.empty() ? 0 : 1;
  }
  EXPECT_EQ(overtook, 3);
  coordinator_->Cancel("r", now_);
  EXPECT_EQ(StateOf("big"), RequestState::kReserving);
}

TEST_F(CoordinatorTest, WithoutADecodeWorkerTheAnswerIsNo) {
  Start({}, 1, 1);
  for (int i = 0; i < 5; ++i) Route(absl::StrCat("r", i), 32);
  EXPECT_EQ(StateOf("r4"), RequestState::kQueued);
  ASSERT_TRUE(coordinator_->Leave({"d0", 1}, now_).ok());
  for (int i = 0; i < 5; ++i) {
    const Explanation why = *coordinator_->Explain(absl::StrCat("r", i));
    EXPECT_EQ(why.state, RequestState::kEnded);
    EXPECT_EQ(why.status.code(), absl::StatusCode::kUnavailable);
  }
  EXPECT_FALSE(coordinator_->Ready("m"));
  EXPECT_EQ(Route("x").status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(coordinator_->Register(Of("d0", Role::kDecode), now_).code(),
            absl::StatusCode::kAborted);
}

TEST_F(CoordinatorTest, AModelHasItsOwnWorkers) {
  Start({}, 1, 1);
  Registration other = Of("o0", Role::kDecode);
  other.model = "n";
  other.identity = {{"weights", "w2"}};
  ASSERT_TRUE(coordinator_->Register(other, now_).ok());
  EXPECT_FALSE(coordinator_->Ready("n")) << "it still loads";
  RouteQuery query = Query("r");
  query.model = "n";
  EXPECT_EQ(coordinator_->Route(query, now_).status.code(), absl::StatusCode::kUnavailable);
  ASSERT_TRUE(coordinator_->Report({"o0", 1}, {}, {}, now_).ok());
  ASSERT_TRUE(coordinator_->Route(query, now_).status.ok());
  const auto planned = Last<ReserveAction>();
  EXPECT_EQ(planned.prefill.ref.name, "o0") << "it has no prefill worker";
  EXPECT_EQ(planned.worker.ref.name, "o0");
  query.model = "none";
  EXPECT_EQ(coordinator_->Route(query, now_).status.code(), absl::StatusCode::kNotFound);
}

TEST_F(CoordinatorTest, ADrainedWorkerKeepsWhatRunsUntilItMustMove) {
  Coordinator::Options options;
  options.members.ttl = 1000s;
  Start(options, 1, 2);
  Route("r");
  const std::string decode = Decode("r").second;
  coordinator_->TakeActions();
  ASSERT_TRUE(coordinator_->Drain({decode, 1}, 5s, now_).ok());
  EXPECT_TRUE(coordinator_->TakeActions().empty());
  Route("s");
  EXPECT_NE(Last<ReserveAction>().worker.ref.name, decode);
  coordinator_->Tick(now_ += 5s - 1ns);
  EXPECT_EQ(StateOf("r"), RequestState::kDecoding);
  coordinator_->Tick(now_ += 1ns);
  EXPECT_EQ(StateOf("r"), RequestState::kLost);
  bool released = false;
  bool drained = false;
  for (const Action& action : coordinator_->TakeActions()) {
    if (const auto* a = std::get_if<ReleaseAction>(&action)) {
      released |= a->worker.ref.name == decode;
    }
    if (const auto* a = std::get_if<DrainedAction>(&action)) {
      drained |= a->worker.ref.name == decode;
    }
  }
  EXPECT_TRUE(released);
  EXPECT_TRUE(drained);
}

TEST_F(CoordinatorTest, BlocksDecideAndAHoleAsksForASnapshot) {
  Start({}, 2, 1);
  std::vector<BlockEvent> events(20);
  for (std::size_t i = 0; i < events.size(); ++i) {
    events[i].chain.bytes[0] = static_cast<std::uint8_t>(i);
  }
  ASSERT_TRUE(coordinator_->Blocks({"p1", 1}, 1, events, now_).ok());
  EXPECT_TRUE(coordinator_->TakeActions().empty());
  RouteQuery query = Query("r");
  for (const BlockEvent& event : events) query.chains.push_back(event.chain);
  coordinator_->Route(query, now_);
  const auto planned = Last<ReserveAction>();
  EXPECT_EQ(planned.prefill.ref.name, "p1");
  EXPECT_EQ(coordinator_->Explain("r")->plans[0].decision.candidates[0].prefill_reused_tokens, 319u)
      << "the last token is the decode worker's";
  ASSERT_TRUE(coordinator_->Blocks({"p1", 1}, 30, events, now_).ok());
  EXPECT_EQ(Last<SnapshotAction>().worker.ref.name, "p1");
  ASSERT_TRUE(coordinator_->Report({"p1", 1}, {}, {}, now_).ok());
  EXPECT_EQ(Last<SnapshotAction>().worker.ref.name, "p1") << "until it has come";
  EXPECT_EQ(coordinator_->Blocks({"p1", 2}, 1, events, now_).code(), absl::StatusCode::kAborted);
  EXPECT_EQ(coordinator_->Blocks({"p1", 1}, 0, events, now_).code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(CoordinatorTest, FieldsOutOfRangeAreNamed) {
  Start({}, 1, 1);
  struct Case {
    const char* field;
    void (*change)(RouteQuery&);
  };
  for (const Case& c :
       {Case{"request bytes", [](RouteQuery& q) { q.request = ""; }},
        Case{"request bytes", [](RouteQuery& q) { q.request = std::string(65, 'x'); }},
        Case{"gateway bytes", [](RouteQuery& q) { q.gateway = std::string(65, 'x'); }},
        Case{"prompt_tokens", [](RouteQuery& q) { q.prompt_tokens = 0; }},
        Case{"prompt_tokens", [](RouteQuery& q) { q.prompt_tokens = 65536 * 16 + 1; }},
        Case{"chains", [](RouteQuery& q) { q.chains.resize(21); }},
        Case{"lost_attempt", [](RouteQuery& q) { q.lost_attempt = 0xffffffff; }},
        Case{"first_token_within", [](RouteQuery& q) { q.first_token_within = -1ns; }},
        Case{"end_within", [](RouteQuery& q) { q.end_within = 25h; }}}) {
    SCOPED_TRACE(c.field);
    RouteQuery query = Query("r");
    c.change(query);
    const absl::Status status = coordinator_->Route(query, now_).status;
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(status.message().find(c.field), absl::string_view::npos) << status;
  }
  Coordinator::Options options;
  options.policy.name = "best";
  EXPECT_EQ(Coordinator::Make(options).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Say("p0", Kind::kGranted, {"r", 1}).code(), absl::StatusCode::kAborted);
  Route("r");
  EXPECT_EQ(Say("p0", Kind::kGranted, {"r", 1}).code(), absl::StatusCode::kInvalidArgument);
}

// A request for more than any worker has would wait for ever.
TEST_F(CoordinatorTest, WhatFitsNoWorkerIsRefused) {
  Start({}, 1, 1);
  const RouteAnswer answer = Route("r", 1601);
  EXPECT_EQ(answer.status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(answer.status.message().find("101 blocks"), absl::string_view::npos) << answer.status;
}

}  // namespace
}  // namespace penstock::coordinator
