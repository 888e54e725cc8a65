// SPDX-License-Identifier: Apache-2.0
// penstock up: a cluster from a deployment file, until a signal ends it.
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <future>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "CLI/App.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/device_name.h"
#include "base/epoll_loop.h"
#include "base/kv_spec.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "cli/cluster_state_client.h"
#include "cli/commands.h"
#include "cli/deployment_file.h"
#include "cli/flags.h"
#include "cli/gpu_pairs.h"
#include "cli/gpu_placement.h"
#include "cli/terminal.h"
#include "cli/worker_memory.h"
#include "engine/local_model.h"
#include "launch/cluster.h"
#include "launch/log_printer.h"
#include "launch/only_hosts.h"
#include "launch/schema.h"
#include "nlohmann/json.hpp"

namespace penstock::cli {
namespace {

struct UpFlags {
  std::string file;
  std::string host;
  std::vector<std::string> only_hosts;
  std::string ready_file;
  bool until_eof = false;
  bool dry_run = false;
  bool help_file = false;
  ModelFlags device;
  launch::CommandOptions commands;  // What the commands of this program know.
};

// What is not in the file, and a start or a dry run tells.
struct Notes {
  std::vector<std::string> placed;  // PlaceWorkers'.
  std::string not_placed;           // Why nothing was placed; empty: it was, or nobody asked.
};

absl::Status WriteReadyFile(const std::string& path, const launch::Cluster& cluster) {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  if (const std::optional<launch::Endpoint> front = cluster.front()) {
    json["grpc"] = front->grpc;
    if (!front->http.empty()) json["http"] = front->http;
    if (!front->metrics.empty()) json["metrics"] = front->metrics;
  }
  json["processes"] = nlohmann::ordered_json::array();
  for (const launch::Endpoint& endpoint : cluster.endpoints()) {
    json["processes"].push_back({{"name", endpoint.name},
                                 {"role", launch::ToString(endpoint.role)},
                                 {"pid", endpoint.pid},
                                 {"grpc", endpoint.grpc}});
    if (!endpoint.metrics.empty()) json["processes"].back()["metrics"] = endpoint.metrics;
  }
  const std::string part = absl::StrCat(path, ".part");
  std::ofstream file(part);
  file << json.dump(1) << "\n";
  file.close();
  if (!file || std::rename(part.c_str(), path.c_str()) != 0) {
    std::remove(part.c_str());
    return absl::PermissionDeniedError(absl::StrCat("cannot write ", path));
  }
  return absl::OkStatus();
}

// What somebody who has just started a cluster wants to know.
std::string Welcome(const launch::Deployment& deployment, const launch::Cluster& cluster) {
  std::vector<std::string> names;
  for (const launch::Model& model : deployment.models) names.push_back(model.name);
  std::string text = absl::StrCat("ready: ", absl::StrJoin(names, ", "), "\n");
  const std::optional<launch::Endpoint> front = cluster.front();
  if (!front) return text;
  const std::string model =
      names.size() > 1 ? absl::StrCat("--model ", names[0], " ") : std::string();
  absl::StrAppend(&text, "  gRPC     ", front->grpc, "\n");
  if (!front->http.empty()) absl::StrAppend(&text, "  HTTP     ", front->http, "\n");
  if (!front->metrics.empty()) absl::StrAppend(&text, "  metrics  ", front->metrics, "\n");
  absl::StrAppend(&text, "  try      penstock generate --server ", front->grpc, " ", model,
                  "\"Why is the sky blue?\"\n");
  return text;
}

// SIGINT, SIGTERM and SIGHUP as a descriptor. Made before any thread is, so that all leave them be.
class SignalWatch {
 public:
  SignalWatch() {
    sigset_t signals;
    ::sigemptyset(&signals);
    for (const int signal : {SIGINT, SIGTERM, SIGHUP}) ::sigaddset(&signals, signal);
    ::pthread_sigmask(SIG_BLOCK, &signals, nullptr);
    fd_.Reset(::signalfd(-1, &signals, SFD_NONBLOCK | SFD_CLOEXEC));
  }
  int fd() const { return fd_.get(); }
  // How many came since the last call.
  int Take() {
    int count = 0;
    signalfd_siginfo info;
    while (::read(fd_.get(), &info, sizeof(info)) == sizeof(info)) ++count;
    return count;
  }

 private:
  UniqueFd fd_;
};

// One run, on the loop but for Wait.
class UpRun {
 public:
  UpRun(EpollLoop& loop, SignalWatch& signals, const UpFlags& flags, const Notes& notes,
        launch::Cluster::Options options)
      : loop_(loop),
        signals_(signals),
        flags_(flags),
        deployment_(options.deployment),
        printer_(STDERR_FILENO, Names(options), !StderrStyle().bold.empty()) {
    loop_.Run([&] {
      for (const std::string& line : notes.placed) Say(line);
      Start(std::move(options));
    });
  }
  ~UpRun() {
    loop_.Run([&] {
      loop_.Unwatch(signals_.fd());
      StopReading();
      cluster_.reset();
    });
    if (!flags_.ready_file.empty() && wrote_ready_file_) std::remove(flags_.ready_file.c_str());
  }
  absl::StatusOr<int> Wait() { return result_.get_future().get(); }

 private:
  static std::vector<std::string> Names(const launch::Cluster::Options& options) {
    std::vector<std::string> names = {kOwnName};
    for (const launch::Process& process :
         launch::PlanProcesses(options.deployment, options.host, options.commands, "")) {
      names.push_back(process.name);
    }
    return names;
  }

  void Start(launch::Cluster::Options options) {
    const absl::Status watched =
        loop_.Watch(signals_.fd(), EPOLLIN, [this](std::uint32_t) { OnSignal(); });
    if (!watched.ok()) return Finish(watched);
    if (const absl::Status reads = StartReading(); !reads.ok()) return Finish(reads);
    absl::StatusOr<std::unique_ptr<launch::Cluster>> cluster = launch::Cluster::Start(
        loop_, std::move(options),
        {.on_line = [this](const std::string& name,
                           std::string_view line) { printer_.Print(name, line); },
         .on_progress = [this](const std::string& text) { Say(text); },
         .on_ready = [this] { OnReady(); },
         .on_failed = [this](const absl::Status& why) { Stop(why); }});
    if (!cluster.ok()) return Finish(cluster.status());
    cluster_ = *std::move(cluster);
  }

  void Say(const std::string& text) {
    for (const absl::string_view line : absl::StrSplit(text, '\n'))
      printer_.Print(kOwnName, ToStd(line));
  }

  void OnReady() {
    if (stopping_) return;
    if (!flags_.ready_file.empty()) {
      const absl::Status written = WriteReadyFile(flags_.ready_file, *cluster_);
      if (!written.ok()) return Stop(written);
      wrote_ready_file_ = true;
    }
    if (std::exchange(welcomed_, true)) return;
    WriteStdout(Welcome(deployment_, *cluster_));
  }

  void OnSignal() {
    for (int count = signals_.Take(); count > 0; --count) {
      if (!stopping_) {
        Say("ends; once more to kill what still runs");
        Stop(absl::OkStatus());
      } else if (cluster_ != nullptr) {
        killed_ = true;
        cluster_->Kill();
      }
    }
  }

  absl::Status StartReading() {
    if (!flags_.until_eof) return absl::OkStatus();
    const absl::Status watched =
        loop_.Watch(STDIN_FILENO, EPOLLIN, [this](std::uint32_t) { OnInput(); });
    reads_ = watched.ok();
    if (reads_) return absl::OkStatus();
    return absl::InvalidArgumentError(
        "--until-eof: standard input must be a pipe, a socket or a terminal");
  }
  void StopReading() {
    if (std::exchange(reads_, false)) loop_.Unwatch(STDIN_FILENO);
  }
  // What is there is thrown away; only its end matters.
  void OnInput() {
    char bytes[4096];
    const ssize_t got = ::read(STDIN_FILENO, bytes, sizeof(bytes));
    if (got > 0 || (got < 0 && (errno == EINTR || errno == EAGAIN))) return;
    StopReading();
    if (stopping_) return;
    Say("ends: standard input has ended");
    Stop(absl::OkStatus());
  }

  void Stop(const absl::Status& why) {
    if (cluster_ == nullptr || std::exchange(stopping_, true)) return;
    if (!why.ok()) Say(absl::StrCat("fails: ", why.message()));
    why_ = why;
    cluster_->Stop([this] { Finish(why_); });
  }

  void Finish(const absl::Status& why) {
    if (why.ok()) return result_.set_value(killed_ ? kExitInterrupted : kExitOk);
    result_.set_value(why);
  }

  static constexpr const char* kOwnName = "up";

  EpollLoop& loop_;
  SignalWatch& signals_;
  const UpFlags& flags_;
  const launch::Deployment deployment_;
  launch::LogPrinter printer_;
  std::unique_ptr<launch::Cluster> cluster_;
  bool welcomed_ = false;
  bool wrote_ready_file_ = false;
  bool stopping_ = false;
  bool reads_ = false;  // Standard input.
  bool killed_ = false;
  absl::Status why_;
  std::promise<absl::StatusOr<int>> result_;
};

// What a worker on GPUs takes of their memory, and what is wrong with one that is split, as a
// comment; nothing of others.
std::string MemoryComment(const launch::Cluster::Options& options, const std::string& name) {
  const auto worker = std::ranges::find(options.deployment.workers, name, &launch::Worker::name);
  if (worker == options.deployment.workers.end()) return "";
  const bool gpus = GpusOf(worker->device).has_value();
  if (!gpus && worker->tp_sum == 1 && worker->pp == 1) return "";
  const std::string& model_name = options.deployment.models[worker->model].name;
  const auto path = options.commands.model_paths.find(model_name);
  if (path == options.commands.model_paths.end()) return "";
  const auto model = engine::LocalModel::Open(path->second);
  if (!model.ok()) return absl::StrCat("# ", name, ": ", model.status().message(), "\n");
  const KvSpec spec = (*model)->architecture().MakeKvSpec(KvDtype::kF16);
  const std::size_t links = NcclLinkBytes(options.deployment, *worker, spec);
  const auto stages =
      PlanWorkerMemory(*worker, options.deployment.block_tokens, links, **model, SIZE_MAX);
  if (!stages.ok()) return absl::StrCat("# ", name, ": ", stages.status().message(), "\n");
  if (!gpus) return "";
  std::string text = absl::StrCat("# ", DescribeGpuMemory(*worker, *stages), "\n");
  if (links == 0 || worker->role != launch::Role::kPrefill) return text;
  for (const launch::Worker& decode : options.deployment.workers) {
    if (!IsGpuPair(*worker, decode) || !WhyNotNccl(*worker, decode).empty()) continue;
    const absl::StatusOr<GpuLanes> lanes = LanesOf(spec, *worker, decode);
    if (!lanes.ok()) continue;  // Said of the other one.
    absl::StrAppend(&text, "# KV from ", name, " to ", decode.name, " by nccl: ", lanes->size(),
                    lanes->size() == 1 ? " pair of GPUs\n" : " pairs of GPUs\n");
  }
  return text;
}

void PrintCommands(const launch::Cluster::Options& options, const Notes& notes) {
  for (const std::string& line : notes.placed) WriteStdout(absl::StrCat("# ", line, "\n"));
  if (!notes.not_placed.empty()) {
    WriteStdout(
        absl::StrCat("# GPUs for `device: cuda` are chosen where they are; here the first ones "
                     "stand for them: ",
                     notes.not_placed, "\n"));
  }
  const std::string coordinator = options.deployment.CoordinatorAddress().value_or(
      absl::StrCat(options.deployment.hosts[options.deployment.coordinator_host].address, ":PORT"));
  launch::CommandOptions commands = options.commands;
  commands.folder = "FOLDER";
  commands.socket_folder = "FOLDER";
  for (const launch::Process& process :
       launch::PlanProcesses(options.deployment, options.host, commands, coordinator)) {
    WriteStdout(absl::StrCat(MemoryComment(options, process.name),
                             launch::ShellLine(process.arguments), "\n"));
  }
}

// What each worker on GPUs is told to keep for links of kind nccl.
void AddLinkBytes(launch::Cluster::Options& options) {
  const std::vector<std::string>& kinds = options.deployment.transfer;
  if (std::ranges::find(kinds, "nccl") == kinds.end()) return;
  std::map<std::string, KvSpec> specs;
  for (const auto& [name, path] : options.commands.model_paths) {
    const auto model = engine::LocalModel::Open(path);
    // Where it cannot be read its workers do not start, and say so.
    if (model.ok()) specs[name] = (*model)->architecture().MakeKvSpec(KvDtype::kF16);
  }
  for (const launch::Worker& worker : options.deployment.workers) {
    const auto spec = specs.find(options.deployment.models[worker.model].name);
    if (!GpusOf(worker.device) || spec == specs.end()) continue;
    options.commands.link_bytes[worker.name] =
        NcclLinkBytes(options.deployment, worker, spec->second);
  }
}

absl::StatusOr<int> Up(const UpFlags& flags) {
  if (flags.help_file) {
    WriteStdout(launch::SchemaReference());
    return kExitOk;
  }
  if (flags.file.empty()) {
    return absl::InvalidArgumentError("a deployment file is missing, such as deploy/local.yaml");
  }
  launch::Cluster::Options options;
  options.commands = flags.commands;
  ASSIGN_OR_RETURN(options.deployment, ReadDeploymentFile(flags.file));
  UseDevice(flags.device, options.deployment, options.commands);
  if (!flags.only_hosts.empty()) {
    ASSIGN_OR_RETURN(options.deployment, launch::OnlyHosts(options.deployment, flags.only_hosts));
  }
  ASSIGN_OR_RETURN(options.host, ChooseHost(options.deployment, flags.host));
  std::error_code error;
  options.commands.program = std::filesystem::read_symlink("/proc/self/exe", error).string();
  options.commands.cpus_available = engine::AvailableCpus();
  absl::StatusOr<std::map<std::string, std::string>> paths =
      ResolveModels(options.deployment, flags.file, options.host);
  if (paths.ok()) options.commands.model_paths = *std::move(paths);
  ASSIGN_OR_RETURN(options.commands.tenants, ReadTenants(options.deployment, options.host));
  Notes notes;
  const absl::StatusOr<std::vector<std::string>> placed =
      PlaceWorkersApart(flags.device.cuda_plugin, options.host, options.deployment);
  if (!placed.ok() && !flags.dry_run) {
    return absl::Status(
        placed.status().code(),
        absl::StrCat("GPUs for `device: cuda` cannot be chosen: ", placed.status().message(),
                     "; mend that, or take device: cpu"));
  }
  if (placed.ok()) notes.placed = *placed;
  if (!placed.ok()) notes.not_placed = ToStd(placed.status().message());
  AddLinkBytes(options);
  if (flags.dry_run) {
    if (!paths.ok()) {
      absl::FPrintF(stderr, "warning: memory is planned once the models are here: %s\n",
                    paths.status().message());
    }
    PrintCommands(options, notes);
    return kExitOk;
  }
  RETURN_IF_ERROR(paths.status());
  SignalWatch signals;
  ASSIGN_OR_RETURN(const std::unique_ptr<EpollLoop> loop, EpollLoop::Make("up"));
  options.ask = MakeClusterStateClient(*loop);
  UpRun run(*loop, signals, flags, notes, std::move(options));
  return run.Wait();
}

// Whether each of these commands has that flag.
bool AllKnow(const CLI::App& app, const std::vector<std::string>& commands, const char* flag) {
  std::size_t know = 0;
  for (const CLI::App* sub : app.get_subcommands([](const CLI::App*) { return true; })) {
    const bool asked =
        std::find(commands.begin(), commands.end(), sub->get_name()) != commands.end();
    know += asked && sub->get_option_no_throw(flag) != nullptr ? 1 : 0;
  }
  return know == commands.size();
}

}  // namespace

void RegisterUp(CLI::App& app, Run& run) {
  const auto flags = std::make_shared<UpFlags>();
  CLI::App* const sub =
      app.add_subcommand("up", "Starts a cluster from a deployment file, and keeps it running");
  sub->footer(
      "Examples:\n"
      "  penstock up deploy/local.yaml\n"
      "  penstock up cluster.yaml --host b     # what the file puts on the host b\n"
      "  ssh b penstock up cluster.yaml --host b --until-eof\n\n"
      "Ends everything on Ctrl-C; at once on a second one.");
  sub->add_option("FILE", flags->file, "The deployment file (YAML); deploy/README.md explains it");
  sub->add_option("--host", flags->host, "Start only what the file puts on this one of its hosts");
  sub->add_option("--only-hosts", flags->only_hosts,
                  "A smaller cluster: without what the file puts on other hosts than these, with "
                  "commas between them; the same on each")
      ->delimiter(',');
  sub->add_flag("--until-eof", flags->until_eof,
                "End when standard input ends: over ssh, which leaves a command running when it is "
                "itself killed");
  sub->add_option(
      "--ready-file", flags->ready_file,
      "Written once the cluster is ready, and removed at the end: endpoints and process "
      "ids, as JSON");
  sub->add_flag("--dry-run", flags->dry_run,
                "Only print the commands that would be run, and what workers on GPUs need there");
  AddDeviceFlags(*sub, flags->device);
  sub->add_flag("--help-file", flags->help_file, "Explain every key of a deployment file");
  sub->callback([flags, &app, &run] {
    flags->commands.http = AllKnow(app, {"coordinator", "gateway"}, "--http-port");
    flags->commands.metrics =
        AllKnow(app, {"coordinator", "gateway", "prefill", "decode", "kvstore"}, "--metrics-port");
    run = [flags] { return Up(*flags); };
  });
}

}  // namespace penstock::cli
