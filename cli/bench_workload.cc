// SPDX-License-Identifier: Apache-2.0
#include "cli/bench_workload.h"

#include <algorithm>

#include "base/check.h"

namespace penstock::cli {
namespace {

// A good mixer of 64 bits (splitmix64's).
std::uint64_t Mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

// Contents that belong to everybody, and to one request each.
constexpr std::uint64_t kPrefix = std::uint64_t{1} << 62;
constexpr std::uint64_t kOwn = std::uint64_t{1} << 63;

}  // namespace

std::vector<TokenId> MakePrompt(const BenchRequest& request, std::int32_t vocab) {
  CHECK(vocab > 0);
  std::vector<TokenId> tokens;
  tokens.reserve(static_cast<std::size_t>(request.prompt_tokens));
  for (const BenchPiece& piece : request.prompt) {
    const std::uint64_t from = Mix(piece.content);
    for (std::int32_t i = 0; i < piece.tokens; ++i) {
      tokens.push_back(static_cast<TokenId>(Mix(from + static_cast<std::uint64_t>(i)) %
                                            static_cast<std::uint64_t>(vocab)));
    }
  }
  return tokens;
}

std::vector<BenchRequest> MakeSynthetic(const SyntheticWorkload& workload) {
  std::mt19937_64 random(workload.seed);
  // Other seeds, other prompts: what an earlier run left in pools must not be found.
  const std::uint64_t of_seed = Mix(workload.seed) >> 8;
  std::vector<BenchRequest> requests;
  Duration arrival{};
  for (std::int32_t i = 0; i < workload.requests; ++i) {
    BenchRequest request = {.arrival = arrival};
    if (workload.rate > 0) arrival += DrawGap(workload.rate, random);
    if (workload.prefix_tokens > 0) {
      const auto which = static_cast<std::uint64_t>(DrawUnit(random) * workload.prefixes);
      request.prompt.push_back(
          {kPrefix | (Mix(of_seed ^ Mix(which)) >> 2), workload.prefix_tokens});
    }
    request.prompt.push_back(
        {kOwn | (Mix(of_seed + static_cast<std::uint64_t>(i)) >> 1), workload.prompt.Draw(random)});
    request.output_tokens = workload.output.Draw(random);
    for (const BenchPiece& piece : request.prompt) request.prompt_tokens += piece.tokens;
    requests.push_back(std::move(request));
  }
  // Chance in how long they take together would pass for a difference between clusters.
  if (requests.size() > 1 && workload.rate > 0) {
    const double wanted = static_cast<double>(requests.size() - 1) / workload.rate;
    const double drawn = std::max(1e-9, ToSeconds(requests.back().arrival));
    for (BenchRequest& request : requests) {
      request.arrival = std::chrono::duration_cast<Duration>(
          std::chrono::duration<double>(ToSeconds(request.arrival) * (wanted / drawn)));
    }
  }
  return requests;
}

std::int32_t CutLengths(std::int32_t prompt_max, std::int32_t output_max,
                        std::vector<BenchRequest>& requests) {
  std::int32_t cut = 0;
  for (BenchRequest& request : requests) {
    const bool prompt = prompt_max > 0 && request.prompt_tokens > prompt_max;
    const bool output = output_max > 0 && request.output_tokens > output_max;
    cut += prompt || output ? 1 : 0;
    if (output) request.output_tokens = output_max;
    while (prompt && request.prompt_tokens > prompt_max) {
      BenchPiece& last = request.prompt.back();
      const std::int32_t less = std::min(last.tokens, request.prompt_tokens - prompt_max);
      last.tokens -= less;
      request.prompt_tokens -= less;
      if (last.tokens == 0) request.prompt.pop_back();
    }
  }
  return cut;
}

}  // namespace penstock::cli
