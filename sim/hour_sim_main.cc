// SPDX-License-Identifier: Apache-2.0
// An hour of traffic over a hundred workers, by policy: see hour_sim.h for what is real in it.
//
//   hour_sim [--policy cost|least-loaded|round-robin] [--trace FILE] [--prefills N] [--decodes N]
#include <cstdio>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "base/time.h"
#include "sim/hour_sim.h"

namespace penstock::sim {
namespace {

// Of ascending values.
double Percentile(const std::vector<double>& values, double p) {
  if (values.empty()) return 0;
  return values[static_cast<std::size_t>(p * static_cast<double>(values.size() - 1))];
}

void PrintBalance(const char* what, const std::vector<std::uint64_t>& tokens) {
  if (tokens.empty()) return;
  double sum = 0;
  for (const std::uint64_t n : tokens) sum += static_cast<double>(n);
  const double mean = std::max(1.0, sum / static_cast<double>(tokens.size()));
  std::printf("%s: %zu, %.0f tokens each; least %.2f, most %.2f of the mean\n", what, tokens.size(),
              mean, static_cast<double>(tokens.front()) / mean,
              static_cast<double>(tokens.back()) / mean);
}

int Main(int argc, char** argv) {
  CLI::App app("An hour of traffic over many workers, around the real coordinator");
  HourOptions options;
  std::string trace_file;
  std::size_t requests = 12'031;
  std::uint64_t seed = 1;
  app.add_option("--policy", options.policy, "cost, least-loaded or round-robin");
  app.add_option("--trace", trace_file, "Mooncake's JSONL; without, traffic of that shape is made");
  app.add_option("--requests", requests, "Of made-up traffic, in an hour");
  app.add_option("--seed", seed, "Of made-up traffic");
  app.add_option("--prefills", options.prefills, "Prefill workers");
  app.add_option("--decodes", options.decodes, "Decode workers");
  app.add_option("--blocks", options.blocks, "Of 512 tokens in a worker's pool");
  app.add_option("--prefill-rate", options.prefill_tokens_per_s, "Tokens/s of a worker");
  CLI11_PARSE(app, argc, argv);
  std::vector<TraceRequest> trace;
  if (trace_file.empty()) {
    trace = MakeTrace(requests, seed);
  } else {
    absl::StatusOr<std::vector<TraceRequest>> read = ReadTrace(trace_file);
    if (!read.ok()) {
      std::fprintf(stderr, "%s\n", std::string(read.status().message()).c_str());
      return 1;
    }
    trace = *std::move(read);
  }
  const MonoTime begin = SteadyClock().Now();
  const absl::StatusOr<HourResult> run = RunHour(trace, options);
  if (!run.ok()) {
    std::fprintf(stderr, "%s\n", std::string(run.status().message()).c_str());
    return 1;
  }
  const double wall = ToSeconds(SteadyClock().Now() - begin);
  const HourResult& r = *run;
  std::printf("policy %s: %zu requests, %zu answered, %zu refused, %.0f s simulated in %.2f s\n",
              options.policy.c_str(), r.requests, r.answered, r.refused, r.simulated_seconds, wall);
  std::printf("TTFT p50 %.3f s, p90 %.3f s, p99 %.3f s\n", Percentile(r.ttft_seconds, 0.5),
              Percentile(r.ttft_seconds, 0.9), Percentile(r.ttft_seconds, 0.99));
  std::printf("hit rate %.1f %% of prompt tokens; %llu prompts computed by their decode worker\n",
              100.0 * static_cast<double>(r.reused_tokens) /
                  std::max(1.0, static_cast<double>(r.prompt_tokens)),
              static_cast<unsigned long long>(r.local));
  PrintBalance("prefill workers", r.prefill_tokens);
  PrintBalance("decode workers", r.decode_tokens);
  std::printf("%llu decisions, %llu events\n", static_cast<unsigned long long>(r.decisions),
              static_cast<unsigned long long>(r.events));
  return 0;
}

}  // namespace
}  // namespace penstock::sim

int main(int argc, char** argv) { return penstock::sim::Main(argc, argv); }
