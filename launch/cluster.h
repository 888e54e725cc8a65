// SPDX-License-Identifier: Apache-2.0
// A deployment's processes on this host, as one thing: started in the order in which they need each
// other, watched until the cluster can answer, ended.
//
// The coordinator starts first; the ports that it found are what the others are given, and what it
// takes again when it is restarted. The cluster is ready when the coordinator says of every model
// that a request could be placed, the workers and store nodes of this host have joined, each prefill
// worker of it has moved bytes to a decode worker, and its gateways have heard of the models.
//
// Everything on the loop's thread, construction and destruction too; callbacks come from the loop
// and must not destroy the cluster.
#pragma once

#include <sys/types.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/epoll_loop.h"
#include "launch/commands.h"
#include "launch/deployment.h"
#include "launch/ready_folder.h"
#include "launch/supervisor.h"

namespace penstock::launch {

// What a process said of itself in its ready file. Empty: it has no such port.
struct Endpoint {
  Role role = Role::kCoordinator;
  std::string name = {};
  pid_t pid = -1;
  std::string grpc = {};
  std::string http = {};
  std::string metrics = {};
};

// As the coordinator tells it.
struct ClusterState {
  struct Model {
    std::string name = {};
    bool ready = false;
  };
  struct Member {  // A worker or a store node.
    std::string name = {};
    std::string state = {};  // "loading", "ready", ...
  };
  struct Pair {
    std::string prefill = {};
    std::string decode = {};
    bool verified = false;  // Bytes moved between them, and came out right.
  };
  std::vector<Model> models = {};
  std::vector<Member> workers = {};
  std::vector<Member> stores = {};
  std::vector<Pair> pairs = {};
};

class Cluster {
 public:
  // Each asks the process at `address`; `done` is called once, on the loop, never from inside.
  struct Questions {
    template <typename Answer>
    using Ask = std::function<void(const std::string& address,
                                   std::function<void(absl::StatusOr<Answer>)> done)>;
    Ask<ClusterState> coordinator;
    Ask<std::vector<ClusterState::Model>> gateway;
  };
  struct Options {
    Deployment deployment;
    std::size_t host = 0;
    CommandOptions commands;  // The folder is the cluster's own.
    Supervisor::Options supervisor;
    Duration ask_every = std::chrono::milliseconds(100);  // Until it is ready.
    Questions ask;
  };
  struct Events {
    std::function<void(const std::string& name, std::string_view line)> on_line;  // Of a process.
    std::function<void(const std::string& text)> on_progress;                     // Of our own.
    // Once; and again when a process was started anew, with its new id.
    std::function<void()> on_ready;
    // Once: it cannot become ready, or cannot go on. What runs goes on running until Stop().
    std::function<void(const absl::Status& why)> on_failed;
  };

  // UNAVAILABLE when there is no folder for ready files, or what MakeStoreFiles says.
  static absl::StatusOr<std::unique_ptr<Cluster>> Start(EpollLoop& loop, Options options,
                                                        Events events);
  ~Cluster();  // Kills what runs.

  bool ready() const { return ready_; }
  // Of this host's processes that have been ready and are not given up, in the order of their start.
  std::vector<Endpoint> endpoints() const;
  // Where clients go: the first gateway, or the coordinator with one inside; nothing on a host that
  // has neither.
  std::optional<Endpoint> front() const;

  void Stop(std::function<void()> done);  // Once.
  void Kill();                            // During Stop.

 private:
  Cluster(EpollLoop& loop, Options options, Events events);
  void StartProcesses(bool coordinator);
  void OnReadyFile(const std::string& path);
  void OnGiveUp(const std::string& name, const absl::Status& why);
  bool Waits() const;
  std::vector<std::string> Unready(const std::vector<ClusterState::Model>& told) const;
  std::string Missing(const ClusterState& state) const;
  std::string Unpaired(const ClusterState& state) const;
  void AskForState();
  void OnState(absl::StatusOr<ClusterState> state);
  std::vector<Endpoint> Fronts() const;
  void AskFronts(std::vector<Endpoint> fronts);
  void BecomeReady();
  void WaitFor(std::string what);
  void Progress(std::string text);
  void Fail(absl::Status why);

  EpollLoop& loop_;
  const Options options_;
  const Events events_;
  std::string coordinator_;  // Its address; empty: not known yet.
  std::vector<Process> processes_;
  std::map<std::string, Endpoint> endpoints_;
  std::string progress_;  // What was said last.
  bool asking_ = false;
  bool ready_ = false;
  bool recovering_ = false;  // Somebody came back, and may not be part of the cluster yet.
  bool failed_ = false;
  bool stopping_ = false;
  bool timer_set_ = false;
  Loop::TimerId timer_{};
  std::unique_ptr<ReadyFolder> folder_;
  std::unique_ptr<Supervisor> supervisor_;
  std::shared_ptr<int> life_ = std::make_shared<int>(0);  // Ends with this: answers check it.
};

}  // namespace penstock::launch
