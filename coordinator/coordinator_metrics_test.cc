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

}  // namespace
}  // namespace penstock::coordinator
