// SPDX-License-Identifier: Apache-2.0
#include "cli/replay_report.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status.h"
#include "cli/bench_trace.h"
#include "cli/svg_chart.h"

namespace penstock::cli {
namespace {

constexpr double kCapacityMax = 1e11;
constexpr std::array<std::string_view, 4> kColours = {kGrey, "#2e8b57", kOrange, kBlue};

std::string_view ColourOf(std::size_t policy) { return kColours[policy % kColours.size()]; }

absl::StatusOr<kvstore::ReplayResult> RunOne(std::span<const kvstore::ReplayRequest> requests,
                                             std::string_view policy, std::uint64_t blocks,
                                             std::size_t ghosts_max) {
  kvstore::EvictionPolicy::Options options;
  options.capacity_bytes = blocks == 0 ? UINT64_MAX : blocks;
  options.block_tokens = kMooncakeBlockTokens;
  options.ghosts_max = ghosts_max;
  ASSIGN_OR_RETURN(const std::unique_ptr<kvstore::EvictionPolicy> made,
                   kvstore::MakeEvictionPolicy(policy, options));
  return kvstore::Replay(requests, kMooncakeBlockTokens, blocks, *made);
}

}  // namespace

absl::StatusOr<std::int64_t> ParseCapacity(std::string_view text) {
  double times = 1;
  std::string_view digits = text;
  if (!digits.empty()) {
    const char unit = digits.back();
    times = unit == 'k' || unit == 'K' ? 1e3 : unit == 'M' ? 1e6 : unit == 'G' ? 1e9 : 1;
    if (times > 1) digits.remove_suffix(1);
  }
  double value = 0;
  if (!absl::SimpleAtod(ToAbsl(digits), &value) || !(value * times >= kMooncakeBlockTokens) ||
      !(value * times <= kCapacityMax)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--capacity must be tokens from ", kMooncakeBlockTokens,
                     " to 100G, such as 500k, 1M or 20M, got '", ToAbsl(text.substr(0, 64)), "'"));
  }
  return std::llround(value * times);
}

absl::StatusOr<std::vector<kvstore::ReplayRequest>> ToReplay(
    std::string_view name, std::span<const BenchRequest> requests) {
  std::vector<kvstore::ReplayRequest> replay;
  replay.reserve(requests.size());
  for (const BenchRequest& request : requests) {
    // Azure's are one piece each, however long.
    const bool cut = std::ranges::all_of(request.prompt, [](const BenchPiece& piece) {
      return piece.tokens <= kMooncakeBlockTokens;
    });
    if (!cut) {
      return absl::InvalidArgumentError(absl::StrCat(
          ToAbsl(name), " does not say what prompts share: a trace in Mooncake's format does"));
    }
    kvstore::ReplayRequest& made = replay.emplace_back();
    made.arrival = request.arrival;
    made.prompt_tokens = request.prompt_tokens;
    for (const BenchPiece& piece : request.prompt) made.blocks.push_back(piece.content);
  }
  return replay;
}

absl::StatusOr<ReplayReport> RunReplay(std::string_view trace,
                                       std::span<const kvstore::ReplayRequest> requests,
                                       std::span<const std::int64_t> capacities,
                                       std::span<const std::string> policies,
                                       std::size_t ghosts_max) {
  ReplayReport report;
  report.trace = std::string(trace);
  report.block_tokens = kMooncakeBlockTokens;
  absl::flat_hash_set<std::uint64_t> different;
  for (const kvstore::ReplayRequest& request : requests) {
    report.blocks += request.blocks.size();
    different.insert(request.blocks.begin(), request.blocks.end());
  }
  report.different_blocks = different.size();
  ASSIGN_OR_RETURN(report.infinite, RunOne(requests, "lru", 0, ghosts_max));
  for (const std::int64_t capacity : capacities) {
    const auto blocks = static_cast<std::uint64_t>(capacity / kMooncakeBlockTokens);
    ASSIGN_OR_RETURN(const kvstore::ReplayResult lru, RunOne(requests, "lru", blocks, ghosts_max));
    for (const std::string& policy : policies) {
      ReplayRow row = {capacity, policy, lru, 0};
      if (policy != "lru") {
        ASSIGN_OR_RETURN(row.result, RunOne(requests, policy, blocks, ghosts_max));
      }
      if (lru.hit_tokens > 0) row.against_lru = row.result.token_rate() / lru.token_rate();
      report.rows.push_back(std::move(row));
    }
  }
  return report;
}

std::string ReplayText(const ReplayReport& report) {
  std::string text = absl::StrFormat(
      "%d requests, %d prompt tokens, %d blocks of %d tokens, %d different\n\n"
      "capacity  policy         of tokens  per request  against lru\n"
      "no limit  %-13s  %9.4f  %11.4f\n",
      report.infinite.requests, report.infinite.prompt_tokens, report.blocks, report.block_tokens,
      report.different_blocks, "", report.infinite.token_rate(), report.infinite.request_rate());
  for (const ReplayRow& row : report.rows) {
    absl::StrAppendFormat(&text, "%-8s  %-13s  %9.4f  %11.4f  %11s\n",
                          ShortNumber(static_cast<double>(row.capacity_tokens)), row.policy,
                          row.result.token_rate(), row.result.request_rate(),
                          row.against_lru > 0 ? absl::StrFormat("%.3f", row.against_lru) : "-");
  }
  return text;
}

nlohmann::ordered_json ReplayJson(const ReplayReport& report) {
  const auto rates = [](const kvstore::ReplayResult& result) {
    return nlohmann::ordered_json{{"token_hit_rate", result.token_rate()},
                                  {"request_hit_rate", result.request_rate()},
                                  {"hit_tokens", result.hit_tokens},
                                  {"evicted_blocks", result.evicted_blocks}};
  };
  nlohmann::ordered_json json = {{"trace", report.trace},
                                 {"requests", report.infinite.requests},
                                 {"prompt_tokens", report.infinite.prompt_tokens},
                                 {"block_tokens", report.block_tokens},
                                 {"blocks", report.blocks},
                                 {"different_blocks", report.different_blocks},
                                 {"no_limit", rates(report.infinite)},
                                 {"rows", nlohmann::ordered_json::array()}};
  for (const ReplayRow& row : report.rows) {
    nlohmann::ordered_json object = {{"capacity_tokens", row.capacity_tokens},
                                     {"capacity_blocks", row.capacity_tokens / report.block_tokens},
                                     {"policy", row.policy}};
    object.update(rates(row.result));
    if (row.against_lru > 0) object["against_lru"] = row.against_lru;
    json["rows"].push_back(std::move(object));
  }
  return json;
}

std::string ReplaySvg(const ReplayReport& report) {
  std::vector<std::string> policies;
  std::vector<std::vector<std::pair<double, double>>> rates, ratios;
  double low = kCapacityMax, high = 0, rate_max = report.infinite.token_rate(), ratio_max = 1;
  for (const ReplayRow& row : report.rows) {
    const auto found = std::ranges::find(policies, row.policy);
    const auto at = static_cast<std::size_t>(found - policies.begin());
    if (found == policies.end()) {
      policies.push_back(row.policy);
      rates.emplace_back();
      ratios.emplace_back();
    }
    const auto capacity = static_cast<double>(row.capacity_tokens);
    rates[at].emplace_back(capacity, row.result.token_rate());
    ratios[at].emplace_back(capacity, row.against_lru);
    low = std::min(low, capacity);
    high = std::max(high, capacity);
    rate_max = std::max(rate_max, row.result.token_rate());
    ratio_max = std::max(ratio_max, row.against_lru);
  }
  SvgChart chart(1000, 470, absl::StrCat("penstock replay \u00b7 ", report.trace),
                 absl::StrFormat("%d requests, %d prompt tokens; nothing evicted: %.4f of them",
                                 report.infinite.requests, report.infinite.prompt_tokens,
                                 report.infinite.token_rate()));
  const SvgChart::Axis across = {
      .ticks = LogTicks(low, std::max(high, 2 * low)), .log = true, .label = "capacity, tokens"};
  std::vector<std::pair<std::string, std::string_view>> legend;
  const auto panel = [&](int x, std::string_view title, double top, const auto& lines) {
    chart.Panel(x, 70, 470, 390, title, across, {.ticks = NiceTicks(top, 5)});
    for (std::size_t i = 0; i < policies.size(); ++i) {
      chart.Line(lines[i], ColourOf(i));
      for (const auto& [capacity, value] : lines[i]) chart.Dot(capacity, value, ColourOf(i), "");
    }
  };
  for (std::size_t i = 0; i < policies.size(); ++i) legend.emplace_back(policies[i], ColourOf(i));
  panel(0, "Prompt tokens found", rate_max, rates);
  panel(490, "Against LRU", ratio_max, ratios);
  chart.Legend(legend);
  return chart.Take();
}

}  // namespace penstock::cli
