// SPDX-License-Identifier: Apache-2.0
// Who takes part: workers that are away, pairs, gateways.
#include "coordinator/coordinator_testing.h"

namespace penstock::coordinator {
namespace {

TEST_F(CoordinatorTest, AWorkerThatIsAwayGetsNothingUntilItReports) {
  Start({}, 1, 2);
  Route("r");
  const std::string decode = Decode("r").second;
  coordinator_->Disconnected({decode, 1}, now_);
  EXPECT_EQ(StateOf("r"), RequestState::kDecoding) << "its session goes on";
  for (int i = 0; i < 3; ++i) {
    Route(absl::StrCat("s", i), 32);
    EXPECT_NE(Last<ReserveAction>().worker.ref.name, decode);
  }
  const std::uint64_t version = coordinator_->models_version();
  const Attempt live[] = {{"r", 1}};
  ASSERT_TRUE(coordinator_->Report({decode, 1}, {}, live, now_).ok());
  EXPECT_GT(coordinator_->models_version(), version);
  Route("t", 32);
  EXPECT_EQ(Last<ReserveAction>().worker.ref.name, decode);
}

TEST_F(CoordinatorTest, ALifeThatEndedElsewhereEndsHere) {
  Start({}, 1, 1);
  coordinator_->Restore({"d0", 0}, now_);
  EXPECT_TRUE(coordinator_->FindWorker("d0").ok()) << "an earlier life of it";
  coordinator_->Restore({"d0", 3}, now_);
  EXPECT_FALSE(coordinator_->FindWorker("d0").ok());
  EXPECT_EQ(Last<SessionEndedAction>().worker.ref.name, "d0");
  Registration again = Of("d0", Role::kDecode);
  EXPECT_EQ(coordinator_->CheckRegistration(again).code(), absl::StatusCode::kAborted);
  again.ref.epoch = 4;
  EXPECT_TRUE(coordinator_->Register(again, now_).ok());
}

TEST_F(CoordinatorTest, WhatWaitsForAWorkerThatIsAwayWaitsOn) {
  Start({}, 0, 1);
  for (int i = 0; i < 5; ++i) Route(absl::StrCat("r", i), 32);
  ASSERT_EQ(StateOf("r4"), RequestState::kQueued);
  coordinator_->Disconnected({"d0", 1}, now_);
  EXPECT_EQ(StateOf("r4"), RequestState::kQueued);
  EXPECT_EQ(Route("s").status.code(), absl::StatusCode::kUnavailable) << "nothing new";
  coordinator_->Tick(now_ += Membership::Options().ttl);
  EXPECT_EQ(StateOf("r4"), RequestState::kEnded);
}

TEST_F(CoordinatorTest, APairIsUsedOnceItIsVerified) {
  Coordinator::Options options;
  options.verify_pairs = true;
  options.members.ttl = 1000s;
  coordinator_ = *Coordinator::Make(options);
  Registration decode = Of("d0", Role::kDecode);
  decode.transfer_epoch = 77;
  ASSERT_TRUE(coordinator_->Register(decode, now_).ok());
  ASSERT_TRUE(coordinator_->Report({"d0", 1}, {}, {}, now_).ok());
  EXPECT_TRUE(coordinator_->Ready("m")) << "it prefills for itself";
  Add("p0", Role::kPrefill);
  Add("p1", Role::kPrefill);
  EXPECT_TRUE(coordinator_->Ready("m")) << "it goes on to";
  EXPECT_EQ(Last<PreflightAction>().decode.transfer_epoch, 77u);
  ASSERT_TRUE(Route("r").status.ok());
  EXPECT_EQ(Last<ReserveAction>().prefill.ref.name, "d0");
  coordinator_->Cancel("r", now_);
  const PairReport good = {
      .status = absl::OkStatus(), .transport = "shm", .round_trip = 1ms, .bytes_per_s = 5e9};
  EXPECT_EQ(coordinator_->Preflighted({"p0", 1}, "d0", 76, good, now_).code(),
            absl::StatusCode::kAborted);
  const PairReport unlike = {.status = absl::FailedPreconditionError("unlike")};
  ASSERT_TRUE(coordinator_->Preflighted({"p0", 1}, "d0", 77, unlike, now_).ok());
  ASSERT_TRUE(coordinator_->Preflighted({"p1", 1}, "d0", 77, good, now_).ok());
  EXPECT_TRUE(coordinator_->Ready("m"));
  const std::vector<PairView> pairs = coordinator_->Pairs();
  ASSERT_EQ(pairs.size(), 2u);
  EXPECT_EQ(pairs[0].report.bytes_per_s, 0) << "p0, which is unlike";
  EXPECT_EQ(pairs[1].report.bytes_per_s, 5e9);
  EXPECT_EQ(pairs[1].report.round_trip, 1ms);
  for (int i = 0; i < 4; ++i) {
    Route(absl::StrCat("r", i), 32);
    EXPECT_NE(Last<ReserveAction>().prefill.ref.name, "p0");
  }
  // The pair that failed for good is not asked again; after the end of the good one, the decode
  // worker serves alone.
  coordinator_->Tick(now_ += 100s);
  for (const Action& action : coordinator_->TakeActions()) {
    EXPECT_EQ(std::get_if<PreflightAction>(&action), nullptr);
  }
  ASSERT_TRUE(coordinator_->Leave({"p1", 1}, now_).ok());
  EXPECT_TRUE(coordinator_->Ready("m"));
  ASSERT_EQ(coordinator_->Pairs().size(), 1u);
  EXPECT_EQ(coordinator_->Pairs()[0].report.status.code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(CoordinatorTest, PairsSayHowFastLinksAreUntilTheyAreMetered) {
  Coordinator::Options options;
  options.verify_pairs = true;
  coordinator_ = *Coordinator::Make(options);
  Registration decode = Of("d0", Role::kDecode);
  decode.prefill_tokens_per_s = 200;  // Others are better at it.
  ASSERT_TRUE(coordinator_->Register(decode, now_).ok());
  ASSERT_TRUE(coordinator_->Report({"d0", 1}, {}, {}, now_).ok());
  Add("p0", Role::kPrefill);
  Add("p1", Role::kPrefill);
  const std::uint64_t epoch = Last<PreflightAction>().decode.transfer_epoch;
  const auto measured = [&](const char* prefill, double bytes_per_s) {
    const PairReport report = {
        .status = absl::OkStatus(), .transport = "tcp", .bytes_per_s = bytes_per_s};
    ASSERT_TRUE(coordinator_->Preflighted({prefill, 1}, "d0", epoch, report, now_).ok());
  };
  measured("p0", 1);  // A byte a second.
  measured("p1", 1e12);
  Route("far", 1024);
  EXPECT_EQ(Last<ReserveAction>().prefill.ref.name, "p1");
  coordinator_->Cancel("far", now_);
  // What its requests met is what counts: from now on all of its pairs are as slow.
  ASSERT_TRUE(coordinator_->Report({"d0", 1}, {.link_bytes_per_s = 1}, {}, now_).ok());
  Route("slow", 1024);
  EXPECT_EQ(Last<ReserveAction>().prefill.ref.name, "d0") << "better slowly here than there";
}

TEST_F(CoordinatorTest, PrefillWorkersThatReachNobodyAreSaid) {
  Coordinator::Options options;
  options.verify_pairs = true;
  coordinator_ = *Coordinator::Make(options);
  Add("p0", Role::kPrefill);
  Add("d0", Role::kDecode);
  EXPECT_FALSE(coordinator_->Ready("m"));
  EXPECT_EQ(Route("r").status.code(), absl::StatusCode::kUnavailable);
  const PairReport good = {.status = absl::OkStatus(), .transport = "shm", .round_trip = 1ms};
  const std::uint64_t epoch = Last<PreflightAction>().decode.transfer_epoch;
  ASSERT_TRUE(coordinator_->Preflighted({"p0", 1}, "d0", epoch, good, now_).ok());
  EXPECT_TRUE(coordinator_->Ready("m"));
}

TEST_F(CoordinatorTest, AFailedPreflightIsTriedAgain) {
  Coordinator::Options options;
  options.verify_pairs = true;
  options.members.ttl = 1000s;
  Start(options, 1, 1);
  ASSERT_TRUE(
      coordinator_
          ->Preflighted({"p0", 1}, "d0", 0, {.status = absl::UnavailableError("refused")}, now_)
          .ok());
  coordinator_->Tick(now_ += options.preflight_retry - 1ns);
  EXPECT_TRUE(coordinator_->TakeActions().empty());
  coordinator_->Tick(now_ += 1ns);
  EXPECT_EQ(Last<PreflightAction>().prefill.ref.name, "p0");
  coordinator_->Tick(now_ += options.preflight_timeout);
  EXPECT_EQ(Last<PreflightAction>().prefill.ref.name, "p0") << "the answer may be lost";
  coordinator_->Disconnected({"p0", 1}, now_);
  ASSERT_TRUE(coordinator_->Report({"p0", 1}, {}, {}, now_).ok());
  EXPECT_EQ(Last<PreflightAction>().prefill.ref.name, "p0") << "so may the question";
}

TEST_F(CoordinatorTest, ARequestIsItsGatewaysOwn) {
  Start({}, 1, 1);
  Route("r");
  const Attempt id = Last<ReserveAction>().id;
  RouteQuery theirs = Query("r");
  theirs.gateway = "h";
  EXPECT_EQ(coordinator_->Route(theirs, now_).status.code(), absl::StatusCode::kAlreadyExists);
  coordinator_->Cancel("h", "r", now_);
  EXPECT_EQ(StateOf("r"), RequestState::kReserving);
  Route("r");
  EXPECT_TRUE(coordinator_->TakeActions().empty()) << "no grant, nothing to say";
  ASSERT_TRUE(Say("d0", Kind::kGranted, id).ok());
  EXPECT_EQ(Last<PlannedAction>().id, id);
  Route("r");
  EXPECT_EQ(Last<PlannedAction>().id, id) << "said again to a gateway that asks again";
  Route("s");
  coordinator_->GatewayGone("h", now_);
  EXPECT_EQ(coordinator_->stats().requests, 2u);
  coordinator_->GatewayGone("g", now_);
  EXPECT_EQ(coordinator_->stats().requests, 0u);
}

TEST_F(CoordinatorTest, APromptOfOneTokenIsNotHandedOver) {
  for (const char* policy : {"cost", "least-loaded", "round-robin"}) {
    Coordinator::Options options;
    options.policy.name = policy;
    Start(options, 2, 1);
    Route("r", 1);
    EXPECT_EQ(Last<ReserveAction>().prefill.ref.name, "d0") << policy;
  }
}

}  // namespace
}  // namespace penstock::coordinator
