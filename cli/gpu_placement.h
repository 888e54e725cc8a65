// SPDX-License-Identifier: Apache-2.0
// Which GPUs the workers get that a deployment file gives `device: cuda`: near to each other where a
// worker has several, near to the workers that it exchanges KV with, and no GPU twice while there
// are others.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "device/gpu_topology.h"
#include "launch/deployment.h"

namespace penstock::cli {

// Gives each such worker of `host` its GPUs by their numbers (Worker::device), and says of each why,
// in the file's order: "prefill-1 takes cuda:0,1: between its shards 18 NVLinks". Those with most GPUs
// choose first, then prefill and decode workers by turns. Each takes, of what counts in this order:
// the GPUs with fewest other workers; the nearest to each other within a stage, and from stage to stage
// for each shard; the nearest to the workers of its model that it sends KV to or has it from, where
// the same GPU is as bad as the farthest (NCCL joins none with itself); the lowest numbers. A worker
// that needs more GPUs than there are stays as it is.
//
// Pure; the same for the same input.
std::vector<std::string> PlaceWorkers(const GpuTopology& topology, std::size_t host,
                                      launch::Deployment& deployment);

// The same on this machine, as `host`; looks at nothing, and says nothing, where no worker asks for
// it. `plugin`: as LoadCudaPlugin. Errors as LoadCudaPlugin and FindGpus: then nothing has changed.
absl::StatusOr<std::vector<std::string>> PlaceWorkersHere(const std::string& plugin,
                                                          std::size_t host,
                                                          launch::Deployment& deployment);
// Likewise, by a process of its own: this one keeps no hold of the GPUs, so that one of them can be
// reset while it runs. To be called while there is one thread. Errors as RunApart, too.
absl::StatusOr<std::vector<std::string>> PlaceWorkersApart(const std::string& plugin,
                                                           std::size_t host,
                                                           launch::Deployment& deployment);

}  // namespace penstock::cli
