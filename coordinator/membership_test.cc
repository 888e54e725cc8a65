// SPDX-License-Identifier: Apache-2.0
#include "coordinator/membership.h"

#include <gtest/gtest.h>

#include <functional>

namespace penstock::coordinator {
namespace {

using namespace std::chrono_literals;

const MonoTime kStart = MonoTime() + 100s;

Registration Of(const std::string& name, std::uint64_t epoch) {
  Registration r;
  r.ref = {name, epoch};
  r.role = Role::kDecode;
  r.model = "m";
  r.identity = {{"model", "llama"}, {"weights", "w1"}, {"numerics", "avx2"}};
  r.block_tokens = 32;
  r.kv_bytes_per_token = 1024;
  r.blocks_total = 100;
  r.sequences_max = 8;
  return r;
}

TEST(MembershipTest, ASessionEndsUnlessRenewed) {
  Membership members({.ttl = 5s});
  const WorkerId a = members.Add(Of("a", 1), kStart);
  const WorkerId b = members.Add(Of("b", 1), kStart + 1s);
  EXPECT_EQ(members.NextExpiry(), kStart + 5s);
  EXPECT_EQ(members.FirstExpired(kStart + 5s - 1ns), kNoWorker);
  EXPECT_EQ(members.FirstExpired(kStart + 5s), a);
  members.Renew(a, kStart + 2s);
  EXPECT_EQ(members.FirstExpired(kStart + 6s), b);
  members.Renew(b, kStart) /* A message that was late never shortens. */;
  EXPECT_EQ(members.NextExpiry(), kStart + 6s);
  members.End(b);
  members.End(a);
  EXPECT_EQ(members.NextExpiry(), MonoTime::max());
}

TEST(MembershipTest, AnEarlierLifeIsNotBelieved) {
  Membership members({});
  const WorkerId a = members.Add(Of("a", 7), kStart);
  EXPECT_EQ(*members.Resolve({"a", 7}), a);
  EXPECT_EQ(members.Resolve({"a", 6}).status().code(), absl::StatusCode::kAborted);
  EXPECT_EQ(members.Resolve({"a", 8}).status().code(), absl::StatusCode::kAborted);
  EXPECT_EQ(members.Resolve({"b", 7}).status().code(), absl::StatusCode::kAborted);
  EXPECT_TRUE(members.Check(Of("a", 7)).ok()) << "a repeated message";
  EXPECT_EQ(members.Check(Of("a", 6)).code(), absl::StatusCode::kAborted);
  EXPECT_TRUE(members.Check(Of("a", 8)).ok());
  members.End(a);
  EXPECT_EQ(members.Check(Of("a", 7)).code(), absl::StatusCode::kAborted);
  ASSERT_TRUE(members.Check(Of("a", 8)).ok());
  EXPECT_EQ(members.Add(Of("a", 8), kStart), a) << "ids are dense";
}

TEST(MembershipTest, LivesThatEndedElsewhereAreNotBelieved) {
  Membership members({.ended_max = 2});
  members.Restore({"a", 7});
  members.Restore({"a", 5});
  EXPECT_EQ(members.Check(Of("a", 6)).code(), absl::StatusCode::kAborted);
  EXPECT_EQ(members.Check(Of("a", 7)).code(), absl::StatusCode::kAborted);
  ASSERT_TRUE(members.Check(Of("a", 8)).ok());
  const WorkerId a = members.Add(Of("a", 8), kStart);
  members.Restore({"a", 9});
  EXPECT_EQ(*members.Resolve({"a", 8}), a) << "who lives does so until somebody ends it";
  members.End(a);
  EXPECT_EQ(members.Check(Of("a", 8)).code(), absl::StatusCode::kAborted);
  members.Restore({"b", 3});
  members.Restore({"c", 3});  // And the oldest name is forgotten.
  EXPECT_TRUE(members.Check(Of("a", 1)).ok());
  EXPECT_EQ(members.Check(Of("b", 3)).code(), absl::StatusCode::kAborted);
}

TEST(MembershipTest, WorkersOfAModelAgree) {
  Membership members({});
  const WorkerId a = members.Add(Of("a", 1), kStart);
  struct Case {
    const char* field;
    std::function<void(Registration&)> change;
  };
  for (const Case& c : {
           Case{"weights: 'b' has 'w2', 'a' has 'w1'",
                [](Registration& r) { r.identity[1].second = "w2"; }},
           Case{"model: 'b' has 'gemma', 'a' has 'llama'",
                [](Registration& r) { r.identity[0].second = "gemma"; }},
           Case{"fields of identity: 'b' has 'revision', 'a' has 'weights'",
                [](Registration& r) { r.identity[1].first = "revision"; }},
           Case{"fields of identity: 'b' has 'more', 'a' has '(no more fields)'",
                [](Registration& r) { r.identity.emplace_back("more", ""); }},
           Case{"fields of identity: 'b' has '(no more fields)', 'a' has 'numerics'",
                [](Registration& r) { r.identity.pop_back(); }},
           Case{"block_tokens: 'b' has '64', 'a' has '32'",
                [](Registration& r) { r.block_tokens = 64; }},
           Case{"kv_bytes_per_token: 'b' has '2'",
                [](Registration& r) { r.kv_bytes_per_token = 2; }},
       }) {
    SCOPED_TRACE(c.field);
    Registration other = Of("b", 1);
    c.change(other);
    const absl::Status status = members.Check(other);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_NE(status.message().find(c.field), absl::string_view::npos) << status;
    other.model = "other";
    EXPECT_TRUE(members.Check(other).ok());
    other = Of("a", 2);
    c.change(other);
    EXPECT_TRUE(members.Check(other).ok()) << "it would be the only one";
  }
  members.Add(Of("b", 1), kStart);
  Registration next = Of("a", 2);
  next.identity[1].second = "w2";
  EXPECT_EQ(members.Check(next).code(), absl::StatusCode::kFailedPrecondition);
  members.End(a);
}

TEST(MembershipTest, FieldsOutOfRangeAreNamed) {
  struct Case {
    const char* field;
    std::function<void(Registration&)> change;
  };
  Membership members({});
  for (const Case& c :
       {Case{"worker.name bytes", [](Registration& r) { r.ref.name = ""; }},
        Case{"worker.name bytes", [](Registration& r) { r.ref.name = std::string(65, 'x'); }},
        Case{"worker.epoch", [](Registration& r) { r.ref.epoch = 0; }},
        Case{"worker.model bytes", [](Registration& r) { r.model = ""; }},
        Case{"worker.endpoint bytes", [](Registration& r) { r.endpoint = std::string(1025, 'x'); }},
        Case{"worker.transfer_address bytes",
             [](Registration& r) { r.transfer_address = std::string(4097, 'x'); }},
        Case{"worker.context_tokens", [](Registration& r) { r.context_tokens = -1; }},
        Case{"worker.device bytes", [](Registration& r) { r.device = std::string(257, 'x'); }},
        Case{"worker.identity fields", [](Registration& r) { r.identity.resize(65); }},
        Case{"worker.identity bytes of a field",
             [](Registration& r) { r.identity[0].second = std::string(1024, 'x'); }},
        Case{"worker.block_tokens", [](Registration& r) { r.block_tokens = 0; }},
        Case{"worker.kv_bytes_per_token", [](Registration& r) { r.kv_bytes_per_token = 0; }},
        Case{"worker.blocks_total", [](Registration& r) { r.blocks_total = ~0ull; }},
        Case{"worker.sequences_max", [](Registration& r) { r.sequences_max = 0; }},
        Case{"worker.prefill_tokens_per_s", [](Registration& r) { r.prefill_tokens_per_s = 0; }},
        Case{"worker.link_bytes_per_s", [](Registration& r) { r.link_bytes_per_s = -1; }},
        Case{"worker.step_seconds", [](Registration& r) { r.step_seconds = 1.0 / 0.0; }}}) {
    SCOPED_TRACE(c.field);
    Registration r = Of("a", 1);
    c.change(r);
    const absl::Status status = members.Check(r);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(status.message().find(c.field), absl::string_view::npos) << status;
  }
}

TEST(MembershipTest, LimitsHold) {
  Membership members({.workers_max = 2, .ended_max = 1});
  const WorkerId a = members.Add(Of("a", 5), kStart);
  const WorkerId b = members.Add(Of("b", 5), kStart);
  EXPECT_EQ(members.Check(Of("c", 1)).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(members.Check(Of("b", 6)).ok()) << "a new life of one that lives";
  members.End(a);
  EXPECT_EQ(members.Check(Of("a", 5)).code(), absl::StatusCode::kAborted);
  members.End(b);
  EXPECT_TRUE(members.Check(Of("a", 5)).ok()) << "only one ended name is remembered";
}

TEST(WorkerTest, AHangingPrefillNeverLooksDone) {
  Worker worker;
  worker.prefill_tokens_per_s = 100;
  EXPECT_EQ(worker.PrefillWaitSeconds(kStart), 0);
  worker.BeginPrefill(100, kStart);
  worker.BeginPrefill(300, kStart);
  EXPECT_DOUBLE_EQ(worker.PrefillWaitSeconds(kStart), 4);
  EXPECT_DOUBLE_EQ(worker.PrefillWaitSeconds(kStart + 1s), 3);
  EXPECT_DOUBLE_EQ(worker.PrefillWaitSeconds(kStart + 100s), 2);
  worker.EndPrefill(100, kStart + 1s);
  EXPECT_DOUBLE_EQ(worker.PrefillWaitSeconds(kStart + 1s), 3);
}

TEST(WorkerTest, AGaugeCountsWhatTheReportCannotKnowYet) {
  Gauge gauge;
  gauge.Add(10);
  EXPECT_EQ(gauge.value(), 10u);
  gauge.Report(25);  // Others run there, too.
  EXPECT_EQ(gauge.value(), 25u);
  gauge.Add(5);
  EXPECT_EQ(gauge.value(), 30u);
  gauge.Remove(10);
  EXPECT_EQ(gauge.value(), 20u);
  gauge.Report(0);  // Sent before the last one was known there.
  EXPECT_EQ(gauge.value(), 5u);
  gauge.Remove(5);
  EXPECT_EQ(gauge.value(), 0u);
}

}  // namespace
}  // namespace penstock::coordinator
