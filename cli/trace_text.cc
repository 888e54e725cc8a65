// SPDX-License-Identifier: Apache-2.0
#include "cli/trace_text.h"

#include <algorithm>
#include <map>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status.h"
#include "cli/terminal.h"

namespace penstock::cli {
namespace {

// Spans that are printed as one line.
struct Row {
  std::size_t first = 0;  // Index of the first of them.
  std::size_t count = 0;
  std::int64_t begin_ns = 0;
  std::int64_t end_ns = 0;
  std::int64_t busy_ns = 0;  // The sum of their durations.
  std::uint64_t bytes = 0;
  std::uint64_t tokens = 0;
  std::uint64_t blocks = 0;
  int depth = 0;
  std::vector<std::size_t> children = {};  // Rows.
};

// A read, or a part of one.
bool IsRead(SpanName name) {
  return name == SpanName::kWire || name == SpanName::kPack || name == SpanName::kReady ||
         name == SpanName::kMove || name == SpanName::kLand;
}

// Those of one layer each; of all else there is one, or each tells something of its own.
bool Repeats(SpanName name) {
  return name == SpanName::kSend || name == SpanName::kWait || IsRead(name);
}

class RowTree {
 public:
  RowTree(const ClusterTrace& trace, bool all) : trace_(trace), row_of_(trace.spans.size()) {
    for (std::size_t i = 0; i < trace.spans.size(); ++i) AddSpan(i, all);
    const std::vector<std::int32_t> parents = Parents(trace);
    for (std::size_t r = 0; r < rows_.size(); ++r) {
      const std::int32_t parent = parents[rows_[r].first];
      if (parent < 0) {
        roots_.push_back(r);
      } else {
        rows_[row_of_[static_cast<std::size_t>(parent)]].children.push_back(r);
      }
    }
  }
  // Each after what it is part of; siblings by begin.
  std::vector<Row> InOrder() {
    std::vector<Row> ordered;
    for (const std::size_t root : roots_) Visit(root, 0, ordered);
    return ordered;
  }

 private:
  void AddSpan(std::size_t i, bool all) {
    const TraceSpan& span = trace_.spans[i];
    const auto key = std::tuple(span.name, span.process, span.request_id, span.attempt, span.peer);
    std::size_t row = rows_.size();
    if (!all && Repeats(span.name)) row = folded_.emplace(key, row).first->second;
    if (row == rows_.size()) {
      rows_.push_back({.first = i, .begin_ns = span.begin_ns, .end_ns = span.end_ns});
    }
    Row& to = rows_[row];
    ++to.count;
    to.end_ns = std::max(to.end_ns, span.end_ns);
    to.busy_ns += span.duration_ns();
    to.bytes += span.bytes;
    to.tokens += span.tokens;
    to.blocks += span.blocks;
    row_of_[i] = row;
  }
  void Visit(std::size_t row, int depth, std::vector<Row>& ordered) {
    rows_[row].depth = depth;
    ordered.push_back(rows_[row]);
    for (const std::size_t child : rows_[row].children) Visit(child, depth + 1, ordered);
  }

  const ClusterTrace& trace_;
  std::vector<Row> rows_;
  std::vector<std::size_t> row_of_;  // Of each span.
  std::map<std::tuple<SpanName, std::size_t, std::string, std::uint32_t, std::string>, std::size_t>
      folded_;
  std::vector<std::size_t> roots_;
};

std::string Rate(std::uint64_t bytes, std::int64_t ns) {
  if (bytes == 0 || ns <= 0) return "";
  return absl::StrFormat("%.2f GB/s", static_cast<double>(bytes) / static_cast<double>(ns));
}

// What there is to say of a row, but for times.
std::string Details(const Row& row, const TraceSpan& span) {
  std::vector<std::string> words;
  if (row.count > 1) {
    words.push_back(absl::StrCat("x", row.count, ", busy ", FormatNanos(row.busy_ns)));
  }
  if (row.count == 1 && span.layer.has_value()) {
    words.push_back(absl::StrCat("layer ", *span.layer));
    if (span.group.value_or(0) > 0) words.back() += absl::StrCat(" of group ", *span.group);
  }
  if (row.tokens > 0) words.push_back(absl::StrCat(row.tokens, " tokens"));
  if (row.blocks > 0 && row.bytes == 0) words.push_back(absl::StrCat(row.blocks, " blocks"));
  if (!span.peer.empty()) {
    const bool from = IsRead(span.name) || span.name == SpanName::kWait;
    words.push_back(absl::StrCat(from ? "from " : "to ", span.peer));
  }
  if (!span.transport.empty()) words.push_back(absl::StrCat("by ", span.transport));
  if (!span.text.empty()) words.push_back(span.text);
  if (span.attempt > 1) words.push_back(absl::StrCat("attempt ", span.attempt));
  std::string text;
  for (const std::string& word : words) absl::StrAppend(&text, text.empty() ? "" : ", ", word);
  return text;
}

std::string ClockNote(const TraceProcess& process) {
  if (process.clock.error_ns == 0) return "same clock";
  return absl::StrCat(process.clock.offset_ns < 0 ? "-" : "+",
                      FormatNanos(std::abs(process.clock.offset_ns)), " +- ",
                      FormatNanos(process.clock.error_ns));
}

std::string PercentileCells(const NanoPercentiles& p) {
  return absl::StrFormat("%11s %11s %11s", FormatNanos(p.p50_ns), FormatNanos(p.p90_ns),
                         FormatNanos(p.p99_ns));
}

std::string PairTable(const PairSummary& pair) {
  std::string text = absl::StrFormat("\n%s -> %s by %s: %d handoff%s, %s\n", pair.prefill,
                                     pair.decode, pair.transport, pair.handoffs,
                                     pair.handoffs == 1 ? "" : "s", FormatBytes(pair.bytes));
  const auto row = [&](const char* name, const NanoPercentiles& p) {
    if (p.count > 0) absl::StrAppendFormat(&text, "  %-32s %s\n", name, PercentileCells(p));
  };
  absl::StrAppendFormat(&text, "  %-32s %11s %11s %11s\n", "", "p50", "p90", "p99");
  row("wait (told -> read asked for)", pair.wait);
  row("wire (-> landed and verified)", pair.wire);
  row("handoff (first told -> verified)", pair.whole);
  row("after the last layer's compute", pair.after);
  if (pair.underway_ns > 0) {
    absl::StrAppendFormat(&text, "  hidden behind prefill compute: %.1f %% of %s\n",
                          100 * pair.hidden_share(), FormatNanos(pair.underway_ns));
  }
  return text;
}

std::string OrDash(const std::string& text) { return text.empty() ? "-" : text; }

std::string StoreTable(const std::vector<StoreSummary>& stores) {
  if (stores.empty()) return "";
  std::string text =
      absl::StrFormat("\n%-10s %-6s %-11s %-6s %8s %11s %11s %11s %11s %11s\n", "store", "tier",
                      "codec", "link", "count", "p50", "p90", "p99", "bytes", "rate");
  for (const StoreSummary& way : stores) {
    // Waiting moves nothing.
    absl::StrAppendFormat(&text, "%-10s %-6s %-11s %-6s %8d %s %11s %11s\n",
                          ToAbsl(ToString(way.name)), OrDash(way.tier), OrDash(way.codec),
                          OrDash(way.transport), way.time.count, PercentileCells(way.time),
                          way.bytes == 0 ? "" : FormatBytes(way.bytes),
                          Rate(way.bytes, way.busy_ns));
  }
  return text;
}

}  // namespace

std::string FormatNanos(std::int64_t ns) {
  const double value = static_cast<double>(ns);
  if (std::abs(ns) < 1000) return absl::StrCat(ns, " ns");
  if (std::abs(ns) < 1000000) return absl::StrFormat("%.3g us", value / 1e3);
  if (std::abs(ns) < 1000000000) return absl::StrFormat("%.3g ms", value / 1e6);
  return absl::StrFormat("%.4g s", value / 1e9);
}

std::string RequestTable(const ClusterTrace& trace, bool all) {
  if (trace.spans.empty()) return "";
  std::string text = absl::StrFormat("%11s %11s  %-26s %-15s %9s %11s\n", "begin", "duration",
                                     "span", "process", "bytes", "rate");
  const std::int64_t zero = trace.spans[0].begin_ns;
  for (const Row& row : RowTree(trace, all).InOrder()) {
    const TraceSpan& span = trace.spans[row.first];
    const std::string name = absl::StrCat(std::string(static_cast<std::size_t>(2 * row.depth), ' '),
                                          ToAbsl(ToString(span.name)));
    absl::StrAppendFormat(
        &text, "%11s %11s  %-26s %-15s %9s %11s  %s\n", FormatNanos(row.begin_ns - zero),
        FormatNanos(row.end_ns - row.begin_ns), name, trace.processes[span.process].name,
        row.bytes == 0 ? "" : FormatBytes(row.bytes),
        IsRead(span.name) || span.name == SpanName::kSend ? Rate(row.bytes, row.busy_ns) : "",
        Details(row, span));
  }
  return text;
}

std::string SummaryTables(const ClusterTrace& trace, const TraceSummary& summary) {
  std::string text =
      absl::StrFormat("%-15s %-12s %-22s %8s  %s\n", "process", "role", "address", "pid", "clock");
  for (const TraceProcess& process : trace.processes) {
    absl::StrAppendFormat(&text, "%-15s %-12s %-22s %8d  %s\n", process.name, process.role,
                          process.address, process.pid, ClockNote(process));
  }
  absl::StrAppendFormat(&text, "\n%d request%s\n%-26s %8s %11s %11s %11s %11s\n", summary.requests,
                        summary.requests == 1 ? "" : "s", "phase", "count", "p50", "p90", "p99",
                        "bytes");
  for (const PhaseSummary& phase : summary.phases) {
    absl::StrAppendFormat(
        &text, "%-26s %8d %s %11s\n",
        absl::StrCat(ToAbsl(RoleOf(phase.name)), ": ", ToAbsl(ToString(phase.name))),
        phase.time.count, PercentileCells(phase.time),
        phase.bytes == 0 ? "" : FormatBytes(phase.bytes));
  }
  text += StoreTable(summary.stores);
  for (const PairSummary& pair : summary.pairs) text += PairTable(pair);
  if (summary.clock_error_ns > 0) {
    absl::StrAppendFormat(&text, "\nTimes between hosts may be wrong by %s.\n",
                          FormatNanos(summary.clock_error_ns));
  }
  return text;
}

}  // namespace penstock::cli
