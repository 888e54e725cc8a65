// SPDX-License-Identifier: Apache-2.0
// What a benchmark measured, request by request, and what follows from it.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/time.h"

namespace penstock::cli {

// Times are since the beginning of the run.
struct BenchRecord {
  Duration arrival = {};  // When it was due; of a closed loop, when it was sent.
  Duration sent = {};
  std::optional<Duration> first = {};  // Token.
  Duration last = {};                  // Token.
  Duration end = {};
  std::vector<float> gaps =
      {};  // Seconds between tokens, in order; 0 between those that came together.
  // Seconds from the step that sampled to here, of each message with tokens.
  std::vector<float> relays = {};
  std::string code = {};  // "ok", or the status code.
  std::string message = {};
  std::int64_t prompt_tokens = 0;
  std::int64_t cached_tokens = 0;
  std::int64_t output_tokens = 0;
  std::int64_t attempts = 0;

  bool ok() const { return code == "ok"; }
  double ttft_ms() const { return first ? ToMillis(*first - arrival) : 0; }
  // 0 for one token.
  double tpot_ms() const {
    return output_tokens > 1 && first
               ? ToMillis(last - *first) / static_cast<double>(output_tokens - 1)
               : 0;
  }
};

// Nearest rank: each is a value that was measured.
struct Percentiles {
  std::size_t count = 0;
  double mean = 0, p50 = 0, p90 = 0, p99 = 0, max = 0;
};
Percentiles MakePercentiles(std::vector<double> values);

struct Slo {
  double ttft_ms = 0;  // 0: none.
  double tpot_ms = 0;
  bool Holds(const BenchRecord& record) const {
    return record.ok() && (ttft_ms == 0 || record.ttft_ms() <= ttft_ms) &&
           (tpot_ms == 0 || record.tpot_ms() <= tpot_ms);
  }
};

// What happened in one slice of the run.
struct BenchSlice {
  double begin_s = 0;
  double output_tokens = 0;
  double finished = 0;
  double live = 0;  // Requests, on average.
};

inline constexpr std::size_t kSteadyCompleteMin = 20;

struct BenchSummary {
  double seconds = 0;  // First arrival to last end.
  std::size_t requests = 0;
  std::size_t good = 0;  // Complete, and within the SLO.
  std::map<std::string, std::size_t> by_code;
  std::string first_error;                       // One message of those that failed.
  Percentiles ttft_ms, tpot_ms, itl_ms, e2e_ms;  // Of complete ones.
  Percentiles relay_ms;  // Decode worker's step to client, of each message. Of complete ones.
  Percentiles late_ms;   // Sent after they were due: the client's own fault. Of all.
  std::int64_t prompt_tokens = 0, cached_tokens = 0, output_tokens = 0;  // Of complete ones.
  std::int64_t retries = 0;                                              // Attempts above one.
  std::optional<double> steady_good_per_s;                               // See steady_goodput().
  std::vector<BenchSlice> slices;

  std::size_t complete() const;
  double PerSecond(double amount) const { return seconds > 0 ? amount / seconds : 0; }
  double goodput() const { return PerSecond(static_cast<double>(good)); }
  // Good completions a second between the moments when a tenth and nine tenths of all complete
  // requests had ended: how a closed loop fills and drains is not what a cluster can do. goodput()
  // where fewer than kSteadyCompleteMin completed.
  double steady_goodput() const { return steady_good_per_s.value_or(goodput()); }
  double hit_rate() const {
    return prompt_tokens > 0
               ? static_cast<double>(cached_tokens) / static_cast<double>(prompt_tokens)
               : 0;
  }
};
BenchSummary Summarize(const std::vector<BenchRecord>& records, const Slo& slo,
                       std::size_t slices = 60);

}  // namespace penstock::cli
