// SPDX-License-Identifier: Apache-2.0
// The picture of a benchmark.
#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/bench_report.h"
#include "cli/svg_chart.h"

namespace penstock::cli {
namespace {

constexpr int kWidth = 1000, kHeight = 720, kBuckets = 48;
constexpr double kMsMin = 0.05;  // What is below counts as this.

// How many values fall into each of kBuckets, of equal size on a logarithmic scale; with marks.
void Distribution(SvgChart& chart, int x, std::string_view title, std::vector<double> values_ms,
                  const Percentiles& percentiles) {
  for (double& value : values_ms) value = std::max(value, kMsMin);
  const auto [low, high] = std::ranges::minmax_element(values_ms);
  const SvgChart::Axis across = {
      .ticks = values_ms.empty() ? LogTicks(1, 10) : LogTicks(*low, std::max(*high, *low * 1.5)),
      .log = true,
      .label = "ms"};
  const double from = std::log(across.ticks.front()), to = std::log(across.ticks.back());
  std::vector<double> counts(kBuckets);
  for (const double value : values_ms) {
    const double at = (std::log(value) - from) / (to - from) * kBuckets;
    ++counts[static_cast<std::size_t>(std::clamp(at, 0.0, kBuckets - 1.0))];
  }
  const double most = *std::ranges::max_element(counts);
  chart.Panel(x, 70, 492, 310, title, across, {.ticks = NiceTicks(most, 4), .label = "count"});
  for (int i = 0; i < kBuckets; ++i) {
    chart.Bar(std::exp(from + (to - from) * i / kBuckets),
              std::exp(from + (to - from) * (i + 1) / kBuckets),
              counts[static_cast<std::size_t>(i)], kBlue);
  }
  if (values_ms.empty()) return;
  int row = 0;
  for (const auto& [name, value] :
       {std::pair("p50", percentiles.p50), std::pair("p90", percentiles.p90),
        std::pair("p99", percentiles.p99)}) {
    chart.Mark(std::max(value, kMsMin), absl::StrFormat("%s %.1f ms", name, value), row++);
  }
}

void Timeline(SvgChart& chart, const BenchSummary& s) {
  double rate_max = 0, live_max = 0;
  const double width = s.slices.empty() ? 1 : s.seconds / static_cast<double>(s.slices.size());
  for (const BenchSlice& slice : s.slices) {
    rate_max = std::max(rate_max, slice.output_tokens / width);
    live_max = std::max(live_max, slice.live);
  }
  std::vector<double> seconds = NiceTicks(s.seconds, 10);
  chart.Panel(0, 390, kWidth - 8, 320, "Over time", {.ticks = seconds, .label = "seconds"},
              {.ticks = NiceTicks(rate_max, 4), .label = "tokens/s"});
  chart.RightAxis({.ticks = NiceTicks(live_max, 4), .label = "requests"});
  std::vector<std::pair<double, double>> live;
  for (const BenchSlice& slice : s.slices) {
    chart.Bar(slice.begin_s, slice.begin_s + width, slice.output_tokens / width, kBlue);
    live.emplace_back(slice.begin_s + width / 2, slice.live);
  }
  chart.LineRight(live, kOrange);
  chart.Legend({{"output tokens/s", kBlue}, {"live requests", kOrange}});
}

}  // namespace

std::string ReportSvg(const BenchReport& report) {
  const BenchSummary& s = report.summary;
  std::string title = "penstock bench";
  for (const auto& [name, value] : report.config) {
    if (name == "model" || name == "load") absl::StrAppend(&title, " \u00b7 ", value);
  }
  SvgChart chart(
      kWidth, kHeight, title,
      absl::StrFormat(
          "%d of %d requests complete in %.1f s \u00b7 goodput %.2f/s \u00b7 %.1f output "
          "tokens/s \u00b7 hit rate %.1f %%",
          s.complete(), s.requests, s.seconds, s.goodput(),
          s.PerSecond(static_cast<double>(s.output_tokens)), 100 * s.hit_rate()));
  std::vector<double> ttft, itl;
  for (const BenchRecord& record : report.result.records) {
    if (!record.ok()) continue;
    if (record.first) ttft.push_back(record.ttft_ms());
    for (const float gap : record.gaps) itl.push_back(1000.0 * static_cast<double>(gap));
  }
  Distribution(chart, 0, "Time to first token", std::move(ttft), s.ttft_ms);
  Distribution(chart, 500, "Time between tokens", std::move(itl), s.itl_ms);
  Timeline(chart, s);
  return chart.Take();
}

}  // namespace penstock::cli
