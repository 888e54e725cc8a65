// SPDX-License-Identifier: Apache-2.0
#include "cli/bench_hosts_client.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <future>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/status.h"
#include "cli/bench_hosts.h"
#include "cli/cluster_state_client.h"
#include "cli/deployment_file.h"
#include "engine/local_model.h"
#include "launch/child.h"
#include "launch/line_buffer.h"
#include "launch/only_hosts.h"

namespace penstock::cli {
namespace {

constexpr std::size_t kLinesKept = 20;
constexpr Duration kReadyWithin = std::chrono::minutes(10);  // Models may be large.
constexpr Duration kLookEvery = std::chrono::milliseconds(100);
constexpr Duration kEndWithin = std::chrono::seconds(45);  // Above the grace of what `up` ends.

// `penstock up` on one host, until its input is closed. On the loop.
class HostCommand {
 public:
  // `on_end` is called once, when it has ended.
  HostCommand(EpollLoop& loop, std::string host, std::function<void()> on_end)
      : loop_(loop),
        host_(std::move(host)),
        on_end_(std::move(on_end)),
        lines_(kLinesKept, [](std::string_view) {}) {}
  ~HostCommand() {
    if (!child_.pidfd) return;
    Kill();
    OnExit();
  }

  absl::Status Start(const std::vector<std::string>& command) {
    int pipe[2];
    if (::pipe2(pipe, O_CLOEXEC) != 0) return absl::UnavailableError("no descriptors are left");
    const UniqueFd read_end(pipe[0]);
    input_.Reset(pipe[1]);
    ASSIGN_OR_RETURN(child_, launch::Spawn(command, {}, read_end.get()));
    absl::Status watched =
        loop_.Watch(child_.output.get(), EPOLLIN, [this](std::uint32_t) { OnOutput(); });
    if (!watched.ok()) child_.output.Reset();
    watched.Update(loop_.Watch(child_.pidfd.get(), EPOLLIN, [this](std::uint32_t) { OnExit(); }));
    watched_ = watched.ok();
    return watched;
  }
  void CloseInput() { input_.Reset(); }
  void Kill() {
    if (child_.pidfd) ::kill(-child_.pid, SIGKILL);
  }
  bool runs() const { return static_cast<bool>(child_.pidfd); }
  std::string last_lines() const {
    return absl::StrCat(host_, " ended; its last lines:\n",
                        absl::StrJoin(lines_.last_lines(), "\n"));
  }

 private:
  void OnOutput() {
    char buffer[16384];
    const ssize_t got = ::read(child_.output.get(), buffer, sizeof(buffer));
    if (got > 0) return lines_.Add({buffer, static_cast<std::size_t>(got)});
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    lines_.End();
    loop_.Unwatch(child_.output.get());
    child_.output.Reset();
  }
  void OnExit() {
    while (::waitpid(child_.pid, nullptr, 0) < 0 && errno == EINTR) {
    }
    constexpr int kReadsMax = 64;  // Somebody else may hold the pipe, and write for ever.
    for (int i = 0; i < kReadsMax && child_.output; ++i) OnOutput();
    if (child_.output) loop_.Unwatch(child_.output.get());
    if (watched_) loop_.Unwatch(child_.pidfd.get());
    child_ = {};
    on_end_();
  }

  EpollLoop& loop_;
  const std::string host_;
  const std::function<void()> on_end_;
  launch::LineBuffer lines_;
  launch::Child child_;
  UniqueFd input_;
  bool watched_ = false;
};

// All hosts of one cluster, from their start to their end. Not on the loop's thread.
class HostCluster {
 public:
  explicit HostCluster(EpollLoop& loop) : loop_(loop) {}
  ~HostCluster() {
    const auto over = std::make_shared<std::promise<void>>();
    loop_.Run([&] {
      over_ = over;
      for (const auto& command : commands_) command->CloseInput();
      timer_ = loop_.At(loop_.Now() + kEndWithin, [this] {
        for (const auto& command : commands_) command->Kill();
      });
      TellIfOver();
    });
    over->get_future().wait();
    loop_.Run([&] {
      loop_.CancelTimer(timer_);
      commands_.clear();
    });
  }

  absl::Status Start(const std::string& host, const std::vector<std::string>& command) {
    absl::Status status;
    loop_.Run([&] {
      commands_.push_back(std::make_unique<HostCommand>(loop_, host, [this] { TellIfOver(); }));
      status = commands_.back()->Start(command);
    });
    return status;
  }
  // UNAVAILABLE once one has ended by itself.
  absl::Status Check() {
    absl::Status status;
    loop_.Run([&] {
      for (const auto& command : commands_) {
        if (!command->runs()) status = absl::UnavailableError(command->last_lines());
      }
    });
    return status;
  }

 private:
  void TellIfOver() {
    const bool runs = std::any_of(commands_.begin(), commands_.end(),
                                  [](const auto& command) { return command->runs(); });
    if (over_ != nullptr && !runs) std::exchange(over_, nullptr)->set_value();
  }

  EpollLoop& loop_;
  // On the loop.
  std::vector<std::unique_ptr<HostCommand>> commands_;
  std::shared_ptr<std::promise<void>>
      over_;  // Shared: else who waits could destroy it while it is set.
  Loop::TimerId timer_{};
};

absl::StatusOr<launch::ClusterState> AskNow(EpollLoop& loop, const launch::Cluster::Questions& ask,
                                            const std::string& address) {
  const auto answer = std::make_shared<std::promise<absl::StatusOr<launch::ClusterState>>>();
  loop.Run([&] {
    ask.coordinator(address, [answer](absl::StatusOr<launch::ClusterState> state) {
      answer->set_value(std::move(state));
    });
  });
  return answer->get_future().get();
}

void Pause(EpollLoop& loop, Duration pause) {
  const auto rung = std::make_shared<std::promise<void>>();
  loop.Run([&] { loop.At(loop.Now() + pause, [rung] { rung->set_value(); }); });
  rung->get_future().wait();
}

absl::Status AwaitWhole(EpollLoop& loop, InterruptWatch& interrupts, HostCluster& cluster,
                        const launch::Deployment& deployment) {
  const launch::Cluster::Questions ask = MakeClusterStateClient(loop);
  const std::string address = *deployment.CoordinatorAddress();
  for (const MonoTime patience = loop.Now() + kReadyWithin;;) {
    RETURN_IF_ERROR(cluster.Check());
    const absl::StatusOr<launch::ClusterState> state = AskNow(loop, ask, address);
    const std::string missing =
        state.ok() ? NotWhole(deployment, *state) : std::string(state.status().message());
    if (missing.empty()) return absl::OkStatus();
    if (interrupts.Requested()) return absl::CancelledError("interrupted");
    if (loop.Now() > patience) {
      return absl::DeadlineExceededError(
          absl::StrCat("the cluster did not become ready: ", missing));
    }
    Pause(loop, kLookEvery);
  }
}

// What all CPUs of this machine have done so far, for anybody.
double BusySeconds() {
  std::ifstream file("/proc/stat");
  std::string name;
  // Waiting for a disk is idleness, too; what a hypervisor stole was not ours to use.
  double user = 0, nice = 0, system = 0, idle = 0, wait = 0, interrupts = 0, soft_interrupts = 0;
  file >> name >> user >> nice >> system >> idle >> wait >> interrupts >> soft_interrupts;
  return (user + nice + system + interrupts + soft_interrupts) /
         static_cast<double>(::sysconf(_SC_CLK_TCK));
}

std::vector<std::string> UpCommand(const std::string& program, const std::string& file,
                                   const launch::Deployment& deployment, const launch::Host& host,
                                   const ModelFlags& device) {
  std::vector<std::string> names;
  for (const launch::Host& one : deployment.hosts) names.push_back(one.name);
  std::vector<std::string> command = {
      program,      "up", file, "--host", host.name, "--only-hosts", absl::StrJoin(names, ","),
      "--until-eof"};
  if (device.device != "cpu") command.insert(command.end(), {"--device", device.device});
  for (std::string& word : DeviceArguments(device)) command.push_back(std::move(word));
  return command;
}

// Not the reader of `options` alone: `deployment` is what is left of the file.
absl::StatusOr<ScalePoint> RunHosts(const HostScaleOptions& options, const std::string& program,
                                    const std::string& file, const launch::Deployment& deployment,
                                    EpollLoop& loop, InterruptWatch& interrupts) {
  ScalePoint point = {.hosts = static_cast<int>(deployment.hosts.size())};
  point.size = {.prefill = 0, .decode = 0};
  for (const launch::Worker& worker : deployment.workers) {
    ++(worker.role == launch::Role::kPrefill ? point.size.prefill : point.size.decode);
  }
  BenchFlags bench = options.bench;
  bench.requests *= point.size.workers();
  bench.concurrency *= point.size.workers();
  bench.rate *= point.size.workers();
  ASSIGN_OR_RETURN(std::vector<BenchRequest> requests, MakeRequests(bench));
  ASSIGN_OR_RETURN(const std::string front, FrontAddress(deployment));
  std::vector<std::vector<std::string>> commands;
  for (const launch::Host& host : deployment.hosts) {
    ASSIGN_OR_RETURN(
        commands.emplace_back(),
        CommandOn(options.on, host, UpCommand(program, file, deployment, host, options.device)));
  }
  absl::FPrintF(stderr, "%d hosts: %d prefill and %d decode workers\n", point.hosts,
                point.size.prefill, point.size.decode);
  HostCluster cluster(loop);
  for (std::size_t i = 0; i < commands.size(); ++i) {
    RETURN_IF_ERROR(cluster.Start(deployment.hosts[i].name, commands[i]));
  }
  RETURN_IF_ERROR(AwaitWhole(loop, interrupts, cluster, deployment));
  const double busy = BusySeconds();
  const MonoTime begin = SteadyClock().Now();
  ASSIGN_OR_RETURN(point.report, RunBench(front, bench, std::move(requests), loop, interrupts));
  point.cpu_cores = (BusySeconds() - busy) / std::max(1e-9, ToSeconds(SteadyClock().Now() - begin));
  RETURN_IF_ERROR(cluster.Check());
  return point;
}

}  // namespace

absl::StatusOr<ScaleReport> ScaleByHosts(const HostScaleOptions& options, EpollLoop& loop,
                                         InterruptWatch& interrupts) {
  ASSIGN_OR_RETURN(const launch::Deployment whole, ReadDeploymentFile(options.file));
  ASSIGN_OR_RETURN(const std::vector<int> counts,
                   ParseHostCounts(options.hosts, static_cast<int>(whole.hosts.size())));
  if (!whole.CoordinatorAddress()) {
    return absl::InvalidArgumentError("the file must give the coordinator's port");
  }
  std::error_code error;
  const std::string program = std::filesystem::read_symlink("/proc/self/exe", error).string();
  const std::string file = std::filesystem::absolute(options.file, error).string();
  ScaleReport report = {.cpus = engine::AvailableCpus(), .whole_machine = true};
  for (const int count : counts) {
    std::vector<std::string> names;
    for (int i = 0; i < count; ++i) {
      names.push_back(whole.hosts[static_cast<std::size_t>(i)].name);
    }
    ASSIGN_OR_RETURN(const launch::Deployment deployment, launch::OnlyHosts(whole, names));
    ASSIGN_OR_RETURN(ScalePoint point,
                     RunHosts(options, program, file, deployment, loop, interrupts));
    if (const std::string warning = ClientWarning(point.report); !warning.empty()) {
      absl::FPrintF(stderr, "warning: %s\n", warning);
    }
    report.points.push_back(std::move(point));
  }
  return report;
}

}  // namespace penstock::cli
