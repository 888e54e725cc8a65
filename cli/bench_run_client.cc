// SPDX-License-Identifier: Apache-2.0
#include "cli/bench_run_client.h"

#include <sys/epoll.h>
#include <sys/resource.h>

#include <fstream>
#include <future>
#include <limits>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/file.h"
#include "base/status.h"
#include "cli/bench_trace.h"

namespace penstock::cli {
namespace {

double CpuSeconds() {
  rusage usage = {};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

bool IsOpen(const BenchFlags& flags) { return flags.rate > 0 || !flags.trace.empty(); }

std::vector<std::pair<std::string, std::string>> ConfigOf(const std::string& server,
                                                          const std::string& model,
                                                          const BenchFlags& flags,
                                                          std::int32_t cut) {
  std::vector<std::pair<std::string, std::string>> config = {{"server", server}, {"model", model}};
  if (!flags.trace.empty()) {
    const std::string name = flags.trace.substr(flags.trace.rfind('/') + 1);
    config.emplace_back("load", absl::StrFormat("%s at %.4g times its speed", name, flags.speedup));
  } else if (flags.rate > 0) {
    config.emplace_back("load", absl::StrFormat("%.4g requests a second, Poisson", flags.rate));
  } else {
    config.emplace_back("load", absl::StrCat(flags.concurrency, " at a time"));
  }
  if (flags.trace.empty()) {
    std::string prompt = flags.prompt;
    if (flags.prefix_tokens > 0) {
      prompt = absl::StrCat(prompt, " after one of ", flags.prefixes, " prefixes of ",
                            flags.prefix_tokens);
    }
    config.emplace_back("prompt", prompt);
    config.emplace_back("output", flags.output);
    config.emplace_back("seed", absl::StrCat(flags.seed));
  }
  if (cut > 0) {
    config.emplace_back("cut", absl::StrCat(cut, " requests to at most ", flags.prompt_max, " and ",
                                            flags.output_max, " tokens (0: any)"));
  }
  return config;
}

// A cluster that has just said it is ready may not have told its gateways yet.
absl::StatusOr<std::string> AwaitModel(const BenchTargetOptions& options, EpollLoop& loop) {
  const MonoTime patience = loop.Now() + std::chrono::seconds(10);
  while (true) {
    absl::StatusOr<std::string> model = FindBenchModel(options);
    const bool loads = model.status().code() == absl::StatusCode::kFailedPrecondition;
    if (!loads || loop.Now() > patience) return model;
    // Shared: else the waiter could destroy it while it is being set.
    const auto rung = std::make_shared<std::promise<void>>();
    loop.Run([&] {
      loop.At(loop.Now() + std::chrono::milliseconds(50), [rung] { rung->set_value(); });
    });
    rung->get_future().wait();
  }
}

}  // namespace

void AddBenchFlags(CLI::App& command, BenchFlags& flags) {
  const CLI::Range tokens(1, static_cast<int>(kBenchTokensMax));
  const CLI::Range tokens_or_none(0, static_cast<int>(kBenchTokensMax));
  command.add_option("--model", flags.model, "Which model; may be left out where there is one");
  command.add_option("--requests", flags.requests, "How many to send")
      ->check(CLI::Range(1, 1 << 22))
      ->capture_default_str();
  CLI::Option* const concurrency =
      command
          .add_option("--concurrency", flags.concurrency,
                      "Closed loop: so many run at a time, each followed by the next")
          ->check(CLI::Range(1, 100'000))
          ->capture_default_str();
  CLI::Option* const rate =
      command
          .add_option("--rate", flags.rate,
                      "Open loop: so many arrive a second (Poisson), whatever has ended")
          ->check(CLI::Range(1e-3, 1e6))
          ->excludes(concurrency);
  command
      .add_option("--trace", flags.trace,
                  "Open loop: recorded traffic, Mooncake's JSONL or Azure's CSV")
      ->excludes(concurrency)
      ->excludes(rate);
  command.add_option("--speedup", flags.speedup, "Of a trace's arrivals")
      ->check(CLI::Range(1e-3, 1e6))
      ->capture_default_str();
  command.add_option("--limit", flags.limit, "Only the first so many of a trace; 0: all")
      ->capture_default_str();
  command
      .add_option("--prompt", flags.prompt,
                  "Tokens of a prompt: 512, uniform:100:900, lognormal:512:0.8 (median, sigma)")
      ->capture_default_str();
  command.add_option("--output", flags.output, "Tokens of an answer, likewise")
      ->capture_default_str();
  command
      .add_option("--prefix-tokens", flags.prefix_tokens,
                  "Begin each prompt with a shared prefix of so many tokens")
      ->check(tokens_or_none)
      ->capture_default_str();
  command.add_option("--prefixes", flags.prefixes, "How many such prefixes there are")
      ->check(tokens)
      ->capture_default_str();
  command.add_option("--prompt-max", flags.prompt_max, "Cut longer prompts; 0: do not")
      ->check(tokens_or_none)
      ->capture_default_str();
  command.add_option("--output-max", flags.output_max, "Cut longer answers; 0: do not")
      ->check(tokens_or_none)
      ->capture_default_str();
  command.add_option("--seed", flags.seed, "Of lengths, arrivals and prompts")
      ->capture_default_str();
  command.add_option("--send-for", flags.send_for_s, "Send nothing after so many seconds; 0: all")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
  command.add_option("--timeout", flags.timeout_s, "Seconds that a request may take")
      ->check(CLI::Range(0.001, 86'400.0))
      ->capture_default_str();
  command.add_option("--temperature", flags.temperature, "Of sampling; 0 is greedy")
      ->check(CLI::Range(0.0, 100.0))
      ->capture_default_str();
  command.add_option("--vocab", flags.vocab, "Prompts use token ids below this")
      ->check(CLI::Range(2, 1 << 24))
      ->capture_default_str();
  command
      .add_option("--slo-ttft-ms", flags.slo.ttft_ms, "Goodput counts answers that begin by then")
      ->check(CLI::Range(0.0, 1e9));
  command
      .add_option("--slo-tpot-ms", flags.slo.tpot_ms,
                  "Goodput counts answers with at most this between tokens, on average")
      ->check(CLI::Range(0.0, 1e9));
}

absl::StatusOr<std::vector<BenchRequest>> MakeRequests(const BenchFlags& flags) {
  if (!flags.trace.empty()) {
    ASSIGN_OR_RETURN(const std::string text, ReadFile(flags.trace, kTraceBytesMax));
    return ParseTrace(flags.trace, text, flags.limit);
  }
  SyntheticWorkload workload = {.seed = flags.seed,
                                .requests = flags.requests,
                                .rate = flags.rate,
                                .prompt = {},
                                .output = {},
                                .prefix_tokens = flags.prefix_tokens,
                                .prefixes = flags.prefixes};
  ASSIGN_OR_RETURN(workload.prompt, LengthDistribution::Parse("--prompt", flags.prompt));
  ASSIGN_OR_RETURN(workload.output, LengthDistribution::Parse("--output", flags.output));
  return MakeSynthetic(workload);
}

absl::StatusOr<BenchReport> RunBench(const std::string& server, const BenchFlags& flags,
                                     std::vector<BenchRequest> requests, EpollLoop& loop,
                                     InterruptWatch& interrupts) {
  BenchTargetOptions options = {.server = server,
                                .model = flags.model,
                                .vocab = flags.vocab,
                                .temperature = flags.temperature,
                                .timeout = FromSeconds(flags.timeout_s)};
  ASSIGN_OR_RETURN(options.model, AwaitModel(options, loop));
  const std::int32_t cut = CutLengths(flags.prompt_max, flags.output_max, requests);
  BenchReport report = {.config = ConfigOf(server, options.model, flags, cut), .slo = flags.slo};
  const double cpu = CpuSeconds();
  const MonoTime begin = SteadyClock().Now();
  std::unique_ptr<BenchTarget> target;  // On the loop, as the driver.
  std::unique_ptr<BenchDriver> driver;
  std::promise<BenchDriver::Result> over;
  absl::Status watched;
  loop.Run([&] {
    target = MakeBenchTarget(loop, options);
    driver = std::make_unique<BenchDriver>(
        loop, *target, std::move(requests),
        BenchDriver::Options{
            .concurrency = IsOpen(flags) ? 0 : flags.concurrency,
            .speedup = flags.trace.empty() ? 1 : flags.speedup,
            .send_for = flags.send_for_s > 0 ? FromSeconds(flags.send_for_s) : Duration::max()},
        [](std::size_t sent, std::size_t ended, std::size_t total) {
          if (StderrStyle().bold.empty()) return;  // No terminal.
          absl::FPrintF(stderr, "\r%d of %d ended, %d run \033[K", ended, total, sent - ended);
        });
    watched = loop.Watch(interrupts.fd(), EPOLLIN, [&](std::uint32_t) {
      if (interrupts.Requested()) driver->Stop();
    });
    driver->Start([&](BenchDriver::Result result) { over.set_value(std::move(result)); });
  });
  report.result = over.get_future().get();
  loop.Run([&] {
    if (watched.ok()) loop.Unwatch(interrupts.fd());
    driver.reset();
    target.reset();
  });
  if (!StderrStyle().bold.empty()) absl::FPrintF(stderr, "\r\033[K");
  report.client_cores =
      (CpuSeconds() - cpu) / std::max(1e-9, ToSeconds(SteadyClock().Now() - begin));
  report.summary = Summarize(report.result.records, flags.slo);
  return report;
}

absl::Status WriteWholeFile(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.close();
  if (file) return absl::OkStatus();
  return absl::PermissionDeniedError(absl::StrCat("cannot write ", path));
}

}  // namespace penstock::cli
