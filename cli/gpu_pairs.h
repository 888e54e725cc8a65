// SPDX-License-Identifier: Apache-2.0
// Which workers of a deployment file ship KV between their GPUs, over kind nccl, and over which pairs
// of those.
#pragma once

#include <cstddef>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "base/kv_spec.h"
#include "launch/deployment.h"

namespace penstock::cli {

// Both of one model, one prefills and one decodes, and both are on GPUs.
bool IsGpuPair(const launch::Worker& prefill, const launch::Worker& decode);
// Why such a pair goes through the host; empty where it need not.
std::string WhyNotNccl(const launch::Worker& prefill, const launch::Worker& decode);

// The GPUs of such a pair that have KV to move, as each worker counts its own: what the transfer
// plan makes of how both are split. `spec` is the model's. FAILED_PRECONDITION or INVALID_ARGUMENT
// where it cannot be split so.
using GpuLanes = std::set<std::pair<std::size_t, std::size_t>>;
absl::StatusOr<GpuLanes> LanesOf(const KvSpec& spec, const launch::Worker& prefill,
                                 const launch::Worker& decode);

// What one link of kind nccl takes of each of its two GPUs.
std::size_t NcclBytesOfOneLink();
// How many links of kind nccl that of the worker's GPUs has which has the most: one for each GPU of
// another worker that it has a lane with. 0 where `transfer` has no nccl, or the worker no such pair.
std::size_t NcclLinks(const launch::Deployment& deployment, const launch::Worker& worker,
                      const KvSpec& spec);
// What a worker's links of kind nccl take of that of its GPUs which has the most of them, once all are
// in use: at most so many communicators as transfer/nccl_comms.h says, each with its ring and some
// 6 MB of NCCL's per CTA.
std::size_t NcclLinkBytes(const launch::Deployment& deployment, const launch::Worker& worker,
                          const KvSpec& spec);

}  // namespace penstock::cli
