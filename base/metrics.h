// SPDX-License-Identifier: Apache-2.0
// What a process counts of itself, for an operator's monitoring. Nothing is global: a process makes
// one Metrics, its parts add what they know, and rpc/metrics_server.h shows all of it to
// Prometheus. Every metric is in deploy/METRICS.md; a test holds that table and what is shown
// equal.
//
//   Counter sent;                                                     // counted anywhere
//   metrics.Add([&](MetricsWriter& writer) {                          // read at each collection
//     writer.Counter("penstock_x_sent_total", "What was sent", sent.value());
//   });
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/event_loop.h"
#include "base/time.h"

namespace penstock {

// From any thread.
class Counter {
 public:
  void Add(std::uint64_t n = 1) { value_.fetch_add(n, std::memory_order_relaxed); }
  std::uint64_t value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<std::uint64_t> value_ = 0;
};

// Counts values by size. From any thread.
class Histogram {
 public:
  // `bounds`: the upper end of each bucket, in it; ascending (CHECKed). One above all is added.
  explicit Histogram(std::vector<double> bounds);
  void Observe(double value, std::uint64_t times = 1);

  struct Reading {
    std::vector<double> bounds = {};
    std::vector<std::uint64_t> counts = {};  // Of each bucket alone; the last is above all bounds.
    double sum = 0;
  };
  // While others observe, its parts may be some observations apart.
  Reading Read() const;

 private:
  const std::vector<double> bounds_;
  std::vector<std::atomic<std::uint64_t>> counts_;
  std::atomic<double> sum_ = 0;
};

// Upper ends from 1 ms to 2 min, about 1, 2, 5 in each decade: of what people wait for.
std::vector<double> LatencyBounds();
// From 0.1 ms to 10 s, likewise: of what happens for each token.
std::vector<double> TokenBounds();

using MetricLabels = std::vector<std::pair<std::string, std::string>>;

enum class MetricKind : std::uint8_t { kCounter, kGauge, kHistogram };

struct MetricSample {
  MetricLabels labels = {};
  double value = 0;
  std::optional<Histogram::Reading> histogram = {};
};
struct MetricFamily {
  std::string name = {};
  std::string help = {};
  MetricKind kind = MetricKind::kGauge;
  std::vector<MetricSample> samples = {};
};

// One collection. A family is made by its first sample, or by Declare where there may be none; its
// kind is that of the first (CHECKed to stay so).
class MetricsWriter {
 public:
  void Declare(MetricKind kind, std::string_view name, std::string_view help);
  void Counter(std::string_view name, std::string_view help, double value,
               MetricLabels labels = {});
  void Gauge(std::string_view name, std::string_view help, double value, MetricLabels labels = {});
  void Histogram(std::string_view name, std::string_view help, const penstock::Histogram& histogram,
                 MetricLabels labels = {});
  // Adds what another has.
  void Append(std::vector<MetricFamily> families);
  std::vector<MetricFamily> Take();  // By name.

 private:
  MetricFamily& Family(MetricKind kind, std::string_view name, std::string_view help);
  std::map<std::string, MetricFamily, std::less<>> families_;
};

// What a process's parts have to show. Any thread.
class Metrics {
 public:
  struct Options {
    Duration loop_within = std::chrono::seconds(1);  // What a busy loop has to answer.
  };
  using Source = std::function<void(MetricsWriter& writer)>;

  Metrics() : Metrics(Options{}) {}
  explicit Metrics(Options options) : options_(options) {}

  // Asked at each collection, on the collecting thread; must not block. It and what it reads
  // outlive the last collection.
  void Add(Source source);
  // Likewise, on `loop`. A loop that has not answered in time is left out and counted.
  void AddOn(Loop& loop, Source source);

  // Not from a loop that was given to AddOn.
  std::vector<MetricFamily> Collect();

 private:
  struct Asked;
  struct Entry {
    Loop* loop = nullptr;                  // Null: none.
    std::shared_ptr<const Source> source;  // Shared with tasks that a loop may run too late.
  };
  std::vector<Entry> entries() const;

  const Options options_;
  Counter late_;
  mutable std::mutex mutex_;
  std::vector<Entry> entries_;  // Guarded by mutex_.
};

// CPU time, memory, threads and open files of this process, by the names that Prometheus' own
// clients give them.
void WriteProcessMetrics(MetricsWriter& writer);

}  // namespace penstock
