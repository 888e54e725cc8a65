// SPDX-License-Identifier: Apache-2.0
// penstock bench: measures a running cluster; penstock bench scale: clusters of growing size.
#include <cstdio>
#include <memory>
#include <string>

#include "CLI/App.hpp"
#include "absl/strings/str_format.h"
#include "base/epoll_loop.h"
#include "base/status.h"
#include "cli/bench_run_client.h"
#include "cli/bench_scale_client.h"
#include "cli/commands.h"
#include "cli/terminal.h"
#include "nlohmann/json.hpp"

namespace penstock::cli {
namespace {

struct Flags {
  std::string server;
  BenchFlags bench;
  std::string json;
  std::string records;
  std::string svg;
};

absl::StatusOr<int> Bench(const Flags& flags) {
  if (flags.server.empty()) {
    return absl::InvalidArgumentError(
        "--server is missing: the gateway of a running cluster, HOST:PORT");
  }
  ASSIGN_OR_RETURN(std::vector<BenchRequest> requests, MakeRequests(flags.bench));
  InterruptWatch interrupts;
  ASSIGN_OR_RETURN(const std::unique_ptr<EpollLoop> loop, EpollLoop::Make("bench"));
  ASSIGN_OR_RETURN(const BenchReport report,
                   RunBench(flags.server, flags.bench, std::move(requests), *loop, interrupts));
  WriteStdout(ReportText(report));
  if (const std::string warning = ClientWarning(report); !warning.empty()) {
    absl::FPrintF(stderr, "warning: %s\n", warning);
  }
  if (!flags.json.empty()) {
    RETURN_IF_ERROR(WriteWholeFile(flags.json, ReportJson(report).dump(1) + "\n"));
  }
  if (!flags.records.empty()) {
    RETURN_IF_ERROR(WriteWholeFile(flags.records, RecordsJsonl(report)));
  }
  if (!flags.svg.empty()) RETURN_IF_ERROR(WriteWholeFile(flags.svg, ReportSvg(report)));
  if (report.summary.complete() == 0) {
    return absl::UnavailableError("no request was answered to its end");
  }
  return kExitOk;
}

}  // namespace

void RegisterBench(CLI::App& app, Run& run) {
  const auto flags = std::make_shared<Flags>();
  CLI::App* const sub =
      app.add_subcommand("bench", "Measures a running cluster: latencies, goodput, hit rate");
  sub->require_subcommand(0, 1);
  sub->footer(
      "Relay is the way of a token from the decode worker's step to here; it is told by the wall\n"
      "clocks of both, so between hosts it is as good as those agree.\n"
      "Examples:\n"
      "  penstock bench --server HOST:PORT --concurrency 16 --prompt lognormal:512:0.8\n"
      "  penstock bench --server HOST:PORT --rate 4 --slo-ttft-ms 500 --slo-tpot-ms 50\n"
      "  penstock bench --server HOST:PORT --trace conversation_trace.jsonl --limit 500 "
      "--speedup 2\n"
      "  penstock bench scale deploy/local.yaml --device paced --workers 1,2,4,8");
  sub->add_option("--server", flags->server, "A gateway of the cluster, HOST:PORT");
  AddBenchFlags(*sub, flags->bench);
  sub->add_option("--json", flags->json, "Write all figures to this file");
  sub->add_option("--records", flags->records, "Write a line of JSON for each request here");
  sub->add_option("--svg", flags->svg, "Draw distributions and time line to this file");
  RegisterBenchScale(*sub, run);
  sub->callback([flags, sub, &run] {
    if (!sub->get_subcommands().empty()) return;
    run = [flags] { return Bench(*flags); };
  });
}

}  // namespace penstock::cli
