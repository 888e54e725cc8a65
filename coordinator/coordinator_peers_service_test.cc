// SPDX-License-Identifier: Apache-2.0
// Peers that come back, come twice, vanish, or do not read: who wins, what is let go, and that
// nobody else notices.
#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "coordinator/coordinator_service.h"
#include "coordinator/coordinator_service_testing.h"
#include "gtest/gtest.h"

namespace penstock::coordinator {
namespace {

using Code = absl::StatusCode;
using v1::AttemptEvent;
using v1::BlockEvent;
using WorkerSays = v1::WorkerMessage;
using GatewaySays = v1::GatewayMessage;

std::string ChainOf(char c) { return std::string(16, c); }

// Stored ones of these, from number `first` on.
WorkerSays Stored(std::uint64_t first, const std::string& chains) {
  WorkerSays message;
  message.mutable_blocks()->set_first(first);
  for (const char c : chains) {
    BlockEvent* const event = message.mutable_blocks()->add_events();
    event->set_kind(BlockEvent::KIND_STORED);
    event->set_ends_prefix(true);
    event->set_chain(ChainOf(c));
  }
  return message;
}
BlockEvent* Add(WorkerSays& message, BlockEvent::Kind kind) {
  BlockEvent* const event = message.mutable_blocks()->add_events();
  event->set_kind(kind);
  return event;
}

// The same life once more, while its first stream stands: the new stream is the worker's, what it
// was given goes on, and the coordinator never takes it for away.
TEST_F(ClusterServiceTest, TheSameEpochOnceMore) {
  Start();
  const auto before = Joined(RegisterOf("d", 5));
  const auto gateway = Attending("g");
  ASSERT_EQ(gateway->Route(GatewayPeer::RouteOf("r1")), absl::OkStatus());
  const v1::Attempt r1 = before->Run();
  const auto after = Joined(RegisterOf("d", 5));
  EXPECT_EQ(before->End(), absl::UnavailableError("'d' has joined again"));
  EXPECT_EQ(StatusOf("d").state(), "ready");
  after->SayLoad({r1});
  after->SayOf(r1, AttemptEvent::KIND_FINISHED);
  EXPECT_EQ(gateway->AwaitEnded("r1"), absl::OkStatus());
  ASSERT_EQ(gateway->Route(GatewayPeer::RouteOf("r2")), absl::OkStatus());
  after->SayOf(after->Run(), AttemptEvent::KIND_FINISHED);
  EXPECT_EQ(gateway->AwaitEnded("r2"), absl::OkStatus());
}

// A higher epoch ends the life before it: ABORTED, so that the old process does not come back with
// its old number. What that life ran is lost with it.
TEST_F(ClusterServiceTest, AHigherEpoch) {
  Start();
  const auto before = Joined(RegisterOf("d", 5));
  const auto gateway = Attending("g");
  ASSERT_EQ(gateway->Route(GatewayPeer::RouteOf("r1")), absl::OkStatus());
  before->AwaitReserve();
  const auto after = Joined(RegisterOf("d", 6));
  EXPECT_EQ(before->End(),
            absl::AbortedError("'d' has joined in epoch 6, this session is of epoch 5"));
  EXPECT_EQ(gateway->AwaitEnded("r1"),
            absl::UnavailableError("no decode worker of model 'm' is ready"));
  Settled(*after);
  ASSERT_EQ(gateway->Route(GatewayPeer::RouteOf("r2")), absl::OkStatus());
  after->SayOf(after->Run(), AttemptEvent::KIND_FINISHED);
  EXPECT_EQ(gateway->AwaitEnded("r2"), absl::OkStatus());
}

TEST_F(ClusterServiceTest, ALowerEpoch) {
  Start();
  const auto worker = Joined(RegisterOf("d", 5));
  WorkerPeer late(Channel());
  late.Say(RegisterOf("d", 4));
  const absl::Status want =
      absl::AbortedError("worker 'd' was seen in epoch 5, got epoch 4: register with a higher one");
  EXPECT_EQ(late.End(), want);
  Settled(*worker);
  // Nor after that life has ended.
  WorkerSays leave;
  leave.mutable_leave();
  worker->Say(leave);
  EXPECT_EQ(worker->End(), absl::OkStatus());
  for (const std::uint64_t epoch : {4, 5}) {
    WorkerPeer again(Channel());
    again.Say(RegisterOf("d", epoch));
    EXPECT_EQ(again.End().code(), Code::kAborted);
  }
  Joined(RegisterOf("d", 6));
}

// A hole in the numbers of events: the snapshot is asked for, and again until it has come whole;
// until then the worker's blocks count for less, after it they are those of the snapshot.
TEST_F(ClusterServiceTest, BlockEventsWithAHole) {
  Start();
  const auto worker = Joined(RegisterOf("d", 1));
  const auto gateway = Attending("g");
  const auto reused = [&](const std::string& id) {
    GatewaySays route = GatewayPeer::RouteOf(id);
    route.mutable_route()->set_chains(ChainOf('a') + ChainOf('b') + ChainOf('c') + ChainOf('d'));
    route.mutable_route()->set_prompt_tokens(65);
    EXPECT_EQ(gateway->Route(route), absl::OkStatus());
    const v1::Attempt attempt = worker->AwaitReserve();
    worker->SayOf(attempt, AttemptEvent::KIND_GRANTED);
    const Event planned =
        gateway->Await([&](const Event& e) { return e.planned().attempt().request_id() == id; });
    worker->SayOf(attempt, AttemptEvent::KIND_FINISHED);
    EXPECT_EQ(gateway->AwaitEnded(id), absl::OkStatus());
    return planned.planned().reused_tokens();
  };
  worker->Say(Stored(1, "abcd"));
  Settled(*worker);
  EXPECT_EQ(reused("whole"), 64u);
  worker->Say(Stored(1, "abcd"));  // Once more: known, and no hole.
  worker->Say(Stored(9, "e"));
  worker->AwaitSnapshot();
  EXPECT_EQ(reused("degraded"), 32u);
  worker->SayLoad({});  // The first time it may have been lost on its way.
  worker->AwaitSnapshot();
  // A snapshot with a hole of its own is none.
  WorkerSays part;
  part.mutable_blocks()->set_first(10);
  Add(part, BlockEvent::KIND_SNAPSHOT_BEGIN);
  worker->Say(part);
  part.mutable_blocks()->set_first(13);
  part.mutable_blocks()->clear_events();
  Add(part, BlockEvent::KIND_SNAPSHOT_END);
  worker->Say(part);
  worker->AwaitSnapshot();
  EXPECT_EQ(StatusOf("d").blocks_known(), 5u);
  WorkerSays whole;
  whole.mutable_blocks()->set_first(14);
  Add(whole, BlockEvent::KIND_SNAPSHOT_BEGIN);
  for (const char c : {'a', 'b', 'c'}) {
    BlockEvent* const event = Add(whole, BlockEvent::KIND_STORED);
    event->set_chain(ChainOf(c));
    event->set_ends_prefix(true);
  }
  Add(whole, BlockEvent::KIND_SNAPSHOT_END);
  worker->Say(whole);
  Settled(*worker);
  EXPECT_EQ(StatusOf("d").blocks_known(), 3u);
  EXPECT_EQ(reused("again"), 48u);
}

// What a worker says of an attempt that is another's changes nothing, and it is told to let go.
TEST_F(ClusterServiceTest, AnEventOfAnothersAttempt) {
  Start();
  const auto worker = Joined(RegisterOf("d", 1));
  const auto gateway = Attending("g");
  ASSERT_EQ(gateway->Route(GatewayPeer::RouteOf("r")), absl::OkStatus());
  const v1::Attempt attempt = worker->Run();
  const auto stranger = Joined(RegisterOf("d-other", 1));
  // Of the same attempt, of one before and one after it, and of a request that is over.
  for (const v1::Attempt& wrong :
       {attempt, AttemptOf("r", 2), AttemptOf("r", 1 << 20), AttemptOf(kGone)}) {
    for (const auto kind : {AttemptEvent::KIND_GRANTED, AttemptEvent::KIND_ADOPTED,
                            AttemptEvent::KIND_COMPUTED, AttemptEvent::KIND_TRANSFER_FAILED}) {
      stranger->SayOf(wrong, kind);
      const v1::Attempt released = stranger->AwaitRelease();
      EXPECT_EQ(released.request_id(), wrong.request_id());
      EXPECT_EQ(released.number(), wrong.number());
    }
    stranger->SayOf(wrong, AttemptEvent::KIND_FINISHED);
    stranger->SayOf(wrong, AttemptEvent::KIND_REFUSED);
  }
  stranger->SayLoad({attempt});  // It says that it runs it.
  EXPECT_EQ(stranger->AwaitRelease().request_id(), "r");
  Settled(*stranger);
  // Its own worker, of an attempt that was not planned.
  worker->SayOf(AttemptOf("r", 2), AttemptEvent::KIND_FINISHED);
  worker->SayOf(attempt, AttemptEvent::KIND_GRANTED);  // Late.
  worker->SayOf(attempt, AttemptEvent::KIND_ADOPTED);  // Twice.
  Settled(*worker);
  EXPECT_EQ(Status().requests(), 1u);
  worker->SayOf(attempt, AttemptEvent::KIND_FINISHED);
  EXPECT_EQ(gateway->AwaitEnded("r"), absl::OkStatus());
}

// A worker says what is not its to say: its stream ends, its request is another's soon.
TEST_F(ClusterServiceTest, APrefillWorkerThatDecodes) {
  Start();
  const auto decode = Joined(RegisterOf("d", 1));
  const auto prefill = Joined(RegisterOf("p", 1, "m", v1::ROLE_PREFILL));
  const auto gateway = Attending("g");
  GatewaySays route = GatewayPeer::RouteOf("r");
  route.mutable_route()->set_prompt_tokens(10000);  // Worth a transfer.
  ASSERT_EQ(gateway->Route(route), absl::OkStatus());
  const v1::Attempt attempt = decode->AwaitReserve();
  decode->SayOf(attempt, AttemptEvent::KIND_GRANTED);
  prefill->Await([](const Command& c) { return c.has_start(); });
  prefill->SayOf(attempt, AttemptEvent::KIND_FINISHED);
  EXPECT_EQ(prefill->End(),
            absl::InvalidArgumentError(
                "'p' is the prefill worker of that attempt and cannot say 'finished'"));
  EXPECT_EQ(Status().requests(), 1u);
}

// Two gateways, one request id: the first one's. The second is told, and cannot touch it.
TEST_F(ClusterServiceTest, TwoGatewaysWithEqualRequestIds) {
  Start();
  const auto worker = Joined(RegisterOf("d", 1));
  const auto first = Attending("g1");
  const auto second = Attending("g2");
  ASSERT_EQ(first->Route(GatewayPeer::RouteOf("r")), absl::OkStatus());
  EXPECT_EQ(second->Route(GatewayPeer::RouteOf("r")),
            absl::AlreadyExistsError("request 'r' is another gateway's"));
  const v1::Attempt attempt = worker->Run();
  second->Cancel("r");
  GatewaySays lost = GatewayPeer::RouteOf("r");
  lost.mutable_route()->set_lost_attempt(1);
  EXPECT_EQ(second->Route(lost).code(), Code::kAlreadyExists);
  EXPECT_EQ(first->AwaitPlanned("r").number(), 1u);
  EXPECT_EQ(Status().requests(), 1u);
  // The second one's end is not the first one's.
  second->HalfClose();
  EXPECT_EQ(second->End(), absl::OkStatus());
  worker->SayOf(attempt, AttemptEvent::KIND_FINISHED);
  EXPECT_EQ(first->AwaitEnded("r"), absl::OkStatus());
  EXPECT_EQ(first->Route(GatewayPeer::RouteOf("r")),
            absl::FailedPreconditionError("request 'r' has ended"));
}

// The same name twice: the newest is the gateway, and hears of what the first one asked.
TEST_F(ClusterServiceTest, AGatewayTwice) {
  Start();
  const auto worker = Joined(RegisterOf("d", 1));
  const auto before = Attending("g");
  ASSERT_EQ(before->Route(GatewayPeer::RouteOf("r")), absl::OkStatus());
  const auto after = Attending("g");
  EXPECT_EQ(before->End(), absl::AbortedError("gateway 'g' attends over another stream"));
  const v1::Attempt attempt = worker->Run();
  EXPECT_EQ(after->AwaitPlanned("r").number(), 1u);
  worker->SayOf(attempt, AttemptEvent::KIND_FINISHED);
  EXPECT_EQ(after->AwaitEnded("r"), absl::OkStatus());
}

// It comes back soon enough, and hears what it has missed.
TEST_F(ClusterServiceTest, AGatewayThatComesBack) {
  options_.gateway_grace = 2 * kPatience;
  Start();
  const auto worker = Joined(RegisterOf("d", 1));
  const auto before = Attending("g");
  ASSERT_EQ(before->Route(GatewayPeer::RouteOf("r")), absl::OkStatus());
  before->Break();
  EXPECT_EQ(before->End().code(), Code::kCancelled);
  while (Status().gateways_size() != 1) {  // The calm one.
  }
  worker->SayOf(worker->Run(), AttemptEvent::KIND_FINISHED);
  Settled(*worker);
  const auto after = Attending("g");
  EXPECT_EQ(after->AwaitPlanned("r").number(), 1u);
  EXPECT_EQ(after->AwaitEnded("r"), absl::OkStatus());
}

// It does not come back: everything that it asked is let go at the workers, in whatever state.
TEST_F(ClusterServiceTest, AGatewayThatVanishes) {
  options_.gateway_grace = milliseconds(1);
  Start();
  const auto worker = Joined(RegisterOf("d", 1));
  const auto gateway = Attending("g");
  std::vector<std::string> left;
  for (const std::string id : {"runs", "starts", "reserves"}) {
    ASSERT_EQ(gateway->Route(GatewayPeer::RouteOf(id)), absl::OkStatus());
    if (id == "runs") {
      worker->Run();
    } else if (id == "starts") {
      worker->SayOf(worker->AwaitReserve(), AttemptEvent::KIND_GRANTED);
    } else {
      worker->AwaitReserve();
    }
    left.push_back(id);
  }
  // One that waits for room.
  auto filler = Attending("g2");
  for (int i = 0; i < 5; ++i) {
    ASSERT_EQ(filler->Route(GatewayPeer::RouteOf(absl::StrCat("fill-", i))), absl::OkStatus());
  }
  ASSERT_EQ(gateway->Route(GatewayPeer::RouteOf("queued")), absl::OkStatus());
  EXPECT_EQ(Status().queued(), 1u);
  gateway->Break();
  std::vector<std::string> released;
  while (released.size() < left.size()) released.push_back(worker->AwaitRelease().request_id());
  std::ranges::sort(left);
  std::ranges::sort(released);
  EXPECT_EQ(released, left);
  EXPECT_EQ(Status().requests(), 5u);
  EXPECT_EQ(Status().queued(), 0u);
  filler->Break();
  for (int i = 0; i < 5; ++i) EXPECT_EQ(worker->AwaitRelease().number(), 1u);
  EXPECT_EQ(Status().requests(), 0u);
}

// A gateway that asks and never reads is cut: what waits for it is bounded in messages.
TEST_F(ClusterServiceTest, AGatewayThatDoesNotRead) {
  Start();
  const auto gateway = Attending("g");
  const GatewaySays route = GatewayPeer::RouteOf(std::string(64, 'r'), std::string(256, 'm'));
  EXPECT_EQ(gateway->EndUnread(route).code(), Code::kCancelled);
}

// And in bytes: each of these is answered with its name.
TEST_F(ClusterServiceTest, AGatewayThatAsksForMuchAndDoesNotRead) {
  Start();
  const auto gateway = Attending("g");
  const GatewaySays route = GatewayPeer::RouteOf(std::string(4 << 20, 'r'));
  for (int i = 0; i < 64; ++i) {
    if (!gateway->Say(route)) break;
    ASSERT_LT(i, 40) << "160 MiB wait";
  }
  EXPECT_EQ(gateway->End().code(), Code::kCancelled);
}

// A stream that has ended is not kept for a peer that does not read to its end.
TEST_F(ClusterServiceTest, APeerThatDoesNotReadItsEnd) {
  options_.end_within = milliseconds(1);
  Start();
  const auto gateway = Attending("g");
  for (int i = 0; i < 4; ++i) gateway->Say(GatewayPeer::RouteOf(std::string(4 << 20, 'r')));
  GatewaySays hello;  // Ends it.
  hello.mutable_hello()->set_name("g");
  EXPECT_EQ(gateway->EndUnread(hello).code(), Code::kCancelled);
}

TEST_F(ClusterServiceTest, APeerThatSaysNothing) {
  options_.first_within = seconds(1);
  Start();
  WorkerPeer worker(Channel());
  GatewayPeer gateway(Channel());
  const absl::Status want = absl::DeadlineExceededError("no message came within 1 s");
  EXPECT_EQ(worker.End(), want);
  EXPECT_EQ(gateway.End(), want);
}

// Who half-closes has said all; its session lives until its time is over.
TEST_F(ClusterServiceTest, AWorkerThatHalfCloses) {
  Start();
  const auto worker = Joined(RegisterOf("d", 1));
  Settled(*worker);
  worker->HalfClose();
  EXPECT_EQ(worker->End(), absl::OkStatus());
  EXPECT_EQ(StatusOf("d").state(), "away");
  const auto again = Joined(RegisterOf("d", 1));
  Settled(*again);
  EXPECT_EQ(StatusOf("d").state(), "ready");
}

}  // namespace
}  // namespace penstock::coordinator
