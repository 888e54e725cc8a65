// SPDX-License-Identifier: Apache-2.0
// A coordinator with workers p0, p1, ... and d0, d1, ... of a model "m", for tests.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/coordinator.h"

namespace penstock::coordinator {

using namespace std::chrono_literals;
using Kind = WorkerEvent::Kind;

class CoordinatorTest : public ::testing::Test {
 protected:
  void Start(const Coordinator::Options& options, int prefills, int decodes) {
    coordinator_ = *Coordinator::Make(options);
    for (int i = 0; i < prefills; ++i) Add(absl::StrCat("p", i), Role::kPrefill);
    for (int i = 0; i < decodes; ++i) Add(absl::StrCat("d", i), Role::kDecode);
    coordinator_->TakeActions();
  }
  static Registration Of(const std::string& name, Role role) {
    Registration r;
    r.ref = {name, 1};
    r.role = role;
    r.model = "m";
    r.identity = {{"weights", "w"}};
    r.block_tokens = 16;
    r.kv_bytes_per_token = 100;
    r.blocks_total = 100;
    r.sequences_max = 4;
    r.prefill_tokens_per_s = 1000;
    return r;
  }
  void Add(const std::string& name, Role role) {
    ASSERT_TRUE(coordinator_->Register(Of(name, role), now_).ok());
    ASSERT_TRUE(coordinator_->Report({name, 1}, {}, {}, now_).ok());
  }
  static RouteQuery Query(const std::string& id, std::uint32_t tokens = 320) {
    RouteQuery query;
    query.request = id;
    query.gateway = "g";
    query.model = "m";
    query.prompt_tokens = tokens;
    return query;
  }
  RouteAnswer Route(const std::string& id, std::uint32_t tokens = 320) {
    return coordinator_->Route(Query(id, tokens), now_);
  }
  // The last action of its kind since the last call; all others are dropped.
  template <typename A>
  A Last() {
    A last;
    bool found = false;
    for (const Action& action : coordinator_->TakeActions()) {
      if (const A* const a = std::get_if<A>(&action)) {
        last = *a;
        found = true;
      }
    }
    EXPECT_TRUE(found);
    return last;
  }
  absl::Status Say(const std::string& worker, Kind kind, const Attempt& id) {
    return coordinator_->On({worker, 1}, {.kind = kind, .id = id, .grant = 7}, now_);
  }
  // From its plan to decoding. Its prefill and decode worker.
  std::pair<std::string, std::string> Decode(const std::string& id) {
    const auto planned = Last<ReserveAction>();
    EXPECT_EQ(planned.id.request_id, id);
    const std::string prefill = planned.prefill.ref.name;
    const std::string decode = planned.worker.ref.name;
    EXPECT_TRUE(Say(decode, Kind::kGranted, planned.id).ok());
    bool told = false;
    for (const Action& action : coordinator_->TakeActions()) {
      if (const auto* plan = std::get_if<PlannedAction>(&action)) {
        told = plan->id == planned.id && plan->decode.ref.name == decode &&
               plan->prefill.ref.name == prefill;
      } else if (const auto* start = std::get_if<StartAction>(&action)) {
        EXPECT_EQ(start->grant, 7u);
        EXPECT_TRUE(told) << "the gateway first";
      }
    }
    EXPECT_TRUE(told);
    for (const Kind kind : {Kind::kAccepted, Kind::kComputed}) {
      EXPECT_TRUE(Say(prefill, kind, planned.id).ok());
    }
    EXPECT_TRUE(Say(decode, Kind::kAdopted, planned.id).ok());
    return {prefill, decode};
  }
  RequestState StateOf(const std::string& id) { return coordinator_->Explain(id)->state; }

  std::unique_ptr<Coordinator> coordinator_;
  MonoTime now_ = MonoTime() + 1000s;
};

}  // namespace penstock::coordinator
