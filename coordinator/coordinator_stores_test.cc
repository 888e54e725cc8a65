// SPDX-License-Identifier: Apache-2.0
// Store nodes as members, and plans that fetch from them.
#include "coordinator/coordinator_testing.h"

namespace penstock::coordinator {
namespace {

using EventKind = CopyEvent::Kind;

Chain ChainNumber(std::uint8_t n) {
  Chain chain;
  chain.bytes[15] = n;
  return chain;
}

class CoordinatorStoresTest : public CoordinatorTest {
 protected:
  static constexpr std::uint8_t kBlocks = 20;  // Of 16 tokens.

  static Registration WorkerOf(const std::string& name, Role role, const std::string& host) {
    Registration r = Of(name, role);
    r.groups = {{.copy_spaces = {Namespace{{7}}}, .window_tokens = 0, .block_bytes = 1600}};
    r.transfer_address = absl::StrCat("tcp:127.0.0.1:1,shm:", host, ":", name);
    return r;
  }
  static Registration StoreOf(const std::string& name, const std::string& host = "far",
                              std::uint64_t epoch = 1) {
    Registration r;
    r.ref = {name, epoch};
    r.role = Role::kStore;
    r.transfer_address = absl::StrCat("shm:", host, ":", name);
    r.transfer_epoch = 40 + epoch;
    return r;
  }
  void Join(const Registration& r) {
    ASSERT_TRUE(coordinator_->Register(r, now_).ok()) << coordinator_->Register(r, now_);
    ASSERT_TRUE(coordinator_->Report(r.ref, {}, {}, now_).ok());
  }
  // A decode worker without, and a prefill worker with 1,000 tokens/s; blocks take 16 ms.
  void Begin(bool with_prefill = true) {
    Start({}, 0, 0);
    Registration decode = WorkerOf("d0", Role::kDecode, "here");
    decode.prefill_tokens_per_s = with_prefill ? 1 : 1000;
    Join(decode);
    if (with_prefill) Join(WorkerOf("p0", Role::kPrefill, "here"));
  }
  // Blocks [first, end).
  std::vector<CopyEvent> Copies(std::uint8_t first, std::uint8_t end, Tier tier = Tier::kHost) {
    std::vector<CopyEvent> events;
    for (std::uint8_t n = first; n < end; ++n) {
      CopyEvent event = {.name = NameOf({Namespace{{7}}, ChainNumber(n)}),
                         .tier = tier,
                         .codec = 1,
                         .bytes = 1600};
      if (n > first) event.parent = events.back().name;
      events.push_back(event);
    }
    return events;
  }
  void Say(const std::string& store, std::uint64_t first, const std::vector<CopyEvent>& events) {
    ASSERT_TRUE(coordinator_->Copies({store, 1}, first, events, now_).ok());
  }
  RouteAnswer RouteBlocks(const std::string& id) {
    RouteQuery query = Query(id, kBlocks * 16);
    for (std::uint8_t n = 0; n < kBlocks; ++n) query.chains.push_back(ChainNumber(n));
    return coordinator_->Route(query, now_);
  }
  // The sources of the request that was planned last.
  std::vector<FetchSource> Granted(ReserveAction* reserved = nullptr) {
    const auto planned = Last<ReserveAction>();
    if (reserved != nullptr) *reserved = planned;
    EXPECT_TRUE(Say_("d0", Kind::kGranted, planned.id).ok());
    return Last<StartAction>().sources;
  }
  absl::Status Say_(const std::string& worker, Kind kind, const Attempt& id) {
    return CoordinatorTest::Say(worker, kind, id);
  }
  std::uint64_t booked() const { return coordinator_->stats().booked_fetch_bytes; }
  std::vector<std::string> Told() {
    std::vector<std::string> told;
    for (const Action& action : coordinator_->TakeActions()) {
      if (const auto* store = std::get_if<StoreAction>(&action)) {
        told.push_back(absl::StrCat(store->worker.ref.name, ":", store->store.ref.name));
      }
    }
    return told;
  }
};

TEST_F(CoordinatorStoresTest, APlanFetchesWhatIsCheaperThanComputing) {
  Begin();
  Join(StoreOf("s0"));
  Join(StoreOf("s1", "here"));
  Say("s0", 1, Copies(0, 12));
  Say("s1", 1, Copies(0, 4));
  ASSERT_TRUE(RouteBlocks("r").status.ok());
  ReserveAction reserved;
  const std::vector<FetchSource> sources = Granted(&reserved);
  EXPECT_EQ(reserved.sources.size(), 2u) << "what the decode worker fetches need not be sent";
  ASSERT_EQ(sources.size(), 2u);
  EXPECT_EQ(sources[0].store.ref.name, "s1") << "its own host's";
  EXPECT_EQ(sources[0].first_block, 0u);
  EXPECT_EQ(sources[0].end_block, 4u);
  EXPECT_EQ(sources[1].store.ref.name, "s0");
  EXPECT_EQ(sources[1].store.transfer_address, "shm:far:s0");
  EXPECT_EQ(sources[1].store.transfer_epoch, 41u);
  EXPECT_EQ(sources[1].first_block, 4u);
  EXPECT_EQ(sources[1].end_block, 12u);
  EXPECT_EQ(sources[1].tier, Tier::kHost);
  EXPECT_EQ(sources[1].compute_within, 128ms);
  const std::string text = ToString(*coordinator_->Explain("r"));
  EXPECT_NE(text.find("blocks 0..3 from s1 host raw mapped: 0.5 ms, computing them 64.0 ms\n"),
            std::string::npos)
      << text;
  EXPECT_NE(text.find("blocks 4..11 from s0 host raw: 0.5 ms, computing them 128.0 ms\n"),
            std::string::npos)
      << text;
  const Coordinator::Stats stats = coordinator_->stats();
  EXPECT_EQ(stats.store_copies, 16u);
  EXPECT_EQ(stats.store_blocks, 12u);
  EXPECT_EQ(stats.planned_blocks[static_cast<std::size_t>(Tier::kHost)], 12u);
  EXPECT_EQ(stats.planned_compute_blocks, 7u) << "the last token is the decode worker's";
}

// 12 blocks take 192 ms to compute, and 128 ms to fetch.
TEST_F(CoordinatorStoresTest, OfASlowWayThePrefillWorkerAloneFetches) {
  Begin();
  Join(StoreOf("s0"));
  Say("s0", 1, Copies(0, 12));
  LoadReport load;
  load.fetches = {{.store = "s0", .tier = Tier::kHost, .codec = 1, .bytes_per_s = 150e3}};
  ASSERT_TRUE(coordinator_->Report({"p0", 1}, load, {}, now_).ok());
  ASSERT_TRUE(RouteBlocks("r").status.ok());
  ReserveAction reserved;
  const std::vector<FetchSource> sources = Granted(&reserved);
  EXPECT_TRUE(reserved.sources.empty()) << "the decode worker's would be as slow, and slow both";
  ASSERT_EQ(sources.size(), 1u);
  EXPECT_NEAR(ToMillis(sources[0].fetch_time), 128, 8);
  EXPECT_EQ(sources[0].compute_within, 192ms);
  const Explanation explanation = *coordinator_->Explain("r");
  const Candidate& candidate = explanation.plans[0].decision.candidates[0];
  EXPECT_NEAR(candidate.terms.fetch, 0.192 * 0.128 / (0.192 + 0.128), 0.004) << "both at once";
  EXPECT_NE(ToString(explanation).find("the first of these are computed while the last ones come"),
            std::string::npos)
      << ToString(explanation);
  // It has a better way.
  ASSERT_TRUE(Say_("p0", Kind::kAccepted, reserved.id).ok());
  ASSERT_TRUE(Say_("p0", Kind::kComputed, reserved.id).ok());
  load.fetches[0].bytes_per_s = 1e9;
  ASSERT_TRUE(coordinator_->Report({"d0", 1}, load, {}, now_).ok());
  ASSERT_TRUE(RouteBlocks("other").status.ok());
  EXPECT_EQ(Last<ReserveAction>().sources.size(), 1u);
}

TEST_F(CoordinatorStoresTest, FetchesAreBookedUntilThePrefillIsComputedOrLeft) {
  Begin();
  Join(StoreOf("s0"));
  Say("s0", 1, Copies(0, 10));
  ASSERT_TRUE(RouteBlocks("r").status.ok());
  const auto planned = Last<ReserveAction>();
  EXPECT_NEAR(static_cast<double>(booked()), 16000, 1000);
  EXPECT_EQ(coordinator_->Stores()[0].bytes_planned, booked());
  ASSERT_TRUE(Say_("d0", Kind::kGranted, planned.id).ok());
  ASSERT_TRUE(Say_("p0", Kind::kAccepted, planned.id).ok());
  EXPECT_GT(booked(), 0u);
  ASSERT_TRUE(Say_("p0", Kind::kComputed, planned.id).ok());
  EXPECT_EQ(booked(), 0u);
  ASSERT_TRUE(RouteBlocks("other").status.ok());
  EXPECT_GT(booked(), 0u);
  coordinator_->Cancel("other", now_);
  EXPECT_EQ(booked(), 0u);
  EXPECT_EQ(coordinator_->Stores()[0].bytes_planned, 0u);
}

TEST_F(CoordinatorStoresTest, WhoPrefillsItselfIsToldTheSourcesToo) {
  Begin(/*with_prefill=*/false);
  Join(StoreOf("s0"));
  Say("s0", 1, Copies(0, 12, Tier::kDisk));
  ASSERT_TRUE(RouteBlocks("r").status.ok());
  const auto planned = Last<ReserveAction>();
  ASSERT_EQ(planned.sources.size(), 1u);
  EXPECT_EQ(planned.sources[0].end_block, 12u);
  EXPECT_EQ(planned.sources[0].tier, Tier::kDisk);
}

TEST_F(CoordinatorStoresTest, ANodeThatEndsTakesItsBookingsAlong) {
  Begin();
  Join(StoreOf("s0"));
  Join(StoreOf("s1"));
  Say("s0", 1, Copies(0, 4));
  Say("s1", 1, Copies(4, 12));
  ASSERT_TRUE(RouteBlocks("r").status.ok());
  const std::uint64_t before = booked();
  ASSERT_TRUE(coordinator_->Leave({"s1", 1}, now_).ok());
  EXPECT_LT(booked(), before);
  EXPECT_GT(booked(), 0u);
  // Its number may be another's now.
  Join(StoreOf("s2"));
  const std::vector<FetchSource> sources = Granted();
  ASSERT_EQ(sources.size(), 1u);
  EXPECT_EQ(sources[0].store.ref.name, "s0");
  now_ += 6s;
  coordinator_->Tick(now_);
  coordinator_->Tick(now_);
  EXPECT_TRUE(coordinator_->Stores().empty()) << "no reports";
  EXPECT_EQ(booked(), 0u);
  EXPECT_EQ(coordinator_->stats().store_copies, 0u);
}

TEST_F(CoordinatorStoresTest, ANewLifeHoldsNothingUntilItSaysSo) {
  Begin();
  Join(StoreOf("s0"));
  Say("s0", 1, Copies(0, 4));
  Join(StoreOf("s0", "far", 2));
  EXPECT_TRUE(absl::IsAborted(coordinator_->Copies({"s0", 1}, 5, Copies(4, 5), now_)));
  EXPECT_EQ(coordinator_->stats().store_copies, 0u);
  ASSERT_TRUE(RouteBlocks("r").status.ok());
  EXPECT_TRUE(Granted().empty());
}

TEST_F(CoordinatorStoresTest, WhoIsAwayOrDrainsIsNotAsked) {
  Begin();
  Join(StoreOf("s0"));
  Say("s0", 1, Copies(0, 4));
  coordinator_->Disconnected({"s0", 1}, now_);
  EXPECT_STREQ(coordinator_->Stores()[0].state, "away");
  ASSERT_TRUE(RouteBlocks("r0").status.ok());
  EXPECT_EQ(booked(), 0u);
  ASSERT_TRUE(coordinator_->Report({"s0", 1}, {}, {}, now_).ok());
  ASSERT_TRUE(RouteBlocks("r1").status.ok());
  EXPECT_GT(booked(), 0u);
  coordinator_->TakeActions();
  ASSERT_TRUE(coordinator_->Drain({"s0", 1}, 0s, now_).ok());
  EXPECT_STREQ(coordinator_->Stores()[0].state, "draining");
  ASSERT_TRUE(RouteBlocks("r2").status.ok());
  coordinator_->Cancel("r1", now_);
  EXPECT_EQ(booked(), 0u);
  EXPECT_EQ(Last<DrainedAction>().worker.ref.name, "s0");
  EXPECT_STREQ(coordinator_->Stores()[0].state, "drained");
}

TEST_F(CoordinatorStoresTest, AHoleIsAnsweredWithAQuestion) {
  Begin();
  Join(StoreOf("s0"));
  Say("s0", 1, Copies(0, 4));
  coordinator_->TakeActions();
  Say("s0", 9, Copies(4, 8));
  EXPECT_EQ(Last<SnapshotAction>().worker.ref.name, "s0");
  EXPECT_EQ(coordinator_->stats().degraded_stores, 1u);
  ASSERT_TRUE(coordinator_->Report({"s0", 1}, {}, {}, now_).ok());
  EXPECT_EQ(Last<SnapshotAction>().worker.ref.name, "s0") << "it may not have arrived";
  std::vector<CopyEvent> all = Copies(0, 2);
  all.insert(all.begin(), CopyEvent{.kind = EventKind::kSnapshotBegin});
  all.push_back({.kind = EventKind::kSnapshotEnd});
  Say("s0", 13, all);
  EXPECT_EQ(coordinator_->stats().degraded_stores, 0u);
  EXPECT_EQ(coordinator_->stats().store_copies, 2u);
}

TEST_F(CoordinatorStoresTest, WorkersAreToldWhoKeepsTheirBlocks) {
  Begin();
  EXPECT_TRUE(Told().empty());
  Join(StoreOf("s0"));
  EXPECT_EQ(Told(), (std::vector<std::string>{"p0:s0", "d0:s0"}));
  Join(StoreOf("s1", "here"));
  EXPECT_EQ(Told(), (std::vector<std::string>{"p0:s1", "d0:s1"})) << "of their host";
  Join(StoreOf("s2", "here"));
  EXPECT_TRUE(Told().empty()) << "they have one";
  Join(WorkerOf("p1", Role::kPrefill, "here"));
  EXPECT_EQ(Told(), (std::vector<std::string>{"p1:s2"})) << "that with the fewest";
  ASSERT_TRUE(coordinator_->Register(WorkerOf("p1", Role::kPrefill, "here"), now_).ok());
  EXPECT_EQ(Told(), (std::vector<std::string>{"p1:s2"})) << "its stream had broken";
  coordinator_->Disconnected({"s2", 1}, now_);
  EXPECT_TRUE(Told().empty());
  ASSERT_TRUE(coordinator_->Drain({"s2", 1}, 0s, now_).ok());
  EXPECT_EQ(Told(), (std::vector<std::string>{"p1:s1"}));
  ASSERT_TRUE(coordinator_->Leave({"p1", 1}, now_).ok());
  ASSERT_TRUE(coordinator_->Leave({"s1", 1}, now_).ok());
  EXPECT_EQ(Told(), (std::vector<std::string>{"p0:s0", "d0:s0"}));
  ASSERT_TRUE(coordinator_->Leave({"s0", 1}, now_).ok());
  EXPECT_EQ(Told(), (std::vector<std::string>{"p0:", "d0:"}));
  Registration without = WorkerOf("p2", Role::kPrefill, "here");
  without.groups.clear();
  Join(StoreOf("s3"));
  coordinator_->TakeActions();
  Join(without);
  EXPECT_TRUE(Told().empty());
}

TEST_F(CoordinatorStoresTest, WhatOthersMeasuredDecidesToo) {
  Begin();
  Join(StoreOf("s0"));
  Say("s0", 1, Copies(0, 4));
  LoadReport slow;
  slow.fetches = {{.store = "s0", .tier = Tier::kHost, .codec = 1, .bytes_per_s = 1000},
                  {.store = "nobody", .tier = Tier::kHost, .bytes_per_s = 1e9},
                  {.store = "p0", .tier = Tier::kHost, .bytes_per_s = 1e9}};
  ASSERT_TRUE(coordinator_->Report({"p0", 1}, slow, {}, now_).ok());
  ASSERT_TRUE(RouteBlocks("r0").status.ok());
  EXPECT_EQ(booked(), 0u) << "1.6 s a block";
  slow.fetches[0].bytes_per_s = 1e9;
  ASSERT_TRUE(coordinator_->Report({"p0", 1}, slow, {}, now_).ok());
  ASSERT_TRUE(RouteBlocks("r1").status.ok());
  EXPECT_GT(booked(), 0u);
}

TEST_F(CoordinatorStoresTest, BlocksWithALossInPoolsAreFoundByWhoAcceptsThem) {
  Start({}, 0, 0);
  for (Registration r :
       {WorkerOf("d0", Role::kDecode, "here"), WorkerOf("p0", Role::kPrefill, "here")}) {
    r.codecs = {{.codec = 8, .loss = LossClass::kKl3}};
    Join(r);
  }
  // Names that differ in the bits of classes, as hashes do in all.
  const auto chain = [](int n) { return ChainNumber(static_cast<std::uint8_t>(4 * n)); };
  std::vector<BlockEvent> events;
  for (int n = 0; n < 10; ++n) {  // The first four are there as exact ones, too.
    if (n < 4) events.push_back({.chain = chain(n)});
    events.push_back({.chain = NameUpTo(chain(n), LossClass::kKl3)});
  }
  ASSERT_TRUE(coordinator_->Blocks({"p0", 1}, 1, events, now_).ok());
  const auto reused = [&](const std::string& id, LossClass accepts) {
    RouteQuery query = Query(id, kBlocks * 16);
    query.reuse = accepts;
    for (int n = 0; n < kBlocks; ++n) query.chains.push_back(chain(n));
    EXPECT_TRUE(coordinator_->Route(query, now_).status.ok());
    const Explanation explanation = *coordinator_->Explain(id);
    std::uint32_t most = 0;
    for (const Candidate& c : explanation.plans.at(0).decision.candidates) {
      most = std::max(most, c.prefill_reused_tokens);
    }
    return most / 16;
  };
  EXPECT_EQ(reused("exact", LossClass::kExact), 4u);
  EXPECT_EQ(reused("kl3", LossClass::kKl3), 10u);
  EXPECT_EQ(reused("kl2", LossClass::kKl2), 10u) << "no codec makes worse ones";
}

TEST_F(CoordinatorStoresTest, StoreNodesHaveNoPartInRequests) {
  Begin();
  Join(StoreOf("s0"));
  EXPECT_EQ(coordinator_->Workers().size(), 2u);
  EXPECT_EQ(coordinator_->Stores().size(), 1u);
  const BlockEvent block;
  EXPECT_TRUE(absl::IsInvalidArgument(coordinator_->Blocks({"s0", 1}, 1, {&block, 1}, now_)));
  EXPECT_TRUE(absl::IsInvalidArgument(Say_("s0", Kind::kGranted, {"r", 1})));
  EXPECT_TRUE(absl::IsInvalidArgument(coordinator_->Preflighted({"s0", 1}, "d0", 0, {}, now_)));
  EXPECT_TRUE(absl::IsInvalidArgument(coordinator_->Copies({"p0", 1}, 1, Copies(0, 1), now_)));
  EXPECT_TRUE(absl::IsInvalidArgument(coordinator_->Copies({"s0", 1}, 0, Copies(0, 1), now_)));
  Registration wrong = StoreOf("s1");
  wrong.model = "m";
  EXPECT_TRUE(absl::IsInvalidArgument(coordinator_->Register(wrong, now_)));
  Registration unlike = WorkerOf("p1", Role::kPrefill, "here");
  unlike.groups[0].window_tokens = 64;
  const absl::Status status = coordinator_->Register(unlike, now_);
  EXPECT_TRUE(absl::IsFailedPrecondition(status));
  EXPECT_NE(status.message().find("of 1600 bytes, window 64"), std::string::npos) << status;
}

// Once, for each: copies that lie on disks alone, with nobody to fetch them yet.
TEST_F(CoordinatorStoresTest, WhatAWaitingRequestWillWantIsBroughtToMemory) {
  Begin();
  Join(StoreOf("s0"));
  Join(StoreOf("s1"));
  Say("s0", 1, Copies(0, 12, Tier::kDisk));
  Say("s1", 1, Copies(0, 4));
  const auto prefetches = [&] {
    std::vector<PrefetchAction> told;
    for (const Action& action : coordinator_->TakeActions()) {
      if (const auto* prefetch = std::get_if<PrefetchAction>(&action)) told.push_back(*prefetch);
    }
    return told;
  };
  // Four run at d0: the fifth waits.
  for (const char* id : {"a", "b", "c", "d"}) {
    ASSERT_TRUE(RouteBlocks(id).status.ok());
    EXPECT_TRUE(prefetches().empty()) << "there is room";
  }
  ASSERT_TRUE(RouteBlocks("waits").status.ok());
  const std::vector<PrefetchAction> told = prefetches();
  ASSERT_EQ(told.size(), 1u);
  EXPECT_EQ(told[0].worker.ref.name, "s0");
  EXPECT_EQ(told[0].copy_space, Namespace{{7}});
  ASSERT_EQ(told[0].chains.size(), 8u) << "the first four are in s1's memory";
  EXPECT_EQ(told[0].chains[0], ChainNumber(4));
  EXPECT_EQ(told[0].chains[7], ChainNumber(11));
  EXPECT_GT(told[0].within, Duration());
  EXPECT_EQ(coordinator_->stats().prefetched_blocks, 8u);
  now_ += 20ms;
  coordinator_->Tick(now_);
  EXPECT_TRUE(prefetches().empty()) << "once";
}

}  // namespace
}  // namespace penstock::coordinator
