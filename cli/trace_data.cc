// SPDX-License-Identifier: Apache-2.0
#include "cli/trace_data.h"

#include <algorithm>
#include <map>
#include <set>
#include <tuple>
#include <utility>

#include "base/check.h"

namespace penstock::cli {
namespace {

std::set<std::string> NamesOfRequests(const ClusterTrace& trace) {
  std::set<std::string> names;
  for (const TraceSpan& span : trace.spans) {
    if (span.name == SpanName::kRequest) names.insert(span.request_id);
  }
  return names;
}

// "ID.3" is "ID"'s where clients asked for that, and none asked for "ID.3".
std::string Owner(const std::set<std::string>& requests, const std::string& id) {
  if (requests.contains(id)) return id;
  const std::string front = id.substr(0, id.rfind('.'));
  return requests.contains(front) && IsOfRequest(id, front) ? front : id;
}

}  // namespace

ClockOffset EstimateOffset(std::span<const ClockSample> samples) {
  CHECK(!samples.empty());
  const ClockSample& best = *std::ranges::min_element(
      samples, {}, [](const ClockSample& s) { return s.received_ns - s.sent_ns; });
  const std::int64_t trip = best.received_ns - best.sent_ns;
  return {.offset_ns = best.theirs_ns - (best.sent_ns + trip / 2), .error_ns = (trip + 1) / 2};
}

void SortSpans(ClusterTrace& trace) {
  std::ranges::stable_sort(trace.spans, {},
                           [](const TraceSpan& s) { return std::pair(s.begin_ns, -s.end_ns); });
}

std::vector<std::string> RequestsOf(const ClusterTrace& trace) {
  const std::set<std::string> names = NamesOfRequests(trace);
  std::set<std::string> seen;
  std::vector<std::string> requests;
  for (const TraceSpan& span : trace.spans) {
    if (span.request_id.empty()) continue;
    std::string owner = Owner(names, span.request_id);
    if (seen.insert(owner).second) requests.push_back(std::move(owner));
  }
  return requests;
}

ClusterTrace OnlyRequest(const ClusterTrace& trace, std::string_view request_id) {
  const std::set<std::string> names = NamesOfRequests(trace);
  ClusterTrace only{
      .processes = trace.processes, .spans = {}, .unix_minus_mono_ns = trace.unix_minus_mono_ns};
  for (const TraceSpan& span : trace.spans) {
    if (Owner(names, span.request_id) == request_id) only.spans.push_back(span);
  }
  return only;
}

std::optional<SpanName> ParentOf(SpanName name) {
  switch (name) {
    case SpanName::kRequest:
    case SpanName::kEncode:
    case SpanName::kChooseCodec:
    case SpanName::kPromote:
    case SpanName::kDiskRead:
    case SpanName::kTurn:
      return std::nullopt;
    case SpanName::kTokenize:
    case SpanName::kHash:
    case SpanName::kRoute:
    case SpanName::kFirstToken:
    case SpanName::kStream:
      return SpanName::kRequest;
    case SpanName::kQueue:
    case SpanName::kReserve:
      return SpanName::kRoute;
    case SpanName::kAllocate:
      return SpanName::kReserve;
    case SpanName::kStart:
    case SpanName::kStoreWait:
    case SpanName::kFetch:
    case SpanName::kConnect:
    case SpanName::kPrefillWait:
    case SpanName::kPrefill:
    case SpanName::kSend:
    case SpanName::kWait:
    case SpanName::kWire:
    case SpanName::kFirstStep:
      return SpanName::kFirstToken;
    case SpanName::kUnpack:
      return SpanName::kFetch;
    case SpanName::kPack:
    case SpanName::kReady:
    case SpanName::kMove:
    case SpanName::kLand:
      return SpanName::kWire;
    case SpanName::kDecode:
      return SpanName::kStream;
  }
  return std::nullopt;
}

std::vector<std::int32_t> Parents(const ClusterTrace& trace) {
  const std::set<std::string> names = NamesOfRequests(trace);
  using Key = std::tuple<SpanName, std::string, std::uint32_t>;
  std::map<Key, std::int32_t> first;
  for (std::size_t i = 0; i < trace.spans.size(); ++i) {
    const TraceSpan& span = trace.spans[i];
    first.emplace(
        Key(span.name, span.request_id, span.name == SpanName::kRequest ? 0 : span.attempt),
        static_cast<std::int32_t>(i));
  }
  const auto find = [&](SpanName name, const std::string& id, std::uint32_t attempt) {
    const auto it = first.find(Key(name, id, attempt));
    return it == first.end() ? -1 : it->second;
  };
  std::vector<std::int32_t> parents;
  for (const TraceSpan& span : trace.spans) {
    std::int32_t parent = -1;
    for (std::optional<SpanName> name = ParentOf(span.name); name.has_value() && parent < 0;
         name = ParentOf(*name)) {
      parent = *name == SpanName::kRequest ? find(*name, Owner(names, span.request_id), 0)
                                           : find(*name, span.request_id, span.attempt);
    }
    parents.push_back(parent);
  }
  return parents;
}

std::vector<Flow> Flows(const ClusterTrace& trace) {
  // One layer is told once for each chunk, and read in the same order.
  using Key = std::tuple<std::string, std::uint32_t, std::int32_t, std::int32_t>;
  std::map<Key, std::vector<std::size_t>> sends;
  std::map<Key, std::vector<std::size_t>> wires;
  for (std::size_t i = 0; i < trace.spans.size(); ++i) {
    const TraceSpan& span = trace.spans[i];
    const Key key(span.request_id, span.attempt, span.group.value_or(-1), span.layer.value_or(-1));
    if (span.name == SpanName::kSend) sends[key].push_back(i);
    if (span.name == SpanName::kWire) wires[key].push_back(i);
  }
  std::vector<Flow> flows;
  for (const auto& [key, reads] : wires) {
    const auto told = sends.find(key);
    if (told == sends.end()) continue;
    // From the end: what the reader had already is not read, and comes first. One that was told may
    // be read in parts.
    std::size_t send = told->second.size() - 1;
    std::uint64_t left = trace.spans[told->second[send]].blocks;
    for (auto read = reads.rbegin(); read != reads.rend(); ++read) {
      if (left == 0 && send > 0) left = trace.spans[told->second[--send]].blocks;
      flows.push_back({told->second[send], *read});
      left -= std::min<std::uint64_t>(left, trace.spans[*read].blocks);
    }
  }
  std::ranges::sort(flows, {}, &Flow::wire);
  return flows;
}

}  // namespace penstock::cli
