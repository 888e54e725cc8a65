// SPDX-License-Identifier: Apache-2.0
#include "engine/model_parts.h"

#include <vector>

#include "base/status.h"
#include "engine/forward.h"
#include "engine/sharded_runner.h"

namespace penstock::engine {

absl::StatusOr<std::unique_ptr<KvPool>> MakePool(const model::Architecture& whole,
                                                 std::span<const ShardParts> shards, KvDtype dtype,
                                                 const KvPool::Options& options) {
  std::vector<Device*> devices;
  for (const ShardParts& shard : shards) devices.push_back(shard.device);
  return KvPool::Make(devices, whole.MakeKvSpec(dtype), options);
}

absl::StatusOr<std::unique_ptr<StepRunner>> MakeRunner(const model::Architecture& whole,
                                                       std::span<const ShardParts> shards,
                                                       KvPool& pool, const RunnerOptions& options) {
  if (shards.size() > 1) return ShardedRunner::Make(whole, shards, pool, options);
  return ForwardPass::Make(whole, shards[0], pool, options, {});
}

}  // namespace penstock::engine
