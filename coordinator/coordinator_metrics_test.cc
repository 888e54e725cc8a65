// SPDX-License-Identifier: Apache-2.0
#include "coordinator/coordinator_metrics.h"

#include <map>
#include <string>

#include "coordinator/coordinator_testing.h"

namespace penstock::coordinator {
namespace {

std::map<std::string, double> Read(const Coordinator& coordinator) {
  MetricsWriter writer;
  WriteMetrics(coordinator, 3, writer);
  std::map<std::string, double> values;
  for (const MetricFamily& family : writer.Take()) {
    for (const MetricSample& sample : family.samples) {
      std::string key = family.name.substr(std::string("penstock_coordinator_").size());
      for (const auto& [name, value] : sample.labels) absl::StrAppend(&key, " ", value);
      values[key] = sample.value;
      if (!sample.histogram) continue;
      values[key + " sum"] = sample.histogram->sum;
      for (const std::uint64_t n : sample.histogram->counts) values[key] += static_cast<double>(n);
    }
  }
  return values;
}

TEST_F(CoordinatorTest, MetricsFollowARequest) {
  Coordinator::Options options;
  options.members.ttl = 1000s;
  Start(options, 1, 0);
  std::map<std::string, double> values = Read(*coordinator_);
  EXPECT_EQ(values["workers prefill ready"], 1);
  EXPECT_EQ(values["workers decode ready"], 0);
  EXPECT_EQ(values["gateways"], 3);
  EXPECT_FALSE(Route("r").status.ok());
  EXPECT_EQ(Read(*coordinator_)["refused_total"], 1);
  Add("d0", Role::kDecode);
  coordinator_->TakeActions();
  for (int i = 0; i < 5; ++i) {
    ASSERT_TRUE(Route(absl::StrCat("r", i), 16).status.ok());
    if (i < 4) Decode(absl::StrCat("r", i));  // It runs four at a time.
  }
  values = Read(*coordinator_);
  EXPECT_EQ(values["requests_live"], 5);
  EXPECT_EQ(values["booked_sequences"], 4);
  EXPECT_EQ(values["plans_total"], 4);
  EXPECT_EQ(values["queue_wait_seconds"], 4);
  EXPECT_EQ(values["queue_requests"], 1);
  now_ += 250ms;
  ASSERT_TRUE(Say("d0", Kind::kFinished, {"r0", 1}).ok());
  coordinator_->Tick(now_);
  values = Read(*coordinator_);
  EXPECT_EQ(values["ended_total yes"], 1);
  EXPECT_EQ(values["queue_requests"], 0);
  EXPECT_EQ(values["queue_wait_seconds"], 5);
  EXPECT_NEAR(values["queue_wait_seconds sum"], 0.25, 1e-9);
  coordinator_->Cancel("r1", now_);
  EXPECT_EQ(Read(*coordinator_)["ended_total no"], 1);
}

TEST_F(CoordinatorTest, MetricsFollowWhatIsFetched) {
  Start({}, 0, 0);
  Registration decode = Of("d0", Role::kDecode);
  decode.groups = {{.copy_spaces = {Namespace{{7}}}, .block_bytes = 1600}};
  ASSERT_TRUE(coordinator_->Register(decode, now_).ok());
  ASSERT_TRUE(coordinator_->Report(decode.ref, {}, {}, now_).ok());
  Registration store;
  store.ref = {"s0", 1};
  store.role = Role::kStore;
  store.transfer_address = "shm:host:s0";
  ASSERT_TRUE(coordinator_->Register(store, now_).ok());
  ASSERT_TRUE(coordinator_->Report(store.ref, {}, {}, now_).ok());
  RouteQuery query = Query("r", 65);
  for (std::uint8_t n = 0; n < 4; ++n) {
    query.chains.emplace_back().bytes[3] = n;
    const CopyEvent event = {.name = NameOf({decode.groups[0].copy_spaces[0], query.chains[n]}),
                             .tier = n < 2 ? Tier::kHost : Tier::kDisk,
                             .bytes = 1600};
    if (n == 3) break;
    ASSERT_TRUE(coordinator_->Copies(store.ref, n + 1, {&event, 1}, now_).ok());
  }
  ASSERT_TRUE(coordinator_->Route(query, now_).status.ok());
  std::map<std::string, double> values = Read(*coordinator_);
  EXPECT_EQ(values["workers store ready"], 1);
  EXPECT_EQ(values["store_copies"], 3);
  EXPECT_EQ(values["store_degraded_nodes"], 0);
  EXPECT_NEAR(values["store_booked_bytes"], 4800, 300);
  EXPECT_EQ(values["store_planned_blocks_total host"], 2);
  EXPECT_EQ(values["store_planned_blocks_total disk"], 1);
  EXPECT_EQ(values["store_planned_blocks_total device"], 0);
  EXPECT_EQ(values["store_planned_blocks_total remote"], 0);
  EXPECT_EQ(values["store_planned_blocks_total compute"], 1);
  const CopyEvent late;
  ASSERT_TRUE(coordinator_->Copies(store.ref, 9, {&late, 1}, now_).ok());
  coordinator_->Cancel("r", now_);
  values = Read(*coordinator_);
  EXPECT_EQ(values["store_degraded_nodes"], 1);
  EXPECT_EQ(values["store_booked_bytes"], 0);
}

}  // namespace
}  // namespace penstock::coordinator
