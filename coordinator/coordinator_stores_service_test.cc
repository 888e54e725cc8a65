// SPDX-License-Identifier: Apache-2.0
// Store nodes over the wire: what they may say, what workers hear of them, what operators see.
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "coordinator/coordinator_service_testing.h"
#include "gtest/gtest.h"

namespace penstock::coordinator {
namespace {

using WorkerSays = v1::WorkerMessage;

WorkerSays StoreOf(const std::string& name, std::uint64_t epoch = 1) {
  WorkerSays message;
  WorkerSays::Register& r = *message.mutable_register_();
  r.set_name(name);
  r.set_session_epoch(epoch);
  r.set_role(v1::ROLE_STORE);
  r.set_transfer_address(absl::StrCat("shm:host:", name));
  r.set_transfer_epoch(epoch + 40);
  return message;
}

std::string DigestOf(char c) { return std::string(16, c); }

// Copies of the group whose space is 's', of chains 'a', 'b', ...
WorkerSays CopiesOf(std::uint64_t first, const std::string& chains) {
  WorkerSays message;
  message.mutable_copies()->set_first(first);
  for (const char c : chains) {
    v1::CopyEvent* const event = message.mutable_copies()->add_events();
    event->set_kind(v1::CopyEvent::KIND_STORED);
    event->set_name(DigestOf(static_cast<char>(c ^ 's')));
    event->set_tier(v1::TIER_DISK);
    event->set_codec(2);
    event->set_bytes(1600);
  }
  return message;
}

TEST_F(ClusterServiceTest, StoreNodesOutOfRange) {
  Start();
  struct Case {
    std::function<void(WorkerSays&)> wrong;
    const char* want;
  };
  const auto event = [](WorkerSays& m) {
    m = CopiesOf(1, "a");
    return m.mutable_copies()->mutable_events(0);
  };
  const auto tier = [](WorkerSays& m) {
    auto* const t = m.mutable_load()->add_tiers();
    t->set_tier(v1::TIER_HOST);
    return t;
  };
  const auto rate = [](WorkerSays& m) {
    auto* const r = m.mutable_load()->add_fetches();
    r->set_store("s");
    r->set_tier(v1::TIER_HOST);
    return r;
  };
  const std::vector<Case> cases = {
      {[&](WorkerSays& m) { event(m)->clear_kind(); },
       "copies.events.kind must be from 1 to 5, got 0"},
      {[&](WorkerSays& m) { event(m)->set_name("short"); },
       "length of copies.events.name must be from 16 to 16, got 5"},
      {[&](WorkerSays& m) { event(m)->set_parent(std::string(17, 'p')); },
       "length of copies.events.parent must be from 16 to 16, got 17"},
      {[&](WorkerSays& m) { event(m)->clear_tier(); },
       "copies.events.tier must be from 1 to 4, got 0"},
      {[&](WorkerSays& m) { event(m)->set_tier(static_cast<v1::Tier>(5)); },
       "copies.events.tier must be from 1 to 4, got 5"},
      {[&](WorkerSays& m) { event(m)->set_codec(256); },
       "copies.events.codec must be from 0 to 255, got 256"},
      {[](WorkerSays& m) { m = CopiesOf(1, std::string(65537, 'a')); },
       "copies.events must be from 0 to 65536, got 65537"},
      {[](WorkerSays& m) { m = CopiesOf(0, "a"); },
       "copy events are numbered from 1 to 2^63, got 0"},
      {[](WorkerSays& m) { m = CopiesOf(UINT64_MAX, "a"); },
       "copy events are numbered from 1 to 2^63, got 18446744073709551615"},
      {[&](WorkerSays& m) { tier(m)->set_bytes_per_s(-1); },
       "load.tiers.bytes_per_s must be finite and not below 0, got -1"},
      {[&](WorkerSays& m) { tier(m)->clear_tier(); }, "load.tiers.tier must be from 1 to 4, got 0"},
      {[&](WorkerSays& m) {
         for (int i = 0; i < 9; ++i) tier(m);
       },
       "load.tiers must be from 0 to 8, got 9"},
      {[&](WorkerSays& m) { rate(m)->set_bytes_per_s(std::numeric_limits<double>::quiet_NaN()); },
       "load.fetches.bytes_per_s must be finite and not below 0, got nan"},
      {[&](WorkerSays& m) { rate(m)->clear_store(); },
       "length of load.fetches.store must be from 1 to 64, got 0"},
      {[&](WorkerSays& m) { rate(m)->clear_tier(); },
       "load.fetches.tier must be from 1 to 4, got 0"},
      {[&](WorkerSays& m) {
         for (int i = 0; i < 16385; ++i) rate(m);
       },
       "load.fetches must be from 0 to 16384, got 16385"},
      {[](WorkerSays& m) { m.mutable_blocks()->set_first(1); },
       "'s' is a store node and has no part in requests"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.want);
    const auto store = Joined(StoreOf("s"));
    WorkerSays message;
    c.wrong(message);
    store->Say(message);
    EXPECT_EQ(store->End(), absl::InvalidArgumentError(c.want));
  }
  const auto worker = Joined(RegisterOf("d", 1));
  worker->Say(CopiesOf(1, "a"));
  EXPECT_EQ(worker->End(), absl::InvalidArgumentError("'d' is no store node and has no copies"));
}

TEST_F(ClusterServiceTest, RegistrationsOfStoresOutOfRange) {
  Start();
  using Register = WorkerSays::Register;
  const auto group = [](Register& r) {
    auto* const g = r.add_groups();
    g->set_copy_space(DigestOf('s'));
    g->set_block_bytes(100);
    return g;
  };
  struct Case {
    WorkerSays message;
    std::function<void(Register&)> wrong;
    const char* want;
  };
  const std::vector<Case> cases = {
      {StoreOf("s"), [](Register& r) { r.set_model("m"); },
       "length of register.model must be from 0 to 0, got 1"},
      {StoreOf("s"), [](Register& r) { r.set_transfer_address(""); },
       "length of register.transfer_address must be from 1 to 4096, got 0"},
      {StoreOf("s"), [](Register& r) { r.set_session_epoch(0); },
       "worker.epoch must be from 1 to 9223372036854775807, got 0"},
      {RegisterOf("d", 1), [&](Register& r) { group(r)->set_copy_space("short"); },
       "length of register.groups.copy_space must be from 16 to 16, got 5"},
      {RegisterOf("d", 1), [&](Register& r) { group(r)->set_window_tokens(-1); },
       "register.groups.window_tokens must be from 0 to 1073741824, got -1"},
      {RegisterOf("d", 1), [&](Register& r) { group(r)->set_block_bytes(0); },
       "worker.groups.block_bytes must be from 1 to 1099511627776, got 0"},
      {RegisterOf("d", 1),
       [&](Register& r) {
         for (int i = 0; i < 65; ++i) group(r);
       },
       "register.groups must be from 0 to 64, got 65"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.want);
    WorkerSays message = c.message;
    c.wrong(*message.mutable_register_());
    WorkerPeer peer(Channel());
    peer.Say(message);
    EXPECT_EQ(peer.End(), absl::InvalidArgumentError(c.want));
  }
  EXPECT_EQ(Status().stores_size(), 0);
}

TEST_F(ClusterServiceTest, AWorkerIsToldOfItsStoreAndItsSources) {
  Start();
  WorkerSays registration = RegisterOf("d", 1);
  auto* const group = registration.mutable_register_()->add_groups();
  group->set_copy_space(DigestOf('s'));
  group->set_block_bytes(1600);
  const auto worker = Joined(registration);
  const auto store = Joined(StoreOf("s"));
  const Command told = worker->Await([](const Command& c) { return c.has_store(); });
  EXPECT_EQ(told.store().name(), "s");
  EXPECT_EQ(told.store().transfer_address(), "shm:host:s");
  EXPECT_EQ(told.store().transfer_epoch(), 41u);
  store->Say(CopiesOf(1, "abc"));
  store->Say(CopiesOf(9, "d"));
  store->AwaitSnapshot();
  WorkerSays whole = CopiesOf(10, "abc");
  whole.mutable_copies()->mutable_events(0)->set_kind(v1::CopyEvent::KIND_SNAPSHOT_BEGIN);
  for (const char c : {'a', 'b', 'c'}) {
    *whole.mutable_copies()->add_events() = CopiesOf(1, {c}).copies().events(0);
  }
  whole.mutable_copies()->add_events()->set_kind(v1::CopyEvent::KIND_SNAPSHOT_END);
  store->Say(whole);
  WorkerSays load;
  load.mutable_load()->set_ready(true);
  auto* const tier = load.mutable_load()->add_tiers();
  tier->set_tier(v1::TIER_DISK);
  tier->set_bytes(4800);
  tier->set_bytes_max(1 << 20);
  tier->set_copies(3);
  tier->set_hits(5);
  tier->set_misses(6);
  tier->set_bytes_per_s(1e9);
  store->Say(load);
  v1::StatusResponse::StoreStatus shown;
  // Its stream is read in order: what it said before is handled when this is asked.
  store->Say(CopiesOf(30, "z"));
  store->AwaitSnapshot();
  ASSERT_EQ(Status().stores_size(), 1);
  shown = Status().stores(0);
  EXPECT_EQ(shown.name(), "s");
  EXPECT_EQ(shown.state(), "ready");
  EXPECT_EQ(shown.transfer_address(), "shm:host:s");
  EXPECT_EQ(shown.copies_known(), 4u);
  ASSERT_EQ(shown.tiers_size(), 1);
  EXPECT_EQ(shown.tiers(0).SerializeAsString(), tier->SerializeAsString());
  const auto gateway = Attending("g");
  v1::GatewayMessage route = GatewayPeer::RouteOf("r");
  route.mutable_route()->set_chains(DigestOf('a') + DigestOf('b') + DigestOf('c') + DigestOf('d'));
  route.mutable_route()->set_prompt_tokens(65);
  route.mutable_route()->set_tenant(7);
  EXPECT_EQ(gateway->Route(route), absl::OkStatus());
  const Command reserve = worker->Await([](const Command& c) { return c.has_reserve(); });
  EXPECT_EQ(reserve.reserve().tenant(), 7u);
  ASSERT_EQ(reserve.reserve().sources_size(), 1);
  worker->SayOf(reserve.reserve().attempt(), v1::AttemptEvent::KIND_GRANTED);
  const Command start = worker->Await([](const Command& c) { return c.has_start(); });
  ASSERT_EQ(start.start().sources_size(), 1);
  const v1::Source& source = start.start().sources(0);
  EXPECT_EQ(source.SerializeAsString(), reserve.reserve().sources(0).SerializeAsString());
  EXPECT_EQ(source.store(), "s");
  EXPECT_EQ(source.transfer_address(), "shm:host:s");
  EXPECT_EQ(source.transfer_epoch(), 41u);
  EXPECT_EQ(source.first_block(), 0);
  EXPECT_EQ(source.end_block(), 3);
  EXPECT_EQ(source.tier(), v1::TIER_DISK);
  EXPECT_EQ(source.compute_within().nanos(), 48'000'000) << "48 tokens at 1,000 a second";
  const Event planned =
      gateway->Await([](const Event& e) { return e.planned().attempt().request_id() == "r"; });
  EXPECT_EQ(planned.planned().reused_tokens(), 48u);
}

}  // namespace
}  // namespace penstock::coordinator
