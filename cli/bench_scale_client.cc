// SPDX-License-Identifier: Apache-2.0
#include "cli/bench_scale_client.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <deque>
#include <filesystem>
#include <fstream>
#include <future>
#include <iterator>
#include <memory>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/status.h"
#include "cli/bench_hosts_client.h"
#include "cli/bench_run_client.h"
#include "cli/bench_scale.h"
#include "cli/cluster_state_client.h"
#include "cli/deployment_file.h"
#include "cli/flags.h"
#include "cli/terminal.h"
#include "engine/local_model.h"
#include "launch/cluster.h"
#include "nlohmann/json.hpp"

namespace penstock::cli {
namespace {

constexpr std::size_t kLinesKept = 20;

struct ScaleFlags {
  std::string file;
  std::string workers = "1,2,4,8,16";
  std::string ratio = "1:1";
  std::string hosts;
  std::string on = "ssh {host}";
  ModelFlags device;
  BenchFlags bench;
  std::string json;
  std::string svg;
};

// The deployment's first worker of each role, as often as `size` says; its others are left out.
absl::StatusOr<std::vector<launch::Worker>> WorkersOf(const launch::Deployment& deployment,
                                                      const ScaleSize& size) {
  std::vector<launch::Worker> workers;
  for (const auto& [role, count] : {std::pair(launch::Role::kPrefill, size.prefill),
                                    std::pair(launch::Role::kDecode, size.decode)}) {
    const launch::Worker* like = nullptr;
    for (const launch::Worker& worker : deployment.workers) {
      if (worker.role == role && like == nullptr) like = &worker;
    }
    if (like == nullptr) return absl::InvalidArgumentError("the file has no worker of a role");
    for (int i = 1; i <= count; ++i) {
      launch::Worker worker = *like;
      worker.name = absl::StrCat(ToAbsl(launch::ToString(role)), "-", i);
      worker.cpus.clear();  // Workers share all of them.
      if (worker.threads == 0) worker.threads = 1;
      workers.push_back(std::move(worker));
    }
  }
  return workers;
}

// CPU time of a process so far; 0 where it is gone.
double CpuSecondsOf(pid_t pid) {
  std::ifstream file(absl::StrCat("/proc/", pid, "/stat"));
  std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const std::size_t name_end = text.rfind(')');  // A name may hold anything.
  if (name_end == std::string::npos) return 0;
  const std::vector<std::string> fields = [&] {
    std::vector<std::string> list;
    std::istringstream rest(text.substr(name_end + 1));
    for (std::string field; rest >> field;) list.push_back(field);
    return list;
  }();
  // utime and stime are fields 14 and 15; the state, after the name, is the third.
  if (fields.size() < 13) return 0;
  const double ticks =
      std::strtod(fields[11].c_str(), nullptr) + std::strtod(fields[12].c_str(), nullptr);
  return ticks / static_cast<double>(::sysconf(_SC_CLK_TCK));
}

// One cluster, from its start to its end. Not on the loop's thread.
class ScaleCluster {
 public:
  ScaleCluster(EpollLoop& loop, launch::Cluster::Options options) : loop_(loop) {
    loop_.Run([&] {
      auto cluster = launch::Cluster::Start(
          loop_, std::move(options),
          {.on_line = [this](const std::string& name, std::string_view line) { Keep(name, line); },
           .on_progress = [](const std::string&) {},
           .on_ready = [this] { Settle(absl::OkStatus()); },
           .on_failed = [this](const absl::Status& why) { Settle(why); }});
      if (!cluster.ok()) return Settle(cluster.status());
      cluster_ = *std::move(cluster);
    });
  }
  ~ScaleCluster() {
    // Shared: else the waiter could destroy it while it is being set.
    const auto over = std::make_shared<std::promise<void>>();
    loop_.Run([&] {
      if (cluster_ == nullptr) return over->set_value();
      cluster_->Stop([over] { over->set_value(); });
    });
    over->get_future().wait();
    loop_.Run([&] { cluster_.reset(); });
  }

  // Waits until a request could be placed: the address of its gateway.
  absl::StatusOr<std::string> Address() {
    RETURN_IF_ERROR(settled_.get_future().get());
    std::string address;
    loop_.Run([&] {
      if (cluster_->front()) address = cluster_->front()->grpc;
    });
    if (address.empty()) return absl::InvalidArgumentError("the file puts no gateway on this host");
    return address;
  }
  double CpuSeconds() {
    double seconds = 0;
    loop_.Run([&] {
      for (const launch::Endpoint& endpoint : cluster_->endpoints()) {
        seconds += CpuSecondsOf(endpoint.pid);
      }
    });
    return seconds;
  }

 private:
  void Keep(const std::string& name, std::string_view line) {
    lines_.push_back(absl::StrCat(name, ": ", ToAbsl(line)));
    if (lines_.size() > kLinesKept) lines_.pop_front();
  }
  // The first one counts; a cluster may become ready again.
  void Settle(const absl::Status& status) {
    if (std::exchange(is_settled_, true)) return;
    if (status.ok()) return settled_.set_value(status);
    settled_.set_value(absl::Status(
        status.code(), absl::StrCat(status.message(), "\n", absl::StrJoin(lines_, "\n"))));
  }

  EpollLoop& loop_;
  // On the loop.
  std::unique_ptr<launch::Cluster> cluster_;
  std::deque<std::string> lines_;
  bool is_settled_ = false;
  std::promise<absl::Status> settled_;
};

absl::StatusOr<ScalePoint> RunSize(const ScaleFlags& flags, const ScaleSize& size,
                                   launch::Cluster::Options options, EpollLoop& loop,
                                   InterruptWatch& interrupts) {
  ASSIGN_OR_RETURN(options.deployment.workers, WorkersOf(options.deployment, size));
  BenchFlags bench = flags.bench;
  bench.requests *= size.workers();
  bench.concurrency *= size.workers();
  bench.rate *= size.workers();
  ASSIGN_OR_RETURN(std::vector<BenchRequest> requests, MakeRequests(bench));
  ScaleCluster cluster(loop, std::move(options));
  ASSIGN_OR_RETURN(const std::string address, cluster.Address());
  const double cpu = cluster.CpuSeconds();
  const MonoTime begin = SteadyClock().Now();
  ScalePoint point = {.size = size};
  ASSIGN_OR_RETURN(point.report, RunBench(address, bench, std::move(requests), loop, interrupts));
  const double seconds = std::max(1e-9, ToSeconds(SteadyClock().Now() - begin));
  point.cpu_cores = (cluster.CpuSeconds() - cpu) / seconds + point.report.client_cores;
  return point;
}

absl::StatusOr<ScaleReport> ScaleByWorkers(const ScaleFlags& flags, EpollLoop& loop,
                                           InterruptWatch& interrupts) {
  ASSIGN_OR_RETURN(const std::vector<ScaleSize> sizes, ParseSizes(flags.workers, flags.ratio));
  launch::Cluster::Options options;
  ASSIGN_OR_RETURN(options.deployment, ReadDeploymentFile(flags.file));
  ASSIGN_OR_RETURN(options.host, ChooseHost(options.deployment, ""));
  ASSIGN_OR_RETURN(options.commands.model_paths,
                   ResolveModels(options.deployment, flags.file, options.host));
  ASSIGN_OR_RETURN(options.commands.tenants, ReadTenants(options.deployment, options.host));
  std::error_code error;
  options.commands.program = std::filesystem::read_symlink("/proc/self/exe", error).string();
  options.commands.cpus_available = engine::AvailableCpus();
  options.commands.http = options.commands.metrics = false;
  UseDevice(flags.device, options.deployment, options.commands);
  options.ask = MakeClusterStateClient(loop);
  ScaleReport report = {.cpus = engine::AvailableCpus()};
  for (const ScaleSize& size : sizes) {
    absl::FPrintF(stderr, "%d prefill and %d decode workers\n", size.prefill, size.decode);
    ASSIGN_OR_RETURN(ScalePoint point, RunSize(flags, size, options, loop, interrupts));
    if (const std::string warning = ClientWarning(point.report); !warning.empty()) {
      absl::FPrintF(stderr, "warning: %s\n", warning);
    }
    report.points.push_back(std::move(point));
  }
  return report;
}

absl::StatusOr<int> Scale(const ScaleFlags& flags) {
  if (!flags.bench.trace.empty()) {
    return absl::InvalidArgumentError(
        "--trace has its own load; bench scale wants --concurrency or --rate for each worker");
  }
  InterruptWatch interrupts;
  ASSIGN_OR_RETURN(const std::unique_ptr<EpollLoop> loop, EpollLoop::Make("bench"));
  ASSIGN_OR_RETURN(const ScaleReport report, flags.hosts.empty()
                                                 ? ScaleByWorkers(flags, *loop, interrupts)
                                                 : ScaleByHosts({.file = flags.file,
                                                                 .hosts = flags.hosts,
                                                                 .on = flags.on,
                                                                 .device = flags.device,
                                                                 .bench = flags.bench},
                                                                *loop, interrupts));
  WriteStdout(ScaleText(report));
  if (!flags.json.empty()) {
    RETURN_IF_ERROR(WriteWholeFile(flags.json, ScaleJson(report).dump(1) + "\n"));
  }
  if (!flags.svg.empty()) RETURN_IF_ERROR(WriteWholeFile(flags.svg, ScaleSvg(report)));
  return kExitOk;
}

}  // namespace

void RegisterBenchScale(CLI::App& bench, Run& run) {
  const auto flags = std::make_shared<ScaleFlags>();
  CLI::App* const sub = bench.add_subcommand(
      "scale", "Starts clusters of growing size, with the same load for each worker");
  sub->footer(
      "The file's first prefill and first decode worker are what is multiplied; --requests,\n"
      "--concurrency and --rate are for each worker. With --device paced workers wait instead of\n"
      "computing, so that there may be more of them than cores.\n\n"
      "With --hosts the file is one of several hosts, and clusters are made of the first so many "
      "of\n"
      "them, each started from here by a command that the words of --on begin; this program and "
      "the\n"
      "file must be there under the same paths. The CPU column is then that of this machine.\n"
      "  penstock bench scale cluster.yaml --hosts 1,2,4 --on 'ssh {host}'");
  sub->add_option("FILE", flags->file, "The deployment file (YAML)")->required();
  CLI::Option* const workers =
      sub->add_option("--workers", flags->workers, "How many, one cluster after the other")
          ->capture_default_str();
  sub->add_option("--ratio", flags->ratio, "Prefill to decode workers; 0:1 for decode alone")
      ->capture_default_str();
  CLI::Option* const hosts =
      sub->add_option("--hosts", flags->hosts,
                      "How many of the file's hosts, one cluster after the other, such as 1,2,4")
          ->excludes(workers);
  sub->add_option("--on", flags->on,
                  "What runs a command on a host: {host} is its name, {address} its address")
      ->needs(hosts)
      ->capture_default_str();
  AddDeviceFlags(*sub, flags->device);
  AddBenchFlags(*sub, flags->bench);
  sub->add_option("--json", flags->json, "Write all figures to this file");
  sub->add_option("--svg", flags->svg, "Draw goodput and efficiency to this file");
  sub->callback([flags, &run] { run = [flags] { return Scale(*flags); }; });
}

}  // namespace penstock::cli
