// SPDX-License-Identifier: Apache-2.0
#include "gateway/gateway_metrics.h"

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/virtual_loop.h"

namespace penstock::gateway {
namespace {

using std::chrono::milliseconds;

class CountingSink final : public Sink {
 public:
  bool OnEvent(Event) override { return ++events_ != 3; }
  void OnEnd(const absl::Status& status, Duration retry_after) override {
    ended_ = status;
    retry_after_ = retry_after;
  }
  int events_ = 0;
  absl::Status ended_;
  Duration retry_after_{};
};

// "name{model,code}" to value, or to count and sum.
std::map<std::string, double> Read(const GatewayMetrics& metrics) {
  MetricsWriter writer;
  metrics.Write(writer);
  std::map<std::string, double> values;
  for (const MetricFamily& family : writer.Take()) {
    for (const MetricSample& sample : family.samples) {
      std::string key = family.name.substr(std::string("penstock_gateway_").size());
      for (const auto& [name, value] : sample.labels) absl::StrAppend(&key, " ", value);
      values[key] = sample.value;
      if (!sample.histogram) continue;
      values[key] = sample.histogram->sum;
      double count = 0;
      for (const std::uint64_t n : sample.histogram->counts) count += static_cast<double>(n);
      values[key + " n"] = count;
    }
  }
  return values;
}

Delta Tokens(std::int32_t choice, int count) {
  return {.choice = choice, .tokens = std::vector<SampledToken>(static_cast<std::size_t>(count))};
}

TEST(GatewayMetricsTest, GoodAnswersKeepToTheSlo) {
  VirtualLoop loop;
  const auto good = [&](const Slo& slo, const absl::Status& end) {
    GatewayMetrics metrics({"a"}, slo);
    const auto sink = metrics.Watch(std::make_shared<CountingSink>(), "a", loop, loop.Now());
    loop.Advance(milliseconds(20));
    sink->OnEvent(Tokens(0, 1));
    sink->OnEvent(Tokens(1, 1));
    loop.Advance(milliseconds(30));
    sink->OnEvent(Tokens(0, 3));  // 10 ms for each after the first.
    sink->OnEvent(Tokens(1, 1));  // 30 ms.
    sink->OnEvent(Finished{.choice = 0});
    sink->OnEvent(Finished{.choice = 1});
    sink->OnEnd(end, {});
    return Read(metrics)["good_total a"] == 1;
  };
  EXPECT_TRUE(good({}, absl::OkStatus()));
  EXPECT_TRUE(good({.ttft = milliseconds(20), .tpot = milliseconds(30)}, absl::OkStatus()));
  EXPECT_FALSE(good({.ttft = milliseconds(20), .tpot = milliseconds(30)}, absl::CancelledError()));
  EXPECT_FALSE(good({.ttft = milliseconds(19)}, absl::OkStatus()));
  EXPECT_FALSE(good({.tpot = milliseconds(29)}, absl::OkStatus()));
}

TEST(GatewayMetricsTest, MeasuresWhatAClientSees) {
  VirtualLoop loop;
  GatewayMetrics metrics({"a"});
  const auto client = std::make_shared<CountingSink>();
  const auto sink = metrics.Watch(client, "", loop, loop.Now());
  EXPECT_EQ(Read(metrics)["requests_live a"], 1);
  const auto after = [&](int ms, Event event) {
    loop.Advance(milliseconds(ms));
    return sink->OnEvent(std::move(event));
  };
  EXPECT_TRUE(after(5, Started{}));
  EXPECT_TRUE(after(5, Tokens(0, 0)));    // Text alone is no token.
  EXPECT_FALSE(after(10, Tokens(0, 1)));  // 20 ms. What the client says goes back.
  after(30, Tokens(0, 1));                // A gap of 30 ms,
  after(50, Tokens(0, 3));                // of 50, and two of none.
  after(0, Finished{.choice = 0});        // 80 ms over 4 gaps.
  after(0, Tokens(1, 1));
  after(0, Finished{.choice = 1});  // One token has no gap.
  after(0, Usage{.prompt_tokens = 10, .cached_tokens = 4, .completion_tokens = 6, .attempts = 2});
  sink->OnEnd(absl::OkStatus(), {});
  std::map<std::string, double> values = Read(metrics);
  EXPECT_EQ(client->events_, 9);
  EXPECT_NEAR(values["ttft_seconds a"], 0.020, 1e-9);
  EXPECT_EQ(values["ttft_seconds a n"], 1);
  EXPECT_NEAR(values["itl_seconds a"], 0.080, 1e-9);
  EXPECT_EQ(values["itl_seconds a n"], 4);
  EXPECT_NEAR(values["tpot_seconds a"], 0.020, 1e-9);
  EXPECT_EQ(values["tpot_seconds a n"], 1);
  EXPECT_NEAR(values["e2e_seconds a"], 0.100, 1e-9);
  EXPECT_EQ(values["prompt_tokens_total a"], 10);
  EXPECT_EQ(values["cached_tokens_total a"], 4);
  EXPECT_EQ(values["completion_tokens_total a"], 6);
  EXPECT_EQ(values["attempts_total a"], 2);
  EXPECT_EQ(values["requests_total a ok"], 1);
  EXPECT_EQ(values["requests_live a"], 0);
}

TEST(GatewayMetricsTest, FailuresCountByCodeAndUnknownModelsTogether) {
  VirtualLoop loop;
  GatewayMetrics metrics({"a", "b"});
  const auto end = [&](const std::string& model, const absl::Status& status) {
    const auto client = std::make_shared<CountingSink>();
    metrics.Watch(client, model, loop, loop.Now())->OnEnd(status, milliseconds(7));
    EXPECT_EQ(client->ended_, status);
    EXPECT_EQ(client->retry_after_, milliseconds(7));
  };
  end("b", absl::ResourceExhaustedError("full"));
  end("b", absl::ResourceExhaustedError("full"));
  end("b", absl::CancelledError());
  end("c", absl::NotFoundError("c"));
  end("", absl::InvalidArgumentError("which?"));
  std::map<std::string, double> values = Read(metrics);
  EXPECT_EQ(values["requests_total b resource_exhausted"], 2);
  EXPECT_EQ(values["requests_total b cancelled"], 1);
  EXPECT_EQ(values["requests_total  not_found"], 1);
  EXPECT_EQ(values["requests_total  invalid_argument"], 1);
  EXPECT_EQ(values["requests_total a ok"], 0);
  EXPECT_EQ(values["e2e_seconds b n"], 0);
}

}  // namespace
}  // namespace penstock::gateway
