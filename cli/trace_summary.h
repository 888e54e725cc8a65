// SPDX-License-Identifier: Apache-2.0
// What many spans say together: how long each phase takes, how long copies of the store take by tier, codec
// and link, how long KV is under way between each pair of workers, and how much of that is hidden behind prefill compute. Pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "cli/trace_data.h"

namespace penstock::cli {

// Nearest rank: a value that occurred. All 0 without values.
struct NanoPercentiles {
  std::size_t count = 0;
  std::int64_t p50_ns = 0;
  std::int64_t p90_ns = 0;
  std::int64_t p99_ns = 0;
};
NanoPercentiles PercentilesOf(std::vector<std::int64_t> values_ns);

// Of one kind of span.
struct PhaseSummary {
  SpanName name = SpanName::kRequest;
  NanoPercentiles time = {};
  std::uint64_t bytes = 0;
};

// Of what moves to and from the store, in one way: a kind of span, where the copies lie, how they are
// encoded, and what they went over. What does not apply is empty.
struct StoreSummary {
  SpanName name = SpanName::kFetch;
  std::string tier = {};
  std::string codec = {};
  std::string transport = {};
  NanoPercentiles time = {};
  std::uint64_t bytes = 0;
  std::int64_t busy_ns = 0;  // The sum of their durations.
};

// Of all handoffs from one prefill worker to one decode worker over one transport.
struct PairSummary {
  std::string prefill = {};
  std::string decode = {};
  std::string transport = {};
  std::size_t handoffs = 0;
  std::uint64_t bytes = 0;
  NanoPercentiles wait = {};   // Of a layer of blocks: told -> its read asked for.
  NanoPercentiles wire = {};   // Read asked for -> landed and verified: one pass over the bytes.
  NanoPercentiles whole = {};  // Of a handoff: first layer told -> last verified.
  NanoPercentiles after =
      {};  // Of a handoff: last pass computed -> last verified. 0: all was hidden.
  // Time during which some of a handoff's KV was told and not yet verified, summed over handoffs,
  // and how much of it was before the prompt's last layer was computed. Where the prefill worker's
  // spans are missing, a handoff counts in neither.
  std::int64_t underway_ns = 0;
  std::int64_t hidden_ns = 0;

  double hidden_share() const {
    return underway_ns == 0 ? 0 : static_cast<double>(hidden_ns) / static_cast<double>(underway_ns);
  }
};

struct TraceSummary {
  std::size_t requests = 0;
  std::int64_t clock_error_ns = 0;        // The largest of all processes.
  std::vector<PhaseSummary> phases = {};  // In the order of SpanName; those that occurred.
  std::vector<StoreSummary> stores = {};  // In the order of SpanName, then by the names.
  std::vector<PairSummary> pairs = {};    // By names.
};
TraceSummary Summarize(const ClusterTrace& trace);

}  // namespace penstock::cli
