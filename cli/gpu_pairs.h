// SPDX-License-Identifier: Apache-2.0
// Which workers of a deployment file ship KV between their GPUs, over kind nccl.
#pragma once

#include <cstddef>
#include <string>

#include "launch/deployment.h"

namespace penstock::cli {

// Both of one model, one prefills and one decodes, and both are on GPUs.
bool IsGpuPair(const launch::Worker& prefill, const launch::Worker& decode);
// Why such a pair goes through the host; empty where it need not.
std::string WhyNotNccl(const launch::Worker& prefill, const launch::Worker& decode);

// What a worker's links of kind nccl take of its GPU, once all are in use: at most so many
// communicators as transfer/nccl_comms.h says, each with its ring and some 6 MB of NCCL's per CTA.
// 0 where `transfer` has no nccl, or the worker no such pair.
std::size_t NcclLinkBytes(const launch::Deployment& deployment, const launch::Worker& worker);

}  // namespace penstock::cli
