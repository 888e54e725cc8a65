// SPDX-License-Identifier: Apache-2.0
#include "base/metrics.h"

#include <gtest/gtest.h>

#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/epoll_loop.h"

namespace penstock {
namespace {

const MetricFamily* Find(const std::vector<MetricFamily>& families, std::string_view name) {
  for (const MetricFamily& family : families) {
    if (family.name == name) return &family;
  }
  return nullptr;
}

TEST(HistogramTest, ABoundBelongsToItsBucket) {
  Histogram histogram({1, 2, 5});
  for (const double value : {0.0, 1.0, 1.5, 2.0, 5.0, 5.1, 100.0}) histogram.Observe(value);
  histogram.Observe(3, 4);
  const Histogram::Reading reading = histogram.Read();
  EXPECT_EQ(reading.counts, (std::vector<std::uint64_t>{2, 2, 5, 2}));
  EXPECT_DOUBLE_EQ(reading.sum, 114.6 + 12);
}

TEST(HistogramTest, ThreadsLoseNothing) {
  constexpr int kThreads = 4, kEach = 20000;
  Histogram histogram({0.5});
  Counter counter;
  {
    std::vector<std::jthread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([&] {
        for (int i = 0; i < kEach; ++i) {
          histogram.Observe(i % 2);
          counter.Add(2);
        }
      });
    }
  }
  const Histogram::Reading reading = histogram.Read();
  EXPECT_EQ(reading.counts,
            (std::vector<std::uint64_t>{kThreads * kEach / 2, kThreads * kEach / 2}));
  EXPECT_DOUBLE_EQ(reading.sum, kThreads * kEach / 2);
  EXPECT_EQ(counter.value(), 2u * kThreads * kEach);
}

TEST(HistogramDeathTest, BoundsMustAscend) {
  EXPECT_DEATH(Histogram({1, 1}), "");
  EXPECT_DEATH(Histogram({2, 1}), "");
}

TEST(HistogramTest, BoundsInUseAscend) {
  Histogram a(LatencyBounds()), b(TokenBounds());
  EXPECT_EQ(a.Read().counts.size(), a.Read().bounds.size() + 1);
  EXPECT_EQ(b.Read().counts.size(), b.Read().bounds.size() + 1);
}

TEST(MetricsTest, CollectsFromLoopsAndFromAnywhere) {
  const auto loop = EpollLoop::Make("test").value();
  Metrics metrics;
  metrics.Add([](MetricsWriter& writer) {
    writer.Gauge("b", "of b", 1, {{"from", "here"}});
    writer.Declare(MetricKind::kCounter, "a_total", "of a");
  });
  bool on_loop = false;
  metrics.AddOn(*loop, [&](MetricsWriter& writer) {
    on_loop = loop->OnLoopThread();
    writer.Gauge("b", "of b", 2, {{"from", "loop"}});
  });
  const std::vector<MetricFamily> families = metrics.Collect();
  EXPECT_TRUE(on_loop);
  ASSERT_EQ(families.size(), 3u);
  EXPECT_EQ(families[0].name, "a_total");
  EXPECT_TRUE(families[0].samples.empty());
  EXPECT_EQ(families[1].help, "of b");
  ASSERT_EQ(families[1].samples.size(), 2u);
  EXPECT_EQ(families[1].samples[0].labels, (MetricLabels{{"from", "here"}}));
  EXPECT_EQ(families[1].samples[1].value, 2);
  ASSERT_EQ(families[2].name, "penstock_metrics_late_total");
  EXPECT_EQ(families[2].samples[0].value, 0);
}

TEST(MetricsTest, ABusyLoopIsLeftOutAndNotReadLater) {
  std::promise<void> go;
  bool read = false;
  Metrics metrics(Metrics::Options{.loop_within = std::chrono::milliseconds(1)});
  {
    const auto loop = EpollLoop::Make("test").value();
    metrics.Add([](MetricsWriter& writer) { writer.Gauge("here", "", 1); });
    metrics.AddOn(*loop, [&](MetricsWriter& writer) {
      read = true;
      writer.Gauge("there", "", 1);
    });
    loop->Post([&] { go.get_future().wait(); });
    const std::vector<MetricFamily> families = metrics.Collect();
    EXPECT_NE(Find(families, "here"), nullptr);
    EXPECT_EQ(Find(families, "there"), nullptr);
    EXPECT_EQ(Find(families, "penstock_metrics_late_total")->samples[0].value, 1);
    go.set_value();
    loop->Run([] {});
  }
  EXPECT_FALSE(read);
}

TEST(MetricsTest, OfTheProcess) {
  MetricsWriter writer;
  WriteProcessMetrics(writer);
  for (const MetricFamily& family : writer.Take()) {
    SCOPED_TRACE(family.name);
    ASSERT_EQ(family.samples.size(), 1u);
    EXPECT_GT(family.samples[0].value, 0);
  }
}

}  // namespace
}  // namespace penstock
