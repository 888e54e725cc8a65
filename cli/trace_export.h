// SPDX-License-Identifier: Apache-2.0
// Traces in the formats of others. Pure functions.
#pragma once

#include <string>
#include <string_view>

#include "cli/trace_data.h"
#include "cli/trace_summary.h"

namespace penstock::cli {

// Chrome's trace event format, which ui.perfetto.dev and chrome://tracing open: processes and
// threads by name, one thread for each kind of span (more where spans of a kind overlap), arrows
// from each layer's send to its read.
std::string ChromeJson(const ClusterTrace& trace);

// OTLP's JSON, an ExportTraceServiceRequest, for POST to a collector's /v1/traces. The trace id is
// that of the request's traceparent, and its span the parent, where the client gave one; else it is
// derived from the request id.
std::string OtlpJson(const ClusterTrace& trace);

// The summary as an object: phases and pairs, all times in nanoseconds.
std::string SummaryJson(const TraceSummary& summary);

// One page that needs nothing else: timelines of the last requests, zoom, and the summary.
std::string HtmlPage(const ClusterTrace& trace, const TraceSummary& summary);

// W3C's: 32 and 16 lower-case hex digits; empty where `text` is no traceparent.
struct TraceParent {
  std::string trace_id = {};
  std::string span_id = {};
};
TraceParent ParseTraceParent(std::string_view text);

}  // namespace penstock::cli
