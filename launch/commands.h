// SPDX-License-Identifier: Apache-2.0
// From a deployment to the commands that make it: which processes a host runs, with which
// arguments, and in which order they end.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "launch/deployment.h"

namespace penstock::launch {

struct Process {
  Role role = Role::kCoordinator;
  std::string name = {};
  std::vector<std::string> arguments = {};  // The program first.
  std::vector<int> cpus = {};               // Empty: any.
  std::string ready_file = {};              // Also in the arguments.
  // Those with the lowest end first: whoever takes requests in, so that what runs can finish while
  // all others are still there; then workers; then store nodes, which take what workers still give;
  // then a coordinator without a gateway.
  int stop_rank = 0;
};

struct CommandOptions {
  std::string program = {};        // Of ours, by its path.
  std::string folder = {};         // Where ready files are written; for this user alone.
  std::string socket_folder = {};  // Of shm transfers.
  bool http = true;                // Gateways serve HTTP.
  bool metrics = true;             // Every process has a port for its metrics.
  int cpus_available = 1;          // Shared by the workers that name neither threads nor cpus.
  std::map<std::string, std::string> model_paths =
      {};  // From models' names; as written where absent.
  // Numbers of tenants, by their salt files. One that is not here has no limit.
  std::map<std::string, std::uint32_t> tenants = {};
  // Of each GPU of a worker, by its name: for links of kind nccl. One that is not here is not told.
  std::map<std::string, std::size_t> link_bytes = {};
  std::vector<std::string> worker_arguments = {};  // Of every worker, besides its own.
};

// What `host` runs: the coordinator, if it is there, comes first, then gateways, then workers.
// `coordinator` is the address that the others are given, "HOST:PORT".
std::vector<Process> PlanProcesses(const Deployment& deployment, std::size_t host,
                                   const CommandOptions& options, std::string_view coordinator);

// The coordinator's process on a port that is known by now: what a restart must use.
std::vector<std::string> WithPort(std::vector<std::string> arguments, std::string_view flag,
                                  std::uint16_t port);

// As a shell would read it.
std::string ShellLine(const std::vector<std::string>& arguments);

}  // namespace penstock::launch
