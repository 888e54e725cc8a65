// SPDX-License-Identifier: Apache-2.0
#include "cli/bench_scale.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "base/status.h"
#include "cli/svg_chart.h"
#include "nlohmann/json.hpp"

namespace penstock::cli {
namespace {

constexpr int kWorkersMax = 256;
constexpr double kCpuBound = 0.9;

// Workers that the first point stands for, in goodput of one.
double GoodputOfOne(const ScaleReport& report) {
  const ScalePoint& first = report.points.front();
  return first.report.summary.steady_goodput() / first.size.workers();
}

}  // namespace

absl::StatusOr<std::vector<ScaleSize>> ParseSizes(std::string_view workers,
                                                  std::string_view ratio) {
  const std::vector<absl::string_view> parts = absl::StrSplit(ToAbsl(ratio), ':');
  int p = 0, d = 0;
  if (parts.size() != 2 || !absl::SimpleAtoi(parts[0], &p) || !absl::SimpleAtoi(parts[1], &d) ||
      p < 0 || d < 1 || p > kWorkersMax || d > kWorkersMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--ratio must be prefill:decode workers, such as 1:1 or 1:3, got '", ToAbsl(ratio), "'"));
  }
  std::vector<ScaleSize> sizes;
  for (const absl::string_view text : absl::StrSplit(ToAbsl(workers), ',')) {
    int count = 0;
    if (!absl::SimpleAtoi(text, &count) || count < 1 || count > kWorkersMax) {
      return absl::InvalidArgumentError(absl::StrCat("--workers must be numbers from 1 to ",
                                                     kWorkersMax, ", got '", ToAbsl(workers), "'"));
    }
    int prefill = static_cast<int>(std::lround(static_cast<double>(count) * p / (p + d)));
    if (p > 0) prefill = std::max(prefill, 1);
    prefill = std::min(prefill, count - 1);
    sizes.push_back({.prefill = prefill, .decode = count - prefill});
  }
  return sizes;
}

double ScaleReport::Efficiency(std::size_t point) const {
  const double one = GoodputOfOne(*this);
  const ScalePoint& at = points[point];
  return one > 0 ? at.report.summary.steady_goodput() / (at.size.workers() * one) : 0;
}

bool ScaleReport::CpuBound(std::size_t point) const {
  return points[point].cpu_cores >= kCpuBound * cpus;
}

std::string ScaleText(const ScaleReport& report) {
  const bool by_hosts = report.points.front().hosts > 0;
  std::string text =
      absl::StrFormat("%s%7s %5s %9s %10s %9s %9s %9s  %s\n", by_hosts ? "hosts " : "", "workers",
                      "P:D", "goodput/s", "efficiency", "TTFT p99", "TPOT p99", "tokens/s",
                      report.whole_machine ? "CPU of all that this machine did" : "CPU");
  for (std::size_t i = 0; i < report.points.size(); ++i) {
    const ScalePoint& point = report.points[i];
    const BenchSummary& s = point.report.summary;
    if (by_hosts) absl::StrAppendFormat(&text, "%5d ", point.hosts);
    absl::StrAppendFormat(&text, "%7d %5s %9.2f %10.2f %9.1f %9.1f %9.1f  %.2f of %d cores%s\n",
                          point.size.workers(),
                          absl::StrCat(point.size.prefill, ":", point.size.decode),
                          s.steady_goodput(), report.Efficiency(i), s.ttft_ms.p99, s.tpot_ms.p99,
                          s.PerSecond(static_cast<double>(s.output_tokens)), point.cpu_cores,
                          report.cpus, report.CpuBound(i) ? ": CPU limit" : "");
  }
  return text;
}

nlohmann::ordered_json ScaleJson(const ScaleReport& report) {
  nlohmann::ordered_json json = {{"cpus", report.cpus},
                                 {"cpu_of_whole_machine", report.whole_machine},
                                 {"points", nlohmann::ordered_json::array()}};
  for (std::size_t i = 0; i < report.points.size(); ++i) {
    const ScalePoint& point = report.points[i];
    json["points"].push_back({{"hosts", point.hosts},
                              {"workers", point.size.workers()},
                              {"prefill", point.size.prefill},
                              {"decode", point.size.decode},
                              {"goodput_per_s", point.report.summary.goodput()},
                              {"steady_goodput_per_s", point.report.summary.steady_goodput()},
                              {"efficiency", report.Efficiency(i)},
                              {"cpu_cores", point.cpu_cores},
                              {"cpu_limit", report.CpuBound(i)},
                              {"bench", ReportJson(point.report)}});
  }
  return json;
}

std::string ScaleSvg(const ScaleReport& report) {
  std::string subtitle;
  for (const auto& [name, value] : report.points.front().report.config) {
    if (name != "server") absl::StrAppend(&subtitle, subtitle.empty() ? "" : " \u00b7 ", value);
  }
  SvgChart chart(1000, 470, "penstock bench scale", subtitle);
  double goodput_max = 0, workers_max = 0;
  std::vector<std::pair<double, double>> goodput, ideal, cpu;
  for (const ScalePoint& point : report.points) {
    const double n = point.size.workers();
    workers_max = std::max(workers_max, n);
    goodput.emplace_back(n, point.report.summary.steady_goodput());
    ideal.emplace_back(n, n * GoodputOfOne(report));
    cpu.emplace_back(n, 100 * point.cpu_cores / report.cpus);
    goodput_max = std::max({goodput_max, goodput.back().second, ideal.back().second});
  }
  const std::vector<double> across = NiceTicks(workers_max, 8);
  chart.Panel(0, 70, 600, 390, "Goodput", {.ticks = across, .label = "workers"},
              {.ticks = NiceTicks(goodput_max, 5), .label = "requests/s"});
  chart.Line(ideal, kGrey);
  chart.Line(goodput, kBlue);
  for (std::size_t i = 0; i < report.points.size(); ++i) {
    chart.Dot(goodput[i].first, goodput[i].second, kBlue,
              absl::StrFormat("%.2f", report.Efficiency(i)));
  }
  chart.Legend({{"measured, with its efficiency", kBlue}, {"N times one", kGrey}});
  chart.Panel(600, 70, 392, 390, "CPU", {.ticks = across, .label = "workers"},
              {.ticks = NiceTicks(100, 5), .label = "% of all cores"});
  chart.Line(cpu, kOrange);
  for (std::size_t i = 0; i < cpu.size(); ++i) {
    chart.Dot(cpu[i].first, cpu[i].second, kOrange, report.CpuBound(i) ? "limit" : "");
  }
  return chart.Take();
}

}  // namespace penstock::cli
