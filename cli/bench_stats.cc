// SPDX-License-Identifier: Apache-2.0
#include "cli/bench_stats.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace penstock::cli {

Percentiles MakePercentiles(std::vector<double> values) {
  if (values.empty()) return {};
  std::ranges::sort(values);
  const auto rank = [&](double q) {
    const double n = std::ceil(q * static_cast<double>(values.size()));
    return values[static_cast<std::size_t>(std::max(1.0, n)) - 1];
  };
  return {.count = values.size(),
          .mean = std::accumulate(values.begin(), values.end(), 0.0) /
                  static_cast<double>(values.size()),
          .p50 = rank(0.5),
          .p90 = rank(0.9),
          .p99 = rank(0.99),
          .max = values.back()};
}

namespace {

// Spreads what happened over slices of the run.
class Timeline {
 public:
  Timeline(Duration begin, Duration end, std::size_t slices)
      : begin_(ToSeconds(begin)),
        width_(std::max(1e-9, ToSeconds(end - begin)) / static_cast<double>(slices)),
        slices_(slices) {
    for (std::size_t i = 0; i < slices; ++i) {
      slices_[i].begin_s = width_ * static_cast<double>(i);
    }
  }

  void Add(const BenchRecord& record) {
    if (record.first) {
      double at = ToSeconds(*record.first);
      ++At(at).output_tokens;
      for (const float gap : record.gaps) ++At(at += gap).output_tokens;
    }
    if (record.ok()) ++At(ToSeconds(record.end)).finished;
    const double from = ToSeconds(record.arrival) - begin_, to = ToSeconds(record.end) - begin_;
    for (std::size_t i = Index(from); i <= Index(to); ++i) {
      const double low = width_ * static_cast<double>(i);
      slices_[i].live += std::max(0.0, std::min(to, low + width_) - std::max(from, low)) / width_;
    }
  }
  std::vector<BenchSlice> Take() { return std::move(slices_); }

 private:
  std::size_t Index(double since_begin) const {
    const double i = std::max(0.0, since_begin / width_);
    return std::min(static_cast<std::size_t>(i), slices_.size() - 1);
  }
  BenchSlice& At(double seconds) { return slices_[Index(seconds - begin_)]; }

  const double begin_;
  const double width_;
  std::vector<BenchSlice> slices_;
};

}  // namespace

namespace {

// See BenchSummary::steady_goodput.
std::optional<double> SteadyGoodPerSecond(const std::vector<BenchRecord>& records, const Slo& slo) {
  std::vector<Duration> ends;
  for (const BenchRecord& record : records) {
    if (record.ok()) ends.push_back(record.end);
  }
  if (ends.size() < kSteadyCompleteMin) return std::nullopt;
  std::ranges::sort(ends);
  const auto after = [&](std::size_t tenths) {  // When so many of them had ended.
    return ends[(ends.size() * tenths + 9) / 10 - 1];
  };
  const Duration begin = after(1), end = after(9);
  if (begin == end) return std::nullopt;
  const auto good = std::ranges::count_if(records, [&](const BenchRecord& record) {
    return slo.Holds(record) && record.end > begin && record.end <= end;
  });
  return static_cast<double>(good) / ToSeconds(end - begin);
}

}  // namespace

std::size_t BenchSummary::complete() const {
  const auto at = by_code.find("ok");
  return at == by_code.end() ? 0 : at->second;
}

BenchSummary Summarize(const std::vector<BenchRecord>& records, const Slo& slo,
                       std::size_t slices) {
  BenchSummary summary;
  if (records.empty()) return summary;
  Duration begin = records.front().arrival, end{};
  std::vector<double> ttft, tpot, itl, e2e, relay, late;
  for (const BenchRecord& record : records) {
    begin = std::min(begin, record.arrival);
    end = std::max(end, record.end);
    ++summary.requests;
    ++summary.by_code[record.code];
    summary.good += slo.Holds(record) ? 1 : 0;
    late.push_back(ToMillis(record.sent - record.arrival));
    if (!record.ok()) {
      if (summary.first_error.empty()) summary.first_error = record.message;
      continue;
    }
    summary.prompt_tokens += record.prompt_tokens;
    summary.cached_tokens += record.cached_tokens;
    summary.output_tokens += record.output_tokens;
    summary.retries += std::max<std::int64_t>(0, record.attempts - 1);
    if (record.first) ttft.push_back(record.ttft_ms());
    if (record.output_tokens > 1) tpot.push_back(record.tpot_ms());
    for (const float gap : record.gaps) itl.push_back(1000.0 * static_cast<double>(gap));
    for (const float seconds : record.relays) {
      relay.push_back(1000.0 * static_cast<double>(seconds));
    }
    e2e.push_back(ToMillis(record.end - record.arrival));
  }
  summary.seconds = ToSeconds(end - begin);
  summary.steady_good_per_s = SteadyGoodPerSecond(records, slo);
  summary.ttft_ms = MakePercentiles(std::move(ttft));
  summary.tpot_ms = MakePercentiles(std::move(tpot));
  summary.itl_ms = MakePercentiles(std::move(itl));
  summary.e2e_ms = MakePercentiles(std::move(e2e));
  summary.relay_ms = MakePercentiles(std::move(relay));
  summary.late_ms = MakePercentiles(std::move(late));
  Timeline timeline(begin, end, std::max<std::size_t>(1, slices));
  for (const BenchRecord& record : records) timeline.Add(record);
  summary.slices = timeline.Take();
  return summary;
}

}  // namespace penstock::cli
