// SPDX-License-Identifier: Apache-2.0
#include "cli/bench_report.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"

namespace penstock::cli {
namespace {

constexpr double kLagMsMax = 5;       // Of the client's own loop, at p99.
constexpr double kLagShareMax = 0.1;  // Of the TTFT.

std::string Line(const char* name, const Percentiles& p) {
  return absl::StrFormat("%-10s %9.2f %9.2f %9.2f %9.2f %9.2f\n", name, p.p50, p.p90, p.p99, p.mean,
                         p.max);
}

nlohmann::ordered_json Json(const Percentiles& p) {
  return {{"count", p.count}, {"mean", p.mean}, {"p50", p.p50},
          {"p90", p.p90},     {"p99", p.p99},   {"max", p.max}};
}

std::string SloText(const Slo& slo) {
  if (slo.ttft_ms == 0 && slo.tpot_ms == 0) return "no SLO";
  std::string text;
  if (slo.ttft_ms > 0) absl::StrAppend(&text, "TTFT <= ", slo.ttft_ms, " ms");
  if (slo.tpot_ms > 0) {
    absl::StrAppend(&text, text.empty() ? "" : ", ", "TPOT <= ", slo.tpot_ms, " ms");
  }
  return text;
}

}  // namespace

std::string ClientWarning(const BenchReport& report) {
  const double lag = std::max(report.result.lag_ms.p99, report.summary.late_ms.p99);
  if (lag <= std::max(kLagMsMax, kLagShareMax * report.summary.ttft_ms.p50)) return "";
  return absl::StrFormat(
      "the client itself was late by %.1f ms (p99), using %.2f cores: its figures include that; "
      "give it a machine of its own, or send less",
      lag, report.client_cores);
}

std::string ReportText(const BenchReport& report) {
  const BenchSummary& s = report.summary;
  std::string text;
  for (const auto& [name, value] : report.config) {
    absl::StrAppendFormat(&text, "%-10s %s\n", name, value);
  }
  absl::StrAppendFormat(&text, "\n%-10s %9s %9s %9s %9s %9s\n", "ms", "p50", "p90", "p99", "mean",
                        "max");
  absl::StrAppend(&text, Line("TTFT", s.ttft_ms), Line("TPOT", s.tpot_ms), Line("ITL", s.itl_ms),
                  Line("relay", s.relay_ms), Line("E2E", s.e2e_ms));
  const auto complete = static_cast<double>(s.complete());
  absl::StrAppendFormat(&text, "\nrequests   %d of %d complete in %.1f s: %.2f a second\n",
                        s.complete(), s.requests, s.seconds, s.PerSecond(complete));
  absl::StrAppendFormat(
      &text, "goodput    %.2f a second within %s (%d requests, %.1f %%)\n", s.goodput(),
      SloText(report.slo), s.good,
      s.requests > 0 ? 100.0 * static_cast<double>(s.good) / static_cast<double>(s.requests) : 0.0);
  absl::StrAppendFormat(&text, "tokens     %.1f out and %.1f in a second\n",
                        s.PerSecond(static_cast<double>(s.output_tokens)),
                        s.PerSecond(static_cast<double>(s.prompt_tokens)));
  absl::StrAppendFormat(&text, "hit rate   %.1f %% of %d prompt tokens were cached\n",
                        100 * s.hit_rate(), s.prompt_tokens);
  if (s.retries > 0) absl::StrAppendFormat(&text, "retries    %d\n", s.retries);
  for (const auto& [code, count] : s.by_code) {
    if (code != "ok") absl::StrAppendFormat(&text, "failed     %d %s\n", count, code);
  }
  if (!s.first_error.empty()) absl::StrAppend(&text, "           ", s.first_error, "\n");
  absl::StrAppendFormat(&text, "client     %.2f cores; late by %.1f ms (p99)\n",
                        report.client_cores, std::max(report.result.lag_ms.p99, s.late_ms.p99));
  return text;
}

nlohmann::ordered_json ReportJson(const BenchReport& report) {
  const BenchSummary& s = report.summary;
  nlohmann::ordered_json json;
  for (const auto& [name, value] : report.config) json["config"][name] = value;
  json["slo"] = {{"ttft_ms", report.slo.ttft_ms}, {"tpot_ms", report.slo.tpot_ms}};
  json["seconds"] = s.seconds;
  json["requests"] = s.requests;
  json["complete"] = s.complete();
  json["good"] = s.good;
  json["goodput_per_s"] = s.goodput();
  json["steady_goodput_per_s"] = s.steady_goodput();
  json["requests_per_s"] = s.PerSecond(static_cast<double>(s.complete()));
  json["output_tokens_per_s"] = s.PerSecond(static_cast<double>(s.output_tokens));
  json["prompt_tokens_per_s"] = s.PerSecond(static_cast<double>(s.prompt_tokens));
  json["prompt_tokens"] = s.prompt_tokens;
  json["cached_tokens"] = s.cached_tokens;
  json["output_tokens"] = s.output_tokens;
  json["hit_rate"] = s.hit_rate();
  json["retries"] = s.retries;
  json["ttft_ms"] = Json(s.ttft_ms);
  json["tpot_ms"] = Json(s.tpot_ms);
  json["itl_ms"] = Json(s.itl_ms);
  json["relay_ms"] = Json(s.relay_ms);
  json["e2e_ms"] = Json(s.e2e_ms);
  json["by_code"] = nlohmann::ordered_json::object();
  for (const auto& [code, count] : s.by_code) json["by_code"][code] = count;
  json["first_error"] = s.first_error;
  json["client"] = {{"cores", report.client_cores},
                    {"lag_ms", Json(report.result.lag_ms)},
                    {"late_ms", Json(s.late_ms)},
                    {"warning", ClientWarning(report)}};
  json["timeline"] = nlohmann::ordered_json::array();
  for (const BenchSlice& slice : s.slices) {
    json["timeline"].push_back({{"begin_s", slice.begin_s},
                                {"output_tokens", slice.output_tokens},
                                {"finished", slice.finished},
                                {"live", slice.live}});
  }
  return json;
}

std::string RecordsJsonl(const BenchReport& report) {
  std::string text;
  const auto in_ms = [](const std::vector<float>& seconds) {
    std::vector<double> list;
    for (const float s : seconds) list.push_back(std::round(1e6 * static_cast<double>(s)) / 1000);
    return list;
  };
  for (const BenchRecord& record : report.result.records) {
    nlohmann::ordered_json json = {{"arrival_s", ToSeconds(record.arrival)},
                                   {"code", record.code},
                                   {"prompt_tokens", record.prompt_tokens},
                                   {"cached_tokens", record.cached_tokens},
                                   {"output_tokens", record.output_tokens},
                                   {"attempts", record.attempts},
                                   {"ttft_ms", record.first ? record.ttft_ms() : -1},
                                   {"end_s", ToSeconds(record.end)},
                                   {"itl_ms", in_ms(record.gaps)},
                                   {"relay_ms", in_ms(record.relays)}};
    text += json.dump() + "\n";
  }
  return text;
}

}  // namespace penstock::cli
