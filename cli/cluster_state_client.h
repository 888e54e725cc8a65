// SPDX-License-Identifier: Apache-2.0
// What `penstock up` asks a coordinator and its gateways: is the cluster ready?
#pragma once

#include "base/epoll_loop.h"
#include "launch/cluster.h"

namespace penstock::cli {

// Asks Cluster.Status and Inference.ListModels, and answers on the loop, which outlives what is
// asked: within two seconds, as UNAVAILABLE or DEADLINE_EXCEEDED where there is no answer.
launch::Cluster::Questions MakeClusterStateClient(EpollLoop& loop);

}  // namespace penstock::cli
