// SPDX-License-Identifier: Apache-2.0
// The prefill worker's half of penstock.v1.Worker: checks messages, turns them into plain structs
// and posts them to the loop that owns PrefillState.
#pragma once

#include <memory>

#include "base/epoll_loop.h"
#include "grpcpp/impl/service_type.h"
#include "penstock/v1/worker.pb.h"
#include "prefill/prefill_state.h"

namespace penstock::prefill {

// All of it is used on the loop alone, and outlives the service's server.
struct PrefillServiceParts {
  EpollLoop* loop = nullptr;
  PrefillState* state = nullptr;
  v1::DescribeResponse description;
};

std::unique_ptr<grpc::Service> MakePrefillService(const PrefillServiceParts& parts);

}  // namespace penstock::prefill
