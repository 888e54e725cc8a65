// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/sha256.h"
#include "base/status.h"
#include "cli/trace_export.h"
#include "nlohmann/json.hpp"

namespace penstock::cli {
namespace {

using Json = nlohmann::ordered_json;

bool IsLowerHex(std::string_view text) {
  return text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}
bool IsZero(std::string_view text) { return text.find_first_not_of('0') == std::string_view::npos; }

// The first bytes of a hash, as hex; never all zeros, which would mean none.
std::string HexId(std::string_view text, std::size_t bytes) {
  const Sha256Digest digest = Sha256Of(text.data(), text.size());
  std::string id = absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(digest.data()), bytes));
  if (IsZero(id)) id.back() = '1';
  return id;
}

// Where clients gave a traceparent and no id, HTTP gateways call a request "TRACE_ID-...".
std::string TraceIdOf(const std::string& request_id) {
  constexpr std::size_t kDigits = 32;
  const std::string front = request_id.substr(0, kDigits);
  if (request_id.size() > kDigits && request_id[kDigits] == '-' && IsLowerHex(front) &&
      !IsZero(front)) {
    return front;
  }
  return HexId(absl::StrCat("request ", request_id), 16);
}

// OTLP's 64-bit numbers are strings, as in all JSON of Protocol Buffers.
Json Attribute(const char* key, const std::string& value) {
  return {{"key", key}, {"value", {{"stringValue", value}}}};
}
Json Attribute(const char* key, std::uint64_t value) {
  return {{"key", key}, {"value", {{"intValue", absl::StrCat(value)}}}};
}

Json Attributes(const TraceSpan& span) {
  Json list = Json::array({Attribute("penstock.request", span.request_id),
                           Attribute("penstock.attempt", std::uint64_t{span.attempt})});
  const auto add_number = [&](const char* key, std::uint64_t value) {
    if (value > 0) list.push_back(Attribute(key, value));
  };
  const auto add_text = [&](const char* key, const std::string& value) {
    if (!value.empty()) list.push_back(Attribute(key, value));
  };
  add_number("penstock.bytes", span.bytes);
  add_number("penstock.tokens", span.tokens);
  add_number("penstock.blocks", span.blocks);
  if (span.layer.has_value()) {
    list.push_back(Attribute("penstock.layer", static_cast<std::uint64_t>(*span.layer)));
  }
  if (span.group.has_value()) {
    list.push_back(Attribute("penstock.group", static_cast<std::uint64_t>(*span.group)));
  }
  add_text("penstock.peer", span.peer);
  add_text("penstock.transport", span.transport);
  add_text("penstock.text", span.text);
  return list;
}

struct Ids {
  std::vector<std::string> trace_ids;  // Of each span.
  std::vector<std::string> span_ids;
  std::vector<std::string> parent_ids;  // Empty: none.
};

Ids MakeIds(const ClusterTrace& trace) {
  Ids ids;
  const std::vector<std::int32_t> parents = Parents(trace);
  for (const TraceSpan& span : trace.spans) {
    const TraceProcess& process = trace.processes[span.process];
    ids.span_ids.push_back(
        HexId(absl::StrCat("span ", process.name, " ", process.pid, " ", span.number), 8));
  }
  for (std::size_t i = 0; i < trace.spans.size(); ++i) {
    const TraceSpan* root = &trace.spans[i];
    for (std::int32_t p = parents[i]; p >= 0; p = parents[static_cast<std::size_t>(p)]) {
      root = &trace.spans[static_cast<std::size_t>(p)];
    }
    // Only a whole request says whose it is.
    const TraceParent given = ParseTraceParent(
        root->name == SpanName::kRequest ? std::string_view(root->text) : std::string_view());
    // One of no request is a trace of its own.
    const std::string& whose = root->request_id.empty() ? ids.span_ids[i] : root->request_id;
    ids.trace_ids.push_back(given.trace_id.empty() ? TraceIdOf(whose) : given.trace_id);
    ids.parent_ids.push_back(parents[i] >= 0 ? ids.span_ids[static_cast<std::size_t>(parents[i])]
                                             : given.span_id);
  }
  return ids;
}

}  // namespace

TraceParent ParseTraceParent(std::string_view text) {
  // "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"; later versions may go on.
  constexpr std::size_t kSize = 55;
  if (text.size() < kSize || text[2] != '-' || text[35] != '-' || text[52] != '-') return {};
  const std::string_view version = text.substr(0, 2);
  if (!IsLowerHex(version) || version == "ff" || !IsLowerHex(text.substr(53, 2))) return {};
  if (text.size() > kSize && (version == "00" || text[kSize] != '-')) return {};
  const std::string_view trace_id = text.substr(3, 32);
  const std::string_view span_id = text.substr(36, 16);
  if (!IsLowerHex(trace_id) || IsZero(trace_id) || !IsLowerHex(span_id) || IsZero(span_id)) {
    return {};
  }
  return {.trace_id = std::string(trace_id), .span_id = std::string(span_id)};
}

std::string OtlpJson(const ClusterTrace& trace) {
  const Ids ids = MakeIds(trace);
  std::map<std::size_t, std::size_t> sender;  // Of a read: the span that told of it.
  for (const Flow& flow : Flows(trace)) sender[flow.wire] = flow.send;
  std::vector<Json> spans(trace.processes.size(), Json::array());
  const auto unix_time = [&](std::int64_t ns) {
    return absl::StrCat(ns + trace.unix_minus_mono_ns);
  };
  for (std::size_t i = 0; i < trace.spans.size(); ++i) {
    const TraceSpan& span = trace.spans[i];
    Json json = {{"traceId", ids.trace_ids[i]}, {"spanId", ids.span_ids[i]}};
    if (!ids.parent_ids[i].empty()) json["parentSpanId"] = ids.parent_ids[i];
    json["name"] = std::string(ToString(span.name));
    json["kind"] = span.name == SpanName::kRequest ? 2 : 1;  // SERVER, INTERNAL.
    json["startTimeUnixNano"] = unix_time(span.begin_ns);
    json["endTimeUnixNano"] = unix_time(span.end_ns);
    json["attributes"] = Attributes(span);
    if (const auto from = sender.find(i); from != sender.end()) {
      json["links"] = Json::array(
          {{{"traceId", ids.trace_ids[from->second]}, {"spanId", ids.span_ids[from->second]}}});
    }
    spans[span.process].push_back(std::move(json));
  }
  Json resources = Json::array();
  for (std::size_t p = 0; p < trace.processes.size(); ++p) {
    if (spans[p].empty()) continue;
    const TraceProcess& process = trace.processes[p];
    resources.push_back(
        {{"resource",
          {{"attributes",
            Json::array({Attribute("service.name", "penstock-" + process.role),
                         Attribute("service.instance.id", process.name),
                         Attribute("process.pid", process.pid),
                         Attribute("penstock.clock_error_ns",
                                   static_cast<std::uint64_t>(process.clock.error_ns))})}}},
         {"scopeSpans",
          Json::array({{{"scope", {{"name", "penstock"}}}, {"spans", std::move(spans[p])}}})}});
  }
  const Json json = {{"resourceSpans", std::move(resources)}};
  return json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace penstock::cli
