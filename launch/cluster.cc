// SPDX-License-Identifier: Apache-2.0
#include "launch/cluster.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/file.h"
#include "base/status.h"
#include "launch/store_files.h"
#include "launch/values.h"
#include "launch/yaml.h"
#include "nlohmann/json.hpp"

namespace penstock::launch {
namespace {

constexpr std::size_t kReadyFileBytesMax = 65536;

// INVALID_ARGUMENT when it is no ready file.
absl::StatusOr<Endpoint> ReadReadyFile(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kReadyFileBytesMax));
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  const auto field = [&json](const char* key) {
    const auto at = json.find(key);
    return at != json.end() && at->is_string() ? at->get<std::string>() : std::string();
  };
  if (!json.is_object() || !json.contains("pid") || !json["pid"].is_number_integer() ||
      field("grpc").empty()) {
    return absl::InvalidArgumentError(absl::StrCat(path, " is no ready file: ", Quoted(text)));
  }
  Endpoint endpoint;
  endpoint.pid = json["pid"].get<pid_t>();
  endpoint.grpc = field("grpc");
  endpoint.http = field("http");
  endpoint.metrics = field("metrics");
  return endpoint;
}

// The port of "127.0.0.1:80" or "http://[::1]:80/v1"; 0 where there is none.
std::uint16_t PortOf(std::string_view address) {
  const std::size_t scheme = address.find("://");
  if (scheme != std::string_view::npos) address.remove_prefix(scheme + 3);
  address = address.substr(0, address.find('/'));
  const std::size_t colon = address.rfind(':');
  if (colon == std::string_view::npos) return 0;
  return static_cast<std::uint16_t>(ParseCount(address.substr(colon + 1), 0, 65535).value_or(0));
}

}  // namespace

Cluster::Cluster(EpollLoop& loop, Options options, Events events)
    : loop_(loop), options_(std::move(options)), events_(std::move(events)) {}

absl::StatusOr<std::unique_ptr<Cluster>> Cluster::Start(EpollLoop& loop, Options options,
                                                        Events events) {
  std::unique_ptr<Cluster> cluster(new Cluster(loop, std::move(options), std::move(events)));
  Cluster* const self = cluster.get();
  ASSIGN_OR_RETURN(cluster->folder_, ReadyFolder::Make(loop, [self](const std::string& path) {
                     self->OnReadyFile(path);
                   }));
  RETURN_IF_ERROR(MakeStoreFiles(cluster->options_.deployment, cluster->options_.host,
                                 cluster->folder_->path()));
  cluster->supervisor_ = std::make_unique<Supervisor>(
      loop, cluster->options_.supervisor,
      Supervisor::Events{
          .on_line = cluster->events_.on_line,
          .on_start = {},
          .on_restart =
              [self](const std::string& name, const std::string& how, Duration pause) {
                self->Progress(absl::StrFormat("%s ended with %s; it starts again in %.1f s", name,
                                               how, ToSeconds(pause)));
              },
          .on_give_up = [self](const std::string& name,
                               const absl::Status& why) { self->OnGiveUp(name, why); },
      });
  const Deployment& deployment = cluster->options_.deployment;
  if (deployment.coordinator_host == cluster->options_.host) {
    cluster->StartProcesses(/*coordinator=*/true);
  } else {
    cluster->coordinator_ = deployment.CoordinatorAddress().value_or("");
    cluster->StartProcesses(/*coordinator=*/false);
  }
  return cluster;
}

Cluster::~Cluster() {
  if (timer_set_) loop_.CancelTimer(timer_);
}

std::vector<Endpoint> Cluster::endpoints() const {
  std::vector<Endpoint> all;
  for (const Process& process : processes_) {
    const auto at = endpoints_.find(process.name);
    if (at != endpoints_.end()) all.push_back(at->second);
  }
  return all;
}

std::optional<Endpoint> Cluster::front() const {
  const std::vector<Endpoint> fronts = Fronts();
  return fronts.empty() ? std::nullopt : std::optional(fronts.front());
}

// Those of this host that answer clients.
std::vector<Endpoint> Cluster::Fronts() const {
  const Role wanted = options_.deployment.gateway_inside() ? Role::kCoordinator : Role::kGateway;
  std::vector<Endpoint> fronts = endpoints();
  std::erase_if(fronts, [&](const Endpoint& endpoint) { return endpoint.role != wanted; });
  return fronts;
}

void Cluster::StartProcesses(bool coordinator) {
  CommandOptions commands = options_.commands;
  commands.folder = folder_->path();
  if (commands.socket_folder.empty()) commands.socket_folder = folder_->path();
  for (Process& process :
       PlanProcesses(options_.deployment, options_.host, commands, coordinator_)) {
    if ((process.role == Role::kCoordinator) != coordinator) continue;
    processes_.push_back(process);
    supervisor_->Start({.name = process.name,
                        .arguments = process.arguments,
                        .cpus = process.cpus,
                        .ready_file = process.ready_file,
                        .stop_rank = process.stop_rank});
  }
  if (!coordinator && processes_.empty()) AskForState();
}

void Cluster::OnReadyFile(const std::string& path) {
  const auto process = std::find_if(processes_.begin(), processes_.end(),
                                    [&](const Process& one) { return one.ready_file == path; });
  if (process == processes_.end() || stopping_) return;
  absl::StatusOr<Endpoint> endpoint = ReadReadyFile(path);
  // One that is there no more is of a life that has ended.
  if (absl::IsNotFound(endpoint.status())) return;
  if (!endpoint.ok()) return Fail(endpoint.status());
  endpoint->role = process->role;
  endpoint->name = process->name;
  const bool again = endpoints_.contains(process->name);
  endpoints_[process->name] = *endpoint;
  supervisor_->SetReady(process->name);
  if (process->role == Role::kCoordinator || process->role == Role::kGateway) {
    process->arguments = WithPort(std::move(process->arguments), "--port", PortOf(endpoint->grpc));
    process->arguments =
        WithPort(std::move(process->arguments), "--http-port", PortOf(endpoint->http));
    supervisor_->SetArguments(process->name, process->arguments);
  }
  Progress(absl::StrCat(process->name, again ? " is up again on " : " is up on ", endpoint->grpc));
  if (process->role == Role::kCoordinator && coordinator_.empty()) {
    coordinator_ = endpoint->grpc;
    StartProcesses(/*coordinator=*/false);
  }
  if (ready_) {
    recovering_ = true;
    events_.on_ready();
  }
  if (ready_ || endpoints_.size() == processes_.size()) AskForState();
}

void Cluster::OnGiveUp(const std::string& name, const absl::Status& why) {
  const auto process = std::find_if(processes_.begin(), processes_.end(),
                                    [&](const Process& one) { return one.name == name; });
  const bool vital = process == processes_.end() || process->role == Role::kCoordinator;
  if (!ready_ || vital) return Fail(why);
  endpoints_.erase(name);
  Progress(std::string(why.message()));
}

void Cluster::AskForState() {
  if (asking_ || timer_set_ || !Waits()) return;
  asking_ = true;
  options_.ask.coordinator(coordinator_,
                           [this, life = std::weak_ptr(life_)](absl::StatusOr<ClusterState> state) {
                             if (life.expired()) return;
                             asking_ = false;
                             OnState(std::move(state));
                           });
}

bool Cluster::Waits() const { return (!ready_ || recovering_) && !failed_ && !stopping_; }

// Our prefill workers that have reached no decode worker yet, for people.
std::string Cluster::Unpaired(const ClusterState& state) const {
  std::vector<std::string> unpaired;
  for (const Process& process : processes_) {
    if (process.role != Role::kPrefill) continue;
    const bool paired = std::any_of(state.pairs.begin(), state.pairs.end(), [&](const auto& pair) {
      return pair.prefill == process.name && pair.verified;
    });
    if (!paired) unpaired.push_back(absl::StrCat(process.name, " to reach a decode worker"));
  }
  return absl::StrJoin(unpaired, ", ");
}

// The models of the deployment that `told` does not call ready.
std::vector<std::string> Cluster::Unready(const std::vector<ClusterState::Model>& told) const {
  std::vector<std::string> unready;
  for (const Model& model : options_.deployment.models) {
    const bool good = std::any_of(told.begin(), told.end(), [&](const ClusterState::Model& one) {
      return one.name == model.name && one.ready;
    });
    if (!good) unready.push_back(model.name);
  }
  return unready;
}

// What is not ready yet, for people; empty: all is.
std::string Cluster::Missing(const ClusterState& state) const {
  std::vector<std::string> models = Unready(state.models), members;
  for (const Endpoint& endpoint : endpoints()) {
    if (endpoint.role == Role::kCoordinator || endpoint.role == Role::kGateway) continue;
    const std::vector<ClusterState::Member>& told =
        endpoint.role == Role::kStore ? state.stores : state.workers;
    const auto at = std::find_if(told.begin(), told.end(), [&](const ClusterState::Member& one) {
      return one.name == endpoint.name;
    });
    const std::string_view is = at == told.end() ? "has not joined" : std::string_view(at->state);
    if (is != "ready") members.push_back(absl::StrCat(endpoint.name, " ", ToAbsl(is)));
  }
  // At first no prompt may be computed elsewhere for want of a pair, either.
  if (models.empty() && members.empty()) return ready_ ? "" : Unpaired(state);
  models.insert(models.end(), members.begin(), members.end());
  return absl::StrJoin(models, ", ");
}

void Cluster::OnState(absl::StatusOr<ClusterState> state) {
  if (!Waits()) return;
  if (!state.ok()) {
    return WaitFor(
        absl::StrCat("the coordinator at ", coordinator_, ": ", state.status().message()));
  }
  const std::string missing = Missing(*state);
  if (!missing.empty()) return WaitFor(missing);
  AskFronts(Fronts());
}

// What the coordinator knows reaches the gateways a moment later, and who is told that the cluster
// is ready asks one of them at once.
void Cluster::AskFronts(std::vector<Endpoint> fronts) {
  if (fronts.empty()) return BecomeReady();
  const Endpoint front = std::move(fronts.back());
  fronts.pop_back();
  asking_ = true;
  options_.ask.gateway(
      front.grpc, [this, front, fronts = std::move(fronts), life = std::weak_ptr(life_)](
                      absl::StatusOr<std::vector<ClusterState::Model>> models) {
        if (life.expired()) return;
        asking_ = false;
        if (!Waits()) return;
        if (!models.ok()) return WaitFor(absl::StrCat(front.name, ": ", models.status().message()));
        const std::vector<std::string> unready = Unready(*models);
        if (unready.empty()) return AskFronts(fronts);
        WaitFor(absl::StrCat(front.name, " to hear of ", absl::StrJoin(unready, ", ")));
      });
}

void Cluster::BecomeReady() {
  if (std::exchange(ready_, true))
    Progress("the cluster is ready again");
  else
    events_.on_ready();
  recovering_ = false;
}

void Cluster::WaitFor(std::string what) {
  Progress(absl::StrCat("waiting for ", what));
  timer_set_ = true;
  timer_ = loop_.At(loop_.Now() + options_.ask_every, [this] {
    timer_set_ = false;
    AskForState();
  });
}

// The same thing is not said again and again.
void Cluster::Progress(std::string text) {
  if (text == progress_) return;
  progress_ = std::move(text);
  events_.on_progress(progress_);
}

void Cluster::Fail(absl::Status why) {
  if (std::exchange(failed_, true) || stopping_) return;
  events_.on_failed(why);
}

void Cluster::Stop(std::function<void()> done) {
  stopping_ = true;
  supervisor_->Stop(std::move(done));
}

void Cluster::Kill() { supervisor_->Kill(); }

}  // namespace penstock::launch
