// SPDX-License-Identifier: Apache-2.0
#include "cli/trace_summary.h"

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <tuple>
#include <utility>

namespace penstock::cli {
namespace {

using Interval = std::pair<std::int64_t, std::int64_t>;

// One attempt's KV on its way.
struct Handoff {
  std::vector<Interval> underway;
  std::optional<std::int64_t> computed_ns;  // End of the last pass over the prompt.
  std::int64_t begin_ns = 0;
  std::int64_t end_ns = 0;
  std::tuple<std::string, std::string, std::string> pair;  // Prefill, decode, transport.
  std::uint64_t bytes = 0;
  std::vector<std::int64_t> waits;
  std::vector<std::int64_t> wires;
};

// Length of the union of the intervals, of which the part before `end` alone.
std::int64_t UnionBefore(std::vector<Interval> intervals, std::int64_t end) {
  std::ranges::sort(intervals);
  std::int64_t length = 0;
  std::int64_t reached = intervals.empty() ? 0 : intervals[0].first;
  for (auto [from, to] : intervals) {
    from = std::max(from, reached);
    to = std::min(to, end);
    if (to > from) length += to - from;
    reached = std::max(reached, to);
  }
  return length;
}

struct PairValues {
  PairSummary summary;
  std::vector<std::int64_t> waits, wires, wholes, afters;
};

void Add(const Handoff& handoff, PairValues& to) {
  PairSummary& pair = to.summary;
  std::tie(pair.prefill, pair.decode, pair.transport) = handoff.pair;
  ++pair.handoffs;
  pair.bytes += handoff.bytes;
  to.waits.insert(to.waits.end(), handoff.waits.begin(), handoff.waits.end());
  to.wires.insert(to.wires.end(), handoff.wires.begin(), handoff.wires.end());
  to.wholes.push_back(handoff.end_ns - handoff.begin_ns);
  if (!handoff.computed_ns.has_value()) return;
  to.afters.push_back(std::max<std::int64_t>(handoff.end_ns - *handoff.computed_ns, 0));
  pair.underway_ns += UnionBefore(handoff.underway, handoff.end_ns);
  pair.hidden_ns += UnionBefore(handoff.underway, std::min(handoff.end_ns, *handoff.computed_ns));
}

std::vector<PairSummary> SummarizePairs(const ClusterTrace& trace) {
  std::map<std::pair<std::string, std::uint32_t>, Handoff> handoffs;
  for (const TraceSpan& span : trace.spans) {
    Handoff& handoff = handoffs[{span.request_id, span.attempt}];
    if (span.name == SpanName::kPrefill) {
      handoff.computed_ns = std::max(handoff.computed_ns.value_or(span.end_ns), span.end_ns);
    }
    const bool wire = span.name == SpanName::kWire;
    if (!wire && span.name != SpanName::kWait) continue;
    if (handoff.underway.empty()) handoff.begin_ns = span.begin_ns;
    handoff.underway.emplace_back(span.begin_ns, span.end_ns);
    handoff.begin_ns = std::min(handoff.begin_ns, span.begin_ns);
    handoff.end_ns = std::max(handoff.end_ns, span.end_ns);
    (wire ? handoff.wires : handoff.waits).push_back(span.duration_ns());
    if (!wire) continue;
    handoff.bytes += span.bytes;
    handoff.pair = {span.peer, trace.processes[span.process].name, span.transport};
  }
  std::map<std::tuple<std::string, std::string, std::string>, PairValues> pairs;
  for (const auto& [attempt, handoff] : handoffs) {
    if (!handoff.wires.empty()) Add(handoff, pairs[handoff.pair]);
  }
  std::vector<PairSummary> summaries;
  for (auto& [names, values] : pairs) {
    values.summary.wait = PercentilesOf(std::move(values.waits));
    values.summary.wire = PercentilesOf(std::move(values.wires));
    values.summary.whole = PercentilesOf(std::move(values.wholes));
    values.summary.after = PercentilesOf(std::move(values.afters));
    summaries.push_back(std::move(values.summary));
  }
  return summaries;
}

bool IsOfStore(SpanName name) {
  return name == SpanName::kStoreWait || name == SpanName::kFetch || name == SpanName::kUnpack ||
         name == SpanName::kEncode || name == SpanName::kPromote || name == SpanName::kDiskRead;
}

std::vector<StoreSummary> SummarizeStores(const ClusterTrace& trace) {
  using Key = std::tuple<SpanName, std::string, std::string, std::string>;
  std::map<Key, std::pair<StoreSummary, std::vector<std::int64_t>>> ways;
  for (const TraceSpan& span : trace.spans) {
    if (!IsOfStore(span.name)) continue;
    const std::size_t space = span.text.find(' ');
    const bool tiered = space != std::string::npos;  // Else the codec alone.
    const std::string tier = tiered ? span.text.substr(0, space) : "";
    const std::string codec = tiered ? span.text.substr(space + 1) : span.text;
    auto& [summary, times] = ways[Key(span.name, tier, codec, span.transport)];
    summary.name = span.name;
    summary.tier = tier;
    summary.codec = codec;
    summary.transport = span.transport;
    summary.bytes += span.bytes;
    summary.busy_ns += span.duration_ns();
    times.push_back(span.duration_ns());
  }
  std::vector<StoreSummary> summaries;
  for (auto& [key, way] : ways) {
    way.first.time = PercentilesOf(std::move(way.second));
    summaries.push_back(std::move(way.first));
  }
  return summaries;
}

}  // namespace

NanoPercentiles PercentilesOf(std::vector<std::int64_t> values_ns) {
  if (values_ns.empty()) return {};
  std::ranges::sort(values_ns);
  const auto at = [&](std::size_t percent) {
    const std::size_t rank = (values_ns.size() * percent + 99) / 100;
    return values_ns[std::max<std::size_t>(rank, 1) - 1];
  };
  return {.count = values_ns.size(), .p50_ns = at(50), .p90_ns = at(90), .p99_ns = at(99)};
}

TraceSummary Summarize(const ClusterTrace& trace) {
  TraceSummary summary;
  summary.requests = RequestsOf(trace).size();
  for (const TraceProcess& process : trace.processes) {
    summary.clock_error_ns = std::max(summary.clock_error_ns, process.clock.error_ns);
  }
  std::array<std::vector<std::int64_t>, kSpanNames> times;
  std::array<std::uint64_t, kSpanNames> bytes{};
  for (const TraceSpan& span : trace.spans) {
    const auto i = static_cast<std::size_t>(span.name);
    times[i].push_back(span.duration_ns());
    bytes[i] += span.bytes;
  }
  for (std::size_t i = 0; i < kSpanNames; ++i) {
    if (times[i].empty()) continue;
    summary.phases.push_back({.name = static_cast<SpanName>(i),
                              .time = PercentilesOf(std::move(times[i])),
                              .bytes = bytes[i]});
  }
  summary.stores = SummarizeStores(trace);
  summary.pairs = SummarizePairs(trace);
  return summary;
}

}  // namespace penstock::cli
