// SPDX-License-Identifier: Apache-2.0
// A gateway's stream to the coordinator (Cluster.Attend), over any channel: to another process, or
// to the server of this one. A stream that breaks is opened again, at first after backoff_min, then
// doubling to backoff_max; what was cancelled meanwhile is said then. Of several coordinators the
// next is tried, or the one that is said to lead; none whose term is below one that was followed.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/epoll_loop.h"
#include "base/time.h"
#include "gateway/links.h"
#include "grpcpp/channel.h"

namespace penstock::gateway {

struct CoordinatorClientOptions {
  std::string name;  // Of the gateway: unique in the deployment; 1 to 64 bytes.
  Duration backoff_min = std::chrono::milliseconds(100);
  Duration backoff_max = std::chrono::seconds(2);
  std::uint64_t seed = 0;            // Of the jitter, a quarter of the pause either way.
  std::size_t messages_max = 65536;  // That wait to be sent; then Route is refused.
};

struct CoordinatorTarget {
  std::string address = {};  // As coordinators name each other; may be empty.
  std::shared_ptr<grpc::Channel> channel = {};
};

// `targets`: at least one (CHECKed).
// On the loop's thread, as all its calls; destroyed on any other, where it waits for gRPC to be
// done with it, before the loop. `listener` hears nothing any more from then on.
std::unique_ptr<Coordinator> MakeCoordinatorClient(EpollLoop& loop, CoordinatorListener& listener,
                                                   const std::vector<CoordinatorTarget>& targets,
                                                   const CoordinatorClientOptions& options);

}  // namespace penstock::gateway
