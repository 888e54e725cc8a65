// SPDX-License-Identifier: Apache-2.0
// A model on the devices that compute it: one, or, where it is split, one per shard of each stage.
// From these parts come the pool and the runner of an engine.
#pragma once

#include <functional>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/kv_dtype.h"
#include "base/time.h"
#include "device/device.h"
#include "engine/kv_pool.h"
#include "engine/step_runner.h"
#include "engine/weights.h"
#include "kernels/ops.h"
#include "model/architecture.h"
#include "transfer/collectives.h"

namespace penstock::engine {

// What one device computes with; its weights say which part of the model it has. Non-owning.
struct ShardParts {
  Device* device = nullptr;
  kernels::Ops* ops = nullptr;
  const Weights* weights = nullptr;
};

// For the parts of `whole`, as ModelPart counts their devices; options.stages says among how many
// stages these divide. As KvPool::Make. Looks at the devices alone.
absl::StatusOr<std::unique_ptr<KvPool>> MakePool(const model::Architecture& whole,
                                                 std::span<const ShardParts> shards, KvDtype dtype,
                                                 const KvPool::Options& options);

using OnExchangeFailed = std::function<void(const absl::Status& why)>;

struct RunnerOptions {
  std::int32_t rows_max = 512;       // Token rows of one pass: bounds the scratch memory.
  std::int32_t logit_rows_max = 64;  // Of those, rows whose logits are asked for.
  // For which shards wait for one another, and stages for the one before: more than a step of one
  // takes where the machine is at its busiest.
  Duration patience = std::chrono::seconds(60);
  // For the shards of a stage; empty: MakeLocalCollectives.
  transfer::CollectivesMaker collectives = {};
  // Hears why a device cannot go on for want of others, on any of their threads, before that ends the
  // process; once it has returned, a CHECK does. Empty: nobody.
  OnExchangeFailed exchange_failed = {};
  // Rows that are worth a stage's while: batches of several times as many go through several stages
  // in portions of at least so many. With fewer it is the weights that a GPU reads that take time.
  std::int32_t portion_rows_min = 128;
};
// A ForwardPass, or a ShardedRunner for several devices. `pool` is MakePool's. As
// ForwardPass::Make; all that is passed in must outlive the result.
absl::StatusOr<std::unique_ptr<StepRunner>> MakeRunner(const model::Architecture& whole,
                                                       std::span<const ShardParts> shards,
                                                       KvPool& pool, const RunnerOptions& options);

}  // namespace penstock::engine
