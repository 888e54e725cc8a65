// SPDX-License-Identifier: Apache-2.0
// A gateway's calls to workers (penstock.v1.Worker): one channel for each endpoint, made when first
// needed and kept, the oldest idle ones dropped beyond channels_max.
#pragma once

#include <cstddef>
#include <memory>

#include "base/epoll_loop.h"
#include "gateway/links.h"

namespace penstock::gateway {

struct WorkerClientOptions {
  std::size_t channels_max = 1024;
};

// On the loop's thread, as all its calls; destroyed on any other, where it waits for its calls to
// be done, before the loop. `listener` hears nothing any more from then on.
std::unique_ptr<Workers> MakeWorkerClient(EpollLoop& loop, WorkersListener& listener,
                                          const WorkerClientOptions& options);

}  // namespace penstock::gateway
