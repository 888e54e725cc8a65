// SPDX-License-Identifier: Apache-2.0
#include "cli/bench_report.h"

#include <gtest/gtest.h>

#include <cmath>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cli/bench_scale.h"
#include "cli/svg_chart.h"
#include "nlohmann/json.hpp"

namespace penstock::cli {
namespace {

using std::chrono::milliseconds;

BenchReport Report(int requests, int ttft_ms) {
  BenchReport report = {.config = {{"model", "<a> & \"b\""}, {"load", "2 at a time"}},
                        .slo = {.ttft_ms = 100}};
  for (int i = 0; i < requests; ++i) {
    const Duration at = milliseconds(100 * i);
    report.result.records.push_back({.arrival = at,
                                     .sent = at,
                                     .first = at + milliseconds(ttft_ms),
                                     .last = at + milliseconds(ttft_ms + 20),
                                     .end = at + milliseconds(ttft_ms + 20),
                                     .gaps = {0.02f},
                                     .relays = {0.0005f, 0.00025f},
                                     .code = "ok",
                                     .prompt_tokens = 10,
                                     .cached_tokens = 5,
                                     .output_tokens = 2,
                                     .attempts = 1});
  }
  report.summary = Summarize(report.result.records, report.slo);
  return report;
}

std::size_t Count(const std::string& text, std::string_view part) {
  std::size_t count = 0;
  for (std::size_t at = 0; (at = text.find(part, at)) != std::string::npos; ++at) ++count;
  return count;
}

TEST(BenchReportTest, TextAndJsonSayTheSame) {
  const BenchReport report = Report(10, 50);
  const std::string text = ReportText(report);
  for (const char* part : {"10 of 10 complete", "TTFT <= 100 ms", "(10 requests, 100.0 %)",
                           "50.0 % of 100 prompt tokens", "2 at a time"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << "\n" << text;
  }
  const nlohmann::ordered_json json = ReportJson(report);
  EXPECT_EQ(json["complete"], 10);
  EXPECT_EQ(json["ttft_ms"]["p50"], 50.0);
  EXPECT_EQ(json["hit_rate"], 0.5);
  EXPECT_EQ(json["by_code"]["ok"], 10);
  EXPECT_EQ(json["relay_ms"]["count"], 20);
  EXPECT_NEAR(json["relay_ms"]["max"].get<double>(), 0.5, 1e-6);
  EXPECT_NEAR(json["goodput_per_s"].get<double>(), 10 / 0.97, 1e-9);
}

TEST(BenchReportTest, ARecordIsALine) {
  BenchReport report = Report(2, 50);
  report.result.records.push_back({.code = "unavailable"});
  std::istringstream lines(RecordsJsonl(report));
  std::vector<nlohmann::json> records;
  for (std::string line; std::getline(lines, line);) records.push_back(nlohmann::json::parse(line));
  ASSERT_EQ(records.size(), 3u);
  EXPECT_EQ(records[1]["arrival_s"], 0.1);
  EXPECT_EQ(records[1]["ttft_ms"], 50.0);
  EXPECT_EQ(records[1]["itl_ms"], nlohmann::json({20.0}));
  EXPECT_EQ(records[1]["relay_ms"], nlohmann::json({0.5, 0.25}));
  EXPECT_EQ(records[2]["ttft_ms"], -1);
  EXPECT_EQ(records[2]["code"], "unavailable");
}

TEST(BenchReportTest, TheClientIsBlamedForItsOwnDelays) {
  BenchReport report = Report(10, 50);
  EXPECT_EQ(ClientWarning(report), "");
  report.result.lag_ms.p99 = 4.9;
  EXPECT_EQ(ClientWarning(report), "");
  report.result.lag_ms.p99 = 5.1;
  EXPECT_NE(ClientWarning(report).find("5.1 ms"), std::string::npos);
  report = Report(10, 500);  // A twentieth of the TTFT does not matter.
  report.result.lag_ms.p99 = 25;
  EXPECT_EQ(ClientWarning(report), "");
}

TEST(BenchReportTest, PicturesAreWholeWhateverWasMeasured) {
  BenchReport nothing;
  nothing.result.records.push_back({.code = "unavailable", .message = "x"});
  nothing.summary = Summarize(nothing.result.records, {});
  for (const BenchReport& report : {BenchReport{}, nothing, Report(1, 0), Report(300, 50)}) {
    const std::string svg = ReportSvg(report);
    EXPECT_EQ(svg.find("<svg "), 0u);
    EXPECT_TRUE(svg.ends_with("</svg>\n"));
    EXPECT_EQ(svg.find("nan"), std::string::npos);
    EXPECT_EQ(svg.find("inf"), std::string::npos);
    EXPECT_EQ(svg.find("<a>"), std::string::npos);
    EXPECT_EQ(Count(svg, "<text "), Count(svg, "</text>"));
    EXPECT_FALSE(ReportText(report).empty());
    EXPECT_FALSE(ReportJson(report).dump().empty());
  }
}

TEST(SvgChartTest, TicksAreRoundAndReachTheEnds) {
  EXPECT_EQ(NiceTicks(9, 4), (std::vector<double>{0, 5, 10}));
  EXPECT_EQ(NiceTicks(100, 5), (std::vector<double>{0, 20, 40, 60, 80, 100}));
  for (const double max : {0.0, 1e-9, 0.3, 1.0, 7.7, 12345.0, 1e12, std::nan("")}) {
    const std::vector<double> ticks = NiceTicks(max, 5);
    EXPECT_TRUE(!(ticks.back() < max)) << max;
    EXPECT_LE(ticks.size(), 8u) << max;
  }
  EXPECT_EQ(LogTicks(0.3, 4), (std::vector<double>{0.2, 0.5, 1, 2, 5}));
  EXPECT_EQ(LogTicks(1, 1).front(), 1);
  EXPECT_GT(LogTicks(1, 1).back(), 1);
  EXPECT_EQ(EscapeXml("<a href=\"&\">\n"), "&lt;a href=&quot;&amp;&quot;&gt; ");
  EXPECT_EQ(ShortNumber(12'300), "12.3k");
}

TEST(BenchScaleTest, SizesByRatio) {
  const auto sizes = [](std::string_view workers, std::string_view ratio) {
    std::string text;
    const auto parsed = ParseSizes(workers, ratio);
    for (const ScaleSize& size : parsed.value()) {
      absl::StrAppend(&text, size.prefill, ":", size.decode, " ");
    }
    return text;
  };
  EXPECT_EQ(sizes("1,2,4,8,16", "1:1"), "0:1 1:1 2:2 4:4 8:8 ");
  EXPECT_EQ(sizes("1,2,4,8,16", "1:3"), "0:1 1:1 1:3 2:6 4:12 ");
  EXPECT_EQ(sizes("2,4", "9:1"), "1:1 3:1 ");
  EXPECT_EQ(sizes("1,3", "0:1"), "0:1 0:3 ");
  for (const char* wrong : {"", "0", "1,", "a", "257"}) {
    EXPECT_EQ(ParseSizes(wrong, "1:1").status().code(), absl::StatusCode::kInvalidArgument);
  }
  for (const char* wrong : {"", "1", "1:0", "-1:1", "1:1:1", "x:1"}) {
    EXPECT_EQ(ParseSizes("1", wrong).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(BenchScaleTest, EfficiencyIsAgainstTheFirstSize) {
  ScaleReport report = {.cpus = 4};
  for (const int workers : {2, 4, 8}) {
    BenchReport bench = Report(10, 50);
    bench.summary.good = workers == 8 ? 20 : static_cast<std::size_t>(5 * workers);
    report.points.push_back({.size = {.prefill = workers / 2, .decode = workers / 2},
                             .report = bench,
                             .cpu_cores = workers / 2.0});
  }
  EXPECT_DOUBLE_EQ(report.Efficiency(0), 1);
  EXPECT_DOUBLE_EQ(report.Efficiency(1), 1);
  EXPECT_DOUBLE_EQ(report.Efficiency(2), 0.5);
  EXPECT_FALSE(report.CpuBound(1));
  EXPECT_TRUE(report.CpuBound(2));
  EXPECT_NE(ScaleText(report).find("4.00 of 4 cores: CPU limit"), std::string::npos);
  EXPECT_EQ(ScaleJson(report)["points"][2]["efficiency"], 0.5);
  const std::string svg = ScaleSvg(report);
  EXPECT_TRUE(svg.ends_with("</svg>\n"));
  EXPECT_EQ(svg.find("nan"), std::string::npos);
}

}  // namespace
}  // namespace penstock::cli
