// SPDX-License-Identifier: Apache-2.0
// penstock replay: what an eviction policy would have saved on recorded traffic.
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/file.h"
#include "base/status.h"
#include "cli/bench_run_client.h"
#include "cli/bench_trace.h"
#include "cli/commands.h"
#include "cli/replay_report.h"
#include "cli/terminal.h"
#include "kvstore/replay_trace.h"

namespace penstock::cli {
namespace {

constexpr std::string_view kChatAndDocuments = "chat-and-documents";
constexpr double kMadeRequestsMax = 1e6;

struct ReplayFlags {
  std::string trace;
  std::vector<std::string> capacities = {"1M", "3M", "10M", "20M"};
  std::vector<std::string> policies;
  std::size_t limit = 0;
  std::size_t ghosts_max = kvstore::EvictionPolicy::Options().ghosts_max;
  std::string json;
  std::string svg;
  std::string make;
  std::string out;
  kvstore::MadeTraceOptions made;
};

absl::StatusOr<int> MakeTrace(const ReplayFlags& flags) {
  if (flags.make != kChatAndDocuments) {
    return absl::InvalidArgumentError(absl::StrCat("--make must be ", ToAbsl(kChatAndDocuments),
                                                   ", got '", flags.make.substr(0, 64), "'"));
  }
  if (flags.out.empty()) return absl::InvalidArgumentError("--make needs --out FILE");
  const double wanted = flags.made.seconds * flags.made.requests_per_second;
  if (wanted > kMadeRequestsMax) {
    return absl::InvalidArgumentError(
        absl::StrFormat("--seconds times --rate must be at most %.0f requests, got %.0f",
                        kMadeRequestsMax, wanted));
  }
  const std::vector<kvstore::MadeRequest> made = kvstore::MakeChatsAndDocuments(flags.made);
  if (made.empty()) {
    return absl::InvalidArgumentError("no request arrives in --seconds at --rate");
  }
  std::string text;
  std::uint64_t tokens = 0;
  for (const kvstore::MadeRequest& request : made) {
    tokens += static_cast<std::uint64_t>(request.request.prompt_tokens);
    absl::StrAppendFormat(
        &text,
        "{\"timestamp\": %d, \"input_length\": %d, \"output_length\": %d, \"hash_ids\": [%s]}\n",
        std::chrono::duration_cast<std::chrono::milliseconds>(request.request.arrival).count(),
        request.request.prompt_tokens, request.output_tokens,
        absl::StrJoin(request.request.blocks, ", "));
  }
  RETURN_IF_ERROR(WriteWholeFile(flags.out, text));
  WriteStdout(
      absl::StrFormat("%d requests, %d prompt tokens in %s\n", made.size(), tokens, flags.out));
  return kExitOk;
}

absl::StatusOr<int> Replay(const ReplayFlags& flags) {
  if (flags.trace.empty()) return absl::InvalidArgumentError("TRACE or --make is missing");
  std::vector<std::int64_t> capacities;
  for (const std::string& text : flags.capacities) {
    ASSIGN_OR_RETURN(capacities.emplace_back(), ParseCapacity(text));
  }
  std::ranges::sort(capacities);
  std::vector<std::string> policies = flags.policies;
  if (policies.empty()) {
    for (const std::string_view name : kvstore::EvictionPolicyNames()) policies.emplace_back(name);
  }
  for (const std::string& policy : policies) {
    RETURN_IF_ERROR(kvstore::MakeEvictionPolicy(policy, {.capacity_bytes = 1}).status());
  }
  ASSIGN_OR_RETURN(const std::string text, ReadFile(flags.trace, kTraceBytesMax));
  ASSIGN_OR_RETURN(const std::vector<BenchRequest> requests,
                   ParseTrace(flags.trace, text, flags.limit));
  ASSIGN_OR_RETURN(const std::vector<kvstore::ReplayRequest> replay,
                   ToReplay(flags.trace, requests));
  const std::string name = flags.trace.substr(flags.trace.rfind('/') + 1);
  ASSIGN_OR_RETURN(const ReplayReport report,
                   RunReplay(name, replay, capacities, policies, flags.ghosts_max));
  WriteStdout(ReplayText(report));
  if (!flags.json.empty()) {
    RETURN_IF_ERROR(WriteWholeFile(flags.json, ReplayJson(report).dump(1) + "\n"));
  }
  if (!flags.svg.empty()) RETURN_IF_ERROR(WriteWholeFile(flags.svg, ReplaySvg(report)));
  return kExitOk;
}

}  // namespace

void RegisterReplay(CLI::App& app, Run& run) {
  const auto flags = std::make_shared<ReplayFlags>();
  CLI::App* const sub =
      app.add_subcommand("replay", "Tries eviction policies of the KV store on recorded traffic");
  sub->add_option("TRACE", flags->trace, "JSON lines in Mooncake's format");
  sub->add_option("--capacity", flags->capacities, "Of the cache, in tokens")
      ->delimiter(',')
      ->capture_default_str();
  sub->add_option("--policy", flags->policies,
                  "lru, s3-fifo, hybrid, reuse-density (default: all of them)")
      ->delimiter(',');
  sub->add_option("--limit", flags->limit, "Only the first N requests");
  sub->add_option("--ghosts", flags->ghosts_max,
                  "Keys that a policy may remember beyond those it holds")
      ->capture_default_str();
  sub->add_option("--json", flags->json, "Write all figures to this file");
  sub->add_option("--svg", flags->svg, "Draw them to this file");
  sub->add_option(
      "--make", flags->make,
      "Write a made-up trace instead: chat-and-documents, conversations of several turns "
      "and documents that many ask about");
  sub->add_option("--out", flags->out, "Where --make writes");
  sub->add_option("--seed", flags->made.seed, "Of --make: the same seed, the same trace")
      ->capture_default_str();
  sub->add_option("--seconds", flags->made.seconds, "Of --make: how long it lasts")
      ->check(CLI::Range(1.0, 1e6))
      ->capture_default_str();
  sub->add_option("--rate", flags->made.requests_per_second, "Of --make: requests a second")
      ->check(CLI::Range(0.001, 1e3))
      ->capture_default_str();
  sub->add_option("--documents", flags->made.documents, "Of --make: how many there are at a time")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  sub->footer(
      "A prompt is cut into blocks of 512 tokens, as the trace names them. Of each request, what\n"
      "counts as found is the longest beginning that is held; then its blocks are used or put, "
      "head\n"
      "to tail, and the policy evicts what is above capacity. Answers are not kept.\n"
      "  of tokens    found tokens of all prompt tokens\n"
      "  per request  mean of each request's share\n"
      "  against lru  ratio of the former to that of LRU at this capacity\n"
      "Examples:\n"
      "  penstock replay conversation_trace.jsonl --capacity 1M,3M,10M,20M --svg hits.svg\n"
      "  penstock replay --make chat-and-documents --seed 7 --out made.jsonl\n"
      "  penstock replay made.jsonl --policy lru,reuse-density");
  sub->callback([flags, &run] {
    run = [flags] { return flags->make.empty() ? Replay(*flags) : MakeTrace(*flags); };
  });
}

}  // namespace penstock::cli
