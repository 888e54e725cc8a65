// SPDX-License-Identifier: Apache-2.0
// A batching engine with all that it stands on, which answers whole lists of requests: for tests that
// compare answers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <ostream>
#include <span>
#include <utility>
#include <vector>

#include "base/key.h"
#include "base/kv_spec.h"
#include "device/cuda_api.h"
#include "engine/engine.h"
#include "engine/weights.h"
#include "model/model_file.h"
#include "tests/device_harness.h"

namespace penstock::tests {

struct Drawn {
  TokenId token;
  double logprob;
  std::vector<std::pair<TokenId, double>> top = {};
  bool operator==(const Drawn&) const = default;
};
void PrintTo(const Drawn& drawn, std::ostream* out);
// By request, then choice.
using Answers = std::map<std::pair<std::size_t, std::int32_t>, std::vector<Drawn>>;

// One thread at a time. What goes wrong is CHECKed.
class EngineHarness {
 public:
  struct Options {
    KvDtype kv_dtype = KvDtype::kF16;
    int threads = 1;
    const CudaPlugin* cuda = nullptr;  // Null: on the CPU.
    kernels::Numerics numerics = kernels::Numerics::kExact;
    std::int32_t stages = 1;
    std::int32_t shards = 1;  // Of each stage, each with `threads` of its own.
    std::int32_t sums = 1;    // As of engine::TensorShard.
  };
  // The file must outlive the result. `engine` without the stages.
  EngineHarness(const model::ModelFile& file, const Options& options,
                engine::Engine::Options engine);

  // All of them together, to their ends. Requests ask for log-probabilities. Afterwards no slab is held.
  Answers Run(std::span<const engine::Request> requests);
  // Of all runs.
  bool preempted() const { return preempted_; }
  bool swapped() const { return swapped_; }

  engine::Engine& engine() { return *engine_; }
  const engine::Weights& weights() const { return *model_.weights[0]; }

 private:
  ModelHarness model_;
  std::unique_ptr<engine::Engine> engine_;
  bool preempted_ = false;
  bool swapped_ = false;
};

}  // namespace penstock::tests
