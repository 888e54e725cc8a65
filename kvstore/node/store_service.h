// SPDX-License-Identifier: Apache-2.0
// penstock.v1.Store of a node: checks messages, and asks the node's tiers on its loop, in pieces that
// leave others their turn.
#pragma once

#include <memory>
#include <string>

#include "grpcpp/impl/service_type.h"
#include "kvstore/node/store_node.h"

namespace penstock::kvstore {

// `node` outlives the service, and the service its server.
std::unique_ptr<grpc::Service> MakeStoreService(StoreNode& node);

}  // namespace penstock::kvstore
