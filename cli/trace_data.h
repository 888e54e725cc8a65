// SPDX-License-Identifier: Apache-2.0
// Spans of all processes of a cluster on one line of time, and what belongs to what.
// Plain data and pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/spans.h"

namespace penstock::cli {

// One question to a process for its clock: ours before and after, and what it said.
struct ClockSample {
  std::int64_t sent_ns = 0;
  std::int64_t received_ns = 0;
  std::int64_t theirs_ns = 0;
};
// theirs - ours, wrong by at most error_ns in either direction.
struct ClockOffset {
  std::int64_t offset_ns = 0;
  std::int64_t error_ns = 0;
};
// From the sample with the shortest round trip: whenever in it the clock was read, the middle is
// wrong by at most half of it. At least one sample.
ClockOffset EstimateOffset(std::span<const ClockSample> samples);

struct TraceProcess {
  std::string name = {};
  std::string role = {};
  std::string address = {};
  std::uint64_t pid = 0;
  ClockOffset clock = {};  // Against the collector's; 0 and exact where both read the same one.
  std::uint64_t forgotten = 0;  // Spans that it no longer has.
};

// As base/spans.h, with times in nanoseconds on the collector's monotonic clock.
struct TraceSpan {
  SpanName name = SpanName::kRequest;
  std::size_t process = 0;
  std::uint64_t number = 0;  // In its process.
  std::string request_id = {};
  std::uint32_t attempt = 0;
  std::int64_t begin_ns = 0;
  std::int64_t end_ns = 0;
  std::uint64_t bytes = 0;
  std::uint32_t tokens = 0;
  std::uint32_t blocks = 0;
  std::optional<std::int32_t> layer = {};
  std::optional<std::int32_t> group = {};
  std::string peer = {};
  std::string transport = {};
  std::string text = {};

  std::int64_t duration_ns() const { return end_ns - begin_ns; }
};

struct ClusterTrace {
  std::vector<TraceProcess> processes = {};
  std::vector<TraceSpan> spans = {};    // By begin; of equals the longer first.
  std::int64_t unix_minus_mono_ns = 0;  // Turns span times into those of calendars.
};

// Brings the spans into their order.
void SortSpans(ClusterTrace& trace);

// Requests in order of their first span. An answer that went on alone ("ID.0") is part of "ID".
std::vector<std::string> RequestsOf(const ClusterTrace& trace);
// Of one request alone; with the same processes.
ClusterTrace OnlyRequest(const ClusterTrace& trace, std::string_view request_id);

// What a span is part of, by its name; nothing for a whole request.
std::optional<SpanName> ParentOf(SpanName name);
// For each span the index of the one it is part of: of the same attempt, or the whole request; -1
// where that was not recorded.
std::vector<std::int32_t> Parents(const ClusterTrace& trace);

// A layer of blocks that was told, and its read: indices of a kSend and a kWire span.
struct Flow {
  std::size_t send = 0;
  std::size_t wire = 0;
};
std::vector<Flow> Flows(const ClusterTrace& trace);

}  // namespace penstock::cli
