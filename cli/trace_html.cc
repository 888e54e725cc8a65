// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdint>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "cli/trace_export.h"
#include "cli/trace_page.h"
#include "nlohmann/json.hpp"

namespace penstock::cli {
namespace {

using Json = nlohmann::ordered_json;

// A page with more than that is slow to open; the last ones are shown.
constexpr std::size_t kRequestsMax = 100;

Json ToJson(const NanoPercentiles& p) {
  return {{"count", p.count}, {"p50", p.p50_ns}, {"p90", p.p90_ns}, {"p99", p.p99_ns}};
}

Json ToJson(const TraceSummary& summary) {
  Json phases = Json::array();
  for (const PhaseSummary& phase : summary.phases) {
    phases.push_back({{"role", std::string(RoleOf(phase.name))},
                      {"name", std::string(ToString(phase.name))},
                      {"time", ToJson(phase.time)},
                      {"bytes", phase.bytes}});
  }
  Json stores = Json::array();
  for (const StoreSummary& way : summary.stores) {
    stores.push_back({{"name", std::string(ToString(way.name))},
                      {"tier", way.tier},
                      {"codec", way.codec},
                      {"transport", way.transport},
                      {"time", ToJson(way.time)},
                      {"bytes", way.bytes},
                      {"busy", way.busy_ns}});
  }
  Json pairs = Json::array();
  for (const PairSummary& pair : summary.pairs) {
    pairs.push_back({{"prefill", pair.prefill},
                     {"decode", pair.decode},
                     {"transport", pair.transport},
                     {"handoffs", pair.handoffs},
                     {"bytes", pair.bytes},
                     {"wait", ToJson(pair.wait)},
                     {"wire", ToJson(pair.wire)},
                     {"whole", ToJson(pair.whole)},
                     {"after", ToJson(pair.after)},
                     {"underway", pair.underway_ns},
                     {"hidden", pair.hidden_ns}});
  }
  return {{"requests", summary.requests},
          {"clock_error", summary.clock_error_ns},
          {"phases", std::move(phases)},
          {"stores", std::move(stores)},
          {"pairs", std::move(pairs)}};
}

Json ToJson(const TraceSpan& span, std::int64_t zero) {
  Json json = {{"n", static_cast<int>(span.name)},
               {"p", span.process},
               {"b", span.begin_ns - zero},
               {"e", span.end_ns - zero},
               {"a", span.attempt}};
  if (span.bytes > 0) json["bytes"] = span.bytes;
  if (span.tokens > 0) json["tokens"] = span.tokens;
  if (span.blocks > 0) json["blocks"] = span.blocks;
  if (span.layer.has_value()) json["layer"] = *span.layer;
  if (span.group.has_value() && *span.group > 0) json["group"] = *span.group;
  if (!span.peer.empty()) json["peer"] = span.peer;
  if (!span.transport.empty()) json["transport"] = span.transport;
  if (!span.text.empty()) json["text"] = span.text;
  return json;
}

Json RequestJson(const ClusterTrace& trace, const std::string& id) {
  const ClusterTrace request = OnlyRequest(trace, id);
  const std::int64_t zero = request.spans[0].begin_ns;
  Json spans = Json::array();
  for (const TraceSpan& span : request.spans) spans.push_back(ToJson(span, zero));
  Json flows = Json::array();
  for (const Flow& flow : Flows(request)) flows.push_back({flow.send, flow.wire});
  return {{"id", id}, {"spans", std::move(spans)}, {"flows", std::move(flows)}};
}

}  // namespace

std::string SummaryJson(const TraceSummary& summary) {
  return ToJson(summary).dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string HtmlPage(const ClusterTrace& trace, const TraceSummary& summary) {
  Json names = Json::array();
  for (std::size_t i = 0; i < kSpanNames; ++i) {
    const auto name = static_cast<SpanName>(i);
    names.push_back({std::string(ToString(name)), std::string(RoleOf(name))});
  }
  Json processes = Json::array();
  for (const TraceProcess& process : trace.processes) {
    processes.push_back({{"name", process.name},
                         {"role", process.role},
                         {"address", process.address},
                         {"pid", process.pid},
                         {"offset", process.clock.offset_ns},
                         {"error", process.clock.error_ns}});
  }
  const std::vector<std::string> ids = RequestsOf(trace);
  Json requests = Json::array();
  for (std::size_t i = ids.size() - std::min(ids.size(), kRequestsMax); i < ids.size(); ++i) {
    requests.push_back(RequestJson(trace, ids[i]));
  }
  const Json data = {{"names", std::move(names)},
                     {"processes", std::move(processes)},
                     {"requests", std::move(requests)},
                     {"summary", ToJson(summary)}};
  std::string json = data.dump(-1, ' ', false, Json::error_handler_t::replace);
  // Inside a script element nothing may look like its end, whatever clients call their requests.
  for (std::size_t at = 0; (at = json.find('<', at)) != std::string::npos; at += 6) {
    json.replace(at, 1, "\\u003c");
  }
  const std::string_view page = kTracePage;
  const std::size_t mark = page.find(kTracePageMark);
  return std::string(page.substr(0, mark)) + json +
         std::string(page.substr(mark + kTracePageMark.size()));
}

}  // namespace penstock::cli
