// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "cli/trace_export.h"
#include "nlohmann/json.hpp"

namespace penstock::cli {
namespace {

using Json = nlohmann::ordered_json;

// Chrome draws spans of one thread as nested calls: those that overlap need threads of their own.
class Threads {
 public:
  // Spans come by begin. Numbered so that threads sort by what they show.
  int Of(const TraceSpan& span) {
    std::vector<std::int64_t>& ends = ends_[{span.process, span.name}];
    std::size_t lane = 0;
    while (lane < ends.size() && ends[lane] > span.begin_ns) ++lane;
    if (lane == ends.size()) ends.push_back(0);
    ends[lane] = span.end_ns;
    return (static_cast<int>(span.name) + 1) * kLanesMax +
           static_cast<int>(std::min<std::size_t>(lane, kLanesMax - 1));
  }
  void Name(Json& events) const {
    for (const auto& [key, ends] : ends_) {
      const auto& [process, name] = key;
      for (std::size_t lane = 0; lane < std::min<std::size_t>(ends.size(), kLanesMax); ++lane) {
        std::string text(ToString(name));
        if (lane > 0) absl::StrAppend(&text, " ", lane + 1);
        const int tid = (static_cast<int>(name) + 1) * kLanesMax + static_cast<int>(lane);
        events.push_back({{"ph", "M"},
                          {"name", "thread_name"},
                          {"pid", process + 1},
                          {"tid", tid},
                          {"args", {{"name", text}}}});
        events.push_back({{"ph", "M"},
                          {"name", "thread_sort_index"},
                          {"pid", process + 1},
                          {"tid", tid},
                          {"args", {{"sort_index", tid}}}});
      }
    }
  }

 private:
  static constexpr int kLanesMax = 1000;
  std::map<std::pair<std::size_t, SpanName>, std::vector<std::int64_t>> ends_;
};

Json Arguments(const TraceSpan& span) {
  Json args = {{"request", span.request_id}, {"attempt", span.attempt}};
  if (span.bytes > 0) {
    args["bytes"] = span.bytes;
    if (span.duration_ns() > 0) {
      args["GB/s"] = static_cast<double>(span.bytes) / static_cast<double>(span.duration_ns());
    }
  }
  if (span.tokens > 0) args["tokens"] = span.tokens;
  if (span.blocks > 0) args["blocks"] = span.blocks;
  if (span.layer.has_value()) args["layer"] = *span.layer;
  if (span.group.has_value()) args["group"] = *span.group;
  if (!span.peer.empty()) args["peer"] = span.peer;
  if (!span.transport.empty()) args["transport"] = span.transport;
  if (!span.text.empty()) args["text"] = span.text;
  return args;
}

}  // namespace

std::string ChromeJson(const ClusterTrace& trace) {
  Json events = Json::array();
  for (std::size_t p = 0; p < trace.processes.size(); ++p) {
    const TraceProcess& process = trace.processes[p];
    const std::string name =
        absl::StrCat(process.name, " (", process.role, ", pid ", process.pid, ")");
    // Numbered by us: two hosts may use one pid.
    events.push_back({{"ph", "M"},
                      {"name", "process_name"},
                      {"pid", p + 1},
                      {"tid", 0},
                      {"args", {{"name", name}}}});
    events.push_back({{"ph", "M"},
                      {"name", "process_sort_index"},
                      {"pid", p + 1},
                      {"tid", 0},
                      {"args", {{"sort_index", p}}}});
  }
  const std::int64_t zero = trace.spans.empty() ? 0 : trace.spans[0].begin_ns;
  const auto micros = [](std::int64_t ns) { return static_cast<double>(ns) / 1e3; };
  Threads threads;
  std::vector<int> tids;
  for (const TraceSpan& span : trace.spans) {
    tids.push_back(threads.Of(span));
    events.push_back({{"ph", "X"},
                      {"name", std::string(ToString(span.name))},
                      {"cat", std::string(RoleOf(span.name))},
                      {"pid", span.process + 1},
                      {"tid", tids.back()},
                      {"ts", micros(span.begin_ns - zero)},
                      {"dur", micros(span.duration_ns())},
                      {"args", Arguments(span)}});
  }
  threads.Name(events);
  std::uint64_t id = 0;
  for (const Flow& flow : Flows(trace)) {
    const auto event = [&](const char* phase, std::size_t at, std::int64_t when) {
      const TraceSpan& span = trace.spans[at];
      Json json = {{"ph", phase},
                   {"name", "handoff"},
                   {"cat", "handoff"},
                   {"id", id},
                   {"pid", span.process + 1},
                   {"tid", tids[at]},
                   {"ts", micros(when - zero)}};
      if (*phase == 'f') json["bp"] = "e";  // To the span around that moment.
      events.push_back(std::move(json));
    };
    event("s", flow.send, trace.spans[flow.send].begin_ns);
    event("f", flow.wire, trace.spans[flow.wire].begin_ns);
    ++id;
  }
  const Json json = {{"displayTimeUnit", "ms"}, {"traceEvents", std::move(events)}};
  return json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace penstock::cli
