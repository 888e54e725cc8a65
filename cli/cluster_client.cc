// SPDX-License-Identifier: Apache-2.0
// penstock status, penstock explain: what operators ask of a running coordinator.
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "CLI/App.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status.h"
#include "base/time.h"
#include "cli/asker_client.h"
#include "cli/commands.h"
#include "cli/serving.h"
#include "cli/terminal.h"
#include "cli/text_table.h"
#include "google/protobuf/util/json_util.h"

namespace penstock::cli {
namespace {

struct ClusterFlags {
  std::string server;
  std::string request;
  bool json = false;
  bool watch = false;
};

double Millis(const google::protobuf::Duration& duration) {
  return static_cast<double>(duration.seconds()) * 1e3 +
         static_cast<double>(duration.nanos()) / 1e6;
}

// "-" for what was not measured.
std::string Measured(double value, int digits_behind) {
  if (value <= 0) return "-";
  return absl::StrFormat("%.*f", digits_behind, value);
}

std::string WorkersTable(const v1::StatusResponse& status) {
  std::vector<std::vector<std::string>> rows = {{"WORKER", "ROLE", "MODEL", "STATE", "SEQUENCES",
                                                 "PREFILLS", "BLOCKS", "KNOWN", "TOKENS/S",
                                                 "STEP ms", "PID"}};
  for (const auto& worker : status.workers()) {
    const bool decodes = worker.role() == v1::ROLE_DECODE;
    rows.push_back({worker.name(), decodes ? "decode" : "prefill", worker.model(), worker.state(),
                    decodes ? absl::StrCat(worker.sequences(), "/", worker.sequences_max())
                            : absl::StrCat(worker.sequences()),
                    absl::StrCat(worker.prefills()),
                    absl::StrCat(worker.blocks_used(), "/", worker.blocks_total()),
                    absl::StrCat(worker.blocks_known()), Measured(worker.prefill_tokens_per_s(), 0),
                    Measured(worker.step_seconds() * 1e3, 1), absl::StrCat(worker.pid())});
  }
  return TextTable(rows, 4);
}

std::string TierName(v1::Tier tier) {
  switch (tier) {
    case v1::TIER_DEVICE:
      return "device";
    case v1::TIER_HOST:
      return "host";
    case v1::TIER_DISK:
      return "disk";
    case v1::TIER_REMOTE:
      return "remote";
    default:
      return "unknown";
  }
}

// A line for each tier; the first also shows what is the node's.
std::string StoresTable(const v1::StatusResponse& status) {
  std::vector<std::vector<std::string>> rows = {{"STORE", "STATE", "TIER", "KNOWN", "COPIES", "GB",
                                                 "GB MAX", "HITS", "MISSES", "GB/s", "PID"}};
  for (const auto& store : status.stores()) {
    std::vector<std::string> row = {store.name(), store.state(), "-",
                                    absl::StrCat(store.copies_known())};
    row.resize(rows[0].size(), "-");
    row.back() = absl::StrCat(store.pid());
    if (store.tiers().empty()) rows.push_back(row);
    for (const auto& tier : store.tiers()) {
      row[2] = TierName(tier.tier());
      row[4] = absl::StrCat(tier.copies());
      row[5] = absl::StrFormat("%.3g", static_cast<double>(tier.bytes()) / 1e9);
      row[6] = absl::StrFormat("%.3g", static_cast<double>(tier.bytes_max()) / 1e9);
      row[7] = absl::StrCat(tier.hits());
      row[8] = absl::StrCat(tier.misses());
      row[9] = Measured(tier.bytes_per_s() / 1e9, 2);
      rows.push_back(row);
      for (const std::size_t i : {0, 1, 3, 10}) row[i].clear();
    }
  }
  return TextTable(rows, 3);
}

std::string PairsTable(const v1::StatusResponse& status) {
  std::vector<std::vector<std::string>> rows = {
      {"PAIR", "STATE", "TRANSPORT", "GB/s", "ROUND TRIP us"}};
  for (const auto& pair : status.pairs()) {
    rows.push_back(
        {absl::StrCat(pair.prefill(), " -> ", pair.decode()),
         pair.has_error() ? pair.error().message() : "verified",
         pair.transport().empty() ? "-" : pair.transport(),
         pair.bytes_per_s() > 0 ? absl::StrFormat("%.3g", pair.bytes_per_s() / 1e9) : "-",
         Measured(Millis(pair.round_trip()) * 1e3, 0)});
  }
  return TextTable(rows, 3);
}

std::string ModelsTable(const v1::StatusResponse& status) {
  std::vector<std::vector<std::string>> rows = {{"MODEL", "STATE", "CONTEXT", "BLOCK"}};
  for (const auto& model : status.models()) {
    rows.push_back({model.name(), model.ready() ? "ready" : "not ready",
                    absl::StrCat(model.context_tokens()), absl::StrCat(model.block_tokens())});
  }
  return TextTable(rows, 2);
}

std::string ToText(const v1::StatusResponse& status) {
  if (status.standby()) {
    return absl::StrCat("a standby; ",
                        status.leader().empty() ? "no leader is known" : status.leader() + " leads",
                        "\n");
  }
  std::string text = absl::StrFormat(
      "up %.0f s; %d requests live, %d of them queued; %d finished, %d failed, %d refused\n",
      Millis(status.up()) / 1e3, status.requests(), status.queued(), status.finished(),
      status.failed(), status.refused());
  if (status.term() != 0) absl::StrAppend(&text, "leads in term ", status.term(), "\n");
  absl::StrAppend(&text, "gateways:");
  for (const std::string& name : status.gateways()) absl::StrAppend(&text, " ", name);
  if (status.gateways().empty()) absl::StrAppend(&text, " none");
  absl::StrAppend(&text, "\n\n", ModelsTable(status), "\n", WorkersTable(status));
  if (!status.stores().empty()) absl::StrAppend(&text, "\n", StoresTable(status));
  if (!status.pairs().empty()) absl::StrAppend(&text, "\n", PairsTable(status));
  return text;
}

absl::StatusOr<std::string> ToJson(const v1::StatusResponse& status, bool one_line) {
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = !one_line;
  options.always_print_primitive_fields = true;
  options.preserve_proto_field_names = true;
  std::string json;
  const auto printed = google::protobuf::util::MessageToJsonString(status, &json, options);
  if (!printed.ok()) return absl::InternalError(std::string(printed.message()));
  if (one_line) json += "\n";
  return json;
}

absl::StatusOr<int> RunStatus(const ClusterFlags& flags) {
  if (flags.watch) BlockSignals();
  Asker asker(flags.server);
  while (true) {
    ASSIGN_OR_RETURN(const v1::StatusResponse status, asker.Status());
    std::string text = ToText(status);
    if (flags.json) {
      ASSIGN_OR_RETURN(text, ToJson(status, flags.watch));
    } else if (flags.watch && StdoutIsTerminal()) {
      text = "\x1b[H\x1b[2J" + text;
    }
    WriteStdout(text);
    if (!flags.watch) return kExitOk;
    if (WaitForSignalFor(std::chrono::seconds(1))) return kExitOk;
  }
}

absl::StatusOr<int> RunExplain(const ClusterFlags& flags) {
  ASSIGN_OR_RETURN(const std::string text, Asker(flags.server).Explain(flags.request));
  WriteStdout(text);
  return kExitOk;
}

CLI::App* Add(CLI::App& app, Run& run, const std::shared_ptr<ClusterFlags>& flags, const char* name,
              const char* what, absl::StatusOr<int> (*command)(const ClusterFlags&)) {
  CLI::App* const sub = app.add_subcommand(name, what);
  sub->add_option("--server", flags->server, "Address of the coordinator, HOST:PORT")->required();
  sub->callback([flags, command, &run] { run = [flags, command] { return command(*flags); }; });
  return sub;
}

}  // namespace

void RegisterStatus(CLI::App& app, Run& run) {
  const auto flags = std::make_shared<ClusterFlags>();
  CLI::App* const sub = Add(app, run, flags, "status",
                            "Shows the workers, stores, pairs and models of a cluster", RunStatus);
  sub->add_flag("--json", flags->json, "As JSON; with --watch one object a line");
  sub->add_flag("--watch", flags->watch, "Again every second, until interrupted");
  sub->footer("Example:\n  penstock status --server 127.0.0.1:7070");
}

void RegisterExplain(CLI::App& app, Run& run) {
  const auto flags = std::make_shared<ClusterFlags>();
  CLI::App* const sub = Add(app, run, flags, "explain",
                            "Tells why a request went to the workers that it went to", RunExplain);
  sub->add_option("request", flags->request, "The request's id")->required();
  sub->footer("Example:\n  penstock explain --server 127.0.0.1:7070 request-17");
}

}  // namespace penstock::cli
