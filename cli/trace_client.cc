// SPDX-License-Identifier: Apache-2.0
// penstock trace: where the time of a cluster's requests went.
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "CLI/App.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status.h"
#include "cli/commands.h"
#include "cli/terminal.h"
#include "cli/trace_collector_client.h"
#include "cli/trace_export.h"
#include "cli/trace_summary.h"
#include "cli/trace_text.h"

namespace penstock::cli {
namespace {

struct TraceCommandFlags {
  std::string server;
  std::vector<std::string> also;
  std::string request;
  bool last = false;
  bool all = false;
  std::string json;
  std::string chrome;
  std::string otlp;
  std::string html;
};

absl::Status WriteFile(const std::string& path, const std::string& text) {
  std::FILE* const file = std::fopen(path.c_str(), "wb");
  if (file == nullptr) return absl::PermissionDeniedError(absl::StrCat("cannot write ", path));
  const bool written = std::fwrite(text.data(), 1, text.size(), file) == text.size();
  if (std::fclose(file) != 0 || !written) {
    return absl::UnavailableError(absl::StrCat("cannot write all of ", path));
  }
  return absl::OkStatus();
}

void Warn(const CollectedTrace& collected) {
  for (const std::string& missing : collected.missing) {
    absl::FPrintF(stderr, "penstock: without the spans of %s\n", missing);
  }
  for (const TraceProcess& process : collected.trace.processes) {
    if (process.forgotten == 0) continue;
    absl::FPrintF(stderr, "penstock: %s has forgotten its first %d spans; it keeps the last ones\n",
                  process.name, process.forgotten);
  }
}

absl::Status Export(const TraceCommandFlags& flags, const ClusterTrace& trace,
                    const TraceSummary& summary) {
  if (!flags.json.empty()) RETURN_IF_ERROR(WriteFile(flags.json, SummaryJson(summary)));
  if (!flags.chrome.empty()) RETURN_IF_ERROR(WriteFile(flags.chrome, ChromeJson(trace)));
  if (!flags.otlp.empty()) RETURN_IF_ERROR(WriteFile(flags.otlp, OtlpJson(trace)));
  if (!flags.html.empty()) RETURN_IF_ERROR(WriteFile(flags.html, HtmlPage(trace, summary)));
  return absl::OkStatus();
}

absl::StatusOr<int> RunTrace(const TraceCommandFlags& flags) {
  ASSIGN_OR_RETURN(CollectedTrace collected, CollectTrace(flags.server, flags.also, flags.request));
  Warn(collected);
  ClusterTrace& trace = collected.trace;
  std::string request = flags.request;
  if (flags.last) {
    const std::vector<std::string> requests = RequestsOf(trace);
    if (requests.empty()) {
      trace.spans.clear();
    } else {
      request = requests.back();
      trace = OnlyRequest(trace, request);
    }
  }
  if (trace.spans.empty()) {
    return absl::NotFoundError(request.empty()
                                   ? "no request has been traced yet"
                                   : absl::StrCat("nothing is known of request '", request,
                                                  "': never seen, or forgotten since"));
  }
  const TraceSummary summary = Summarize(trace);
  std::string text;
  if (!request.empty())
    text = absl::StrCat("request ", request, "\n", RequestTable(trace, flags.all), "\n");
  WriteStdout(text + SummaryTables(trace, summary));
  RETURN_IF_ERROR(Export(flags, trace, summary));
  return kExitOk;
}

}  // namespace

void RegisterTrace(CLI::App& app, Run& run) {
  const auto flags = std::make_shared<TraceCommandFlags>();
  CLI::App* const sub = app.add_subcommand(
      "trace", "Shows where the time of requests went, across all processes of a cluster");
  sub->add_option("--server", flags->server, "Address of the coordinator, HOST:PORT")->required();
  sub->add_option("--also", flags->also,
                  "Address of a gateway that is a process of its own, HOST:PORT; may be repeated")
      ->allow_extra_args(false);
  CLI::Option* const request =
      sub->add_option("request", flags->request, "Of one request alone, by its id");
  sub->add_flag("--last", flags->last, "Of the request that came last")->excludes(request);
  sub->add_flag("--all", flags->all, "A line for each layer, too");
  sub->add_option("--json", flags->json, "Write the summary's figures");
  sub->add_option("--chrome", flags->chrome,
                  "Write Chrome's trace format, which ui.perfetto.dev opens");
  sub->add_option("--otlp", flags->otlp, "Write OTLP JSON, as collectors take at /v1/traces");
  sub->add_option("--html", flags->html, "Write one page with the timelines of the last requests");
  sub->footer(
      "Each process keeps its last 65,536 spans. A transfer's time is told apart as wait (a layer "
      "of\n"
      "blocks was told, others are read before it) and wire (read, put in place and verified). "
      "Between\n"
      "GPUs wire has parts: pack (the peer's GPU gathers), ready (until both sides post), move "
      "(by\n"
      "NCCL) and land (put in place and verified), by CUDA events.\n"
      "Examples:\n"
      "  penstock trace --server 127.0.0.1:7070\n"
      "  penstock trace --server 127.0.0.1:7070 --last --html trace.html");
  sub->callback([flags, &run] { run = [flags] { return RunTrace(*flags); }; });
}

}  // namespace penstock::cli
