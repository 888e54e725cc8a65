// SPDX-License-Identifier: Apache-2.0
// Clusters over more and more hosts: what to run where, and when one is whole.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "launch/cluster.h"
#include "launch/deployment.h"

namespace penstock::cli {

// "1,2,4" of a file with `hosts_max` hosts. INVALID_ARGUMENT.
absl::StatusOr<std::vector<int>> ParseHostCounts(std::string_view text, int hosts_max);

// How a command is run on a host: the words of `on` ("ssh {host}") with {host} and {address} replaced,
// and `command` after them. INVALID_ARGUMENT where `on` has neither, or where a word of the command is
// one that a remote shell would read otherwise: we cannot know whether there is one.
absl::StatusOr<std::vector<std::string>> CommandOn(std::string_view on, const launch::Host& host,
                                                   const std::vector<std::string>& command);

// Where clients of a deployment go, known before it runs. INVALID_ARGUMENT: ports.grpc must be given.
absl::StatusOr<std::string> FrontAddress(const launch::Deployment& deployment);

// Which workers are not ready and how many pairs of them are not verified, for people; empty: all are.
std::string NotWhole(const launch::Deployment& deployment, const launch::ClusterState& state);

}  // namespace penstock::cli
