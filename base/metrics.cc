// SPDX-License-Identifier: Apache-2.0
#include "base/metrics.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <filesystem>
#include <fstream>

#include "base/check.h"

namespace penstock {

Histogram::Histogram(std::vector<double> bounds)
    : bounds_(std::move(bounds)), counts_(bounds_.size() + 1) {
  CHECK(std::adjacent_find(bounds_.begin(), bounds_.end(), std::greater_equal<>()) ==
        bounds_.end());
}

void Histogram::Observe(double value, std::uint64_t times) {
  const auto at = std::lower_bound(bounds_.begin(), bounds_.end(), value);
  counts_[static_cast<std::size_t>(at - bounds_.begin())].fetch_add(times,
                                                                    std::memory_order_relaxed);
  sum_.fetch_add(value * static_cast<double>(times), std::memory_order_relaxed);
}

Histogram::Reading Histogram::Read() const {
  Reading reading = {.bounds = bounds_, .sum = sum_.load(std::memory_order_relaxed)};
  for (const std::atomic<std::uint64_t>& count : counts_) {
    reading.counts.push_back(count.load(std::memory_order_relaxed));
  }
  return reading;
}

std::vector<double> LatencyBounds() {
  return {0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120};
}

std::vector<double> TokenBounds() {
  return {0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05,
          0.075,  0.1,    0.15,   0.2,   0.3,   0.5,   1,    2,    5,    10};
}

MetricFamily& MetricsWriter::Family(MetricKind kind, std::string_view name, std::string_view help) {
  const auto at = families_.find(name);
  if (at != families_.end()) {
    CHECK(at->second.kind == kind);
    return at->second;
  }
  MetricFamily family = {.name = std::string(name), .help = std::string(help), .kind = kind};
  return families_.emplace(std::string(name), std::move(family)).first->second;
}

void MetricsWriter::Declare(MetricKind kind, std::string_view name, std::string_view help) {
  Family(kind, name, help);
}

void MetricsWriter::Counter(std::string_view name, std::string_view help, double value,
                            MetricLabels labels) {
  Family(MetricKind::kCounter, name, help)
      .samples.push_back({.labels = std::move(labels), .value = value});
}

void MetricsWriter::Gauge(std::string_view name, std::string_view help, double value,
                          MetricLabels labels) {
  Family(MetricKind::kGauge, name, help)
      .samples.push_back({.labels = std::move(labels), .value = value});
}

void MetricsWriter::Histogram(std::string_view name, std::string_view help,
                              const penstock::Histogram& histogram, MetricLabels labels) {
  Family(MetricKind::kHistogram, name, help)
      .samples.push_back({.labels = std::move(labels), .histogram = histogram.Read()});
}

void MetricsWriter::Append(std::vector<MetricFamily> families) {
  for (MetricFamily& family : families) {
    std::vector<MetricSample>& samples = Family(family.kind, family.name, family.help).samples;
    std::move(family.samples.begin(), family.samples.end(), std::back_inserter(samples));
  }
}

std::vector<MetricFamily> MetricsWriter::Take() {
  std::vector<MetricFamily> families;
  for (auto& [name, family] : families_) families.push_back(std::move(family));
  families_.clear();
  return families;
}

void Metrics::Add(Source source) {
  const std::lock_guard lock(mutex_);
  entries_.push_back({.source = std::make_shared<const Source>(std::move(source))});
}

void Metrics::AddOn(Loop& loop, Source source) {
  const std::lock_guard lock(mutex_);
  entries_.push_back({.loop = &loop, .source = std::make_shared<const Source>(std::move(source))});
}

std::vector<Metrics::Entry> Metrics::entries() const {
  const std::lock_guard lock(mutex_);
  return entries_;
}

// What the loops were asked in one collection. Shared with their tasks, of which a late one finds
// that nobody waits any more, and touches nothing.
struct Metrics::Asked {
  std::mutex mutex;
  std::condition_variable answered;
  std::size_t open = 0;
  bool over = false;
  MetricsWriter writer;
};

std::vector<MetricFamily> Metrics::Collect() {
  const auto asked = std::make_shared<Asked>();
  const std::vector<Entry> all = entries();
  for (const Entry& entry : all) asked->open += entry.loop != nullptr ? 1 : 0;
  for (const Entry& entry : all) {
    if (entry.loop == nullptr) continue;
    entry.loop->Post([asked, source = entry.source] {
      // Under the lock, so that Collect cannot return while a source runs.
      const std::lock_guard lock(asked->mutex);
      if (asked->over) return;
      (*source)(asked->writer);
      if (--asked->open == 0) asked->answered.notify_one();
    });
  }
  MetricsWriter writer;
  for (const Entry& entry : all) {
    if (entry.loop == nullptr) (*entry.source)(writer);
  }
  {
    std::unique_lock lock(asked->mutex);
    asked->answered.wait_until(lock, SteadyClock().Now() + options_.loop_within,
                               [&] { return asked->open == 0; });
    asked->over = true;
    late_.Add(asked->open);
    writer.Append(asked->writer.Take());
  }
  writer.Counter("penstock_metrics_late_total",
                 "Times that a part of the process was too busy to say its metrics",
                 static_cast<double>(late_.value()));
  return writer.Take();
}

void WriteProcessMetrics(MetricsWriter& writer) {
  rusage usage = {};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  writer.Counter("process_cpu_seconds_total", "CPU time, user and system",
                 seconds(usage.ru_utime) + seconds(usage.ru_stime));
  std::uint64_t pages_virtual = 0, pages_resident = 0;
  std::ifstream("/proc/self/statm") >> pages_virtual >> pages_resident;
  const auto page_bytes = static_cast<double>(::sysconf(_SC_PAGESIZE));
  writer.Gauge("process_resident_memory_bytes", "Memory in use, shared pools too",
               page_bytes * static_cast<double>(pages_resident));
  const auto entries_of = [](const char* folder) {
    std::error_code error;
    double count = 0;
    for (std::filesystem::directory_iterator at(folder, error), end; !error && at != end;
         at.increment(error)) {
      ++count;
    }
    return count;
  };
  writer.Gauge("process_open_fds", "Open files and sockets", entries_of("/proc/self/fd"));
  writer.Gauge("process_threads", "Threads", entries_of("/proc/self/task"));
}

}  // namespace penstock
