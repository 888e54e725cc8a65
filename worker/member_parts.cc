// SPDX-License-Identifier: Apache-2.0
#include "worker/member_parts.h"

#include <algorithm>

#include "worker/store_session.h"

namespace penstock::worker {

void DescribePool(const engine::PoolShape& pool, rpc::WorkerRegistration* registration) {
  registration->block_tokens = pool.block_tokens;
  registration->kv_bytes_per_token =
      std::max<std::size_t>(1, pool.block_bytes / static_cast<std::size_t>(pool.block_tokens));
  registration->blocks_total = pool.pool_bytes / pool.block_bytes;
}

rpc::WorkerLoad LoadOf(const engine::Meter& meter, const engine::PoolShape& pool,
                       const StorePart* store) {
  const engine::Meter::Reading reading = meter.Read();
  return {.sequences = reading.sequences,
          .blocks_used = (reading.bytes_held + pool.block_bytes - 1) / pool.block_bytes,
          .prefill_tokens_per_s = reading.prefill_tokens_per_s,
          .step_seconds = reading.step_seconds,
          .bytes_held = reading.bytes_held,
          .fetches = FetchRatesOf(store)};
}

}  // namespace penstock::worker
