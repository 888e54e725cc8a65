// SPDX-License-Identifier: Apache-2.0
// What a worker of either role says of itself to the coordinator (rpc/session_client.h).
#pragma once

#include "engine/meter.h"
#include "engine/worker_pool.h"
#include "rpc/session_client.h"
#include "worker/store_part.h"

namespace penstock::worker {

// Sets what its pool decides: tokens of a block, bytes of a token, blocks.
void DescribePool(const engine::PoolShape& pool, rpc::WorkerRegistration* registration);
// Without what its role alone knows: attempts, links, what drains. Any thread. `store` may be null:
// it has no part.
rpc::WorkerLoad LoadOf(const engine::Meter& meter, const engine::PoolShape& pool,
                       const StorePart* store);

}  // namespace penstock::worker
