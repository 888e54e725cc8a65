// SPDX-License-Identifier: Apache-2.0
// For tests: an engine on a fake model, with the pool inside it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "base/check_ok.h"
#include "device/cpu_device.h"
#include "device/device_testing.h"
#include "engine/engine.h"
#include "engine/fake_step_runner.h"
#include "kernels/ops.h"

namespace penstock::engine {

inline constexpr std::int32_t kVocab = 100;
inline constexpr std::int32_t kBlockTokens = 8;
inline constexpr std::size_t kSlabBytes = 4096;

struct WorkerSetup {
  std::vector<std::int32_t> windows = {0};
  std::int32_t slabs = 64;
  Engine::Options options = {};
  std::vector<TokenId> end_of_generation = {};
  bool far = false;  // Its pool is shared and in memory of a device of its own: staged.
};

// An engine and the pool inside it.
struct Worker {
  explicit Worker(WorkerSetup setup) {
    if (setup.far) device = std::make_unique<FarDevice>();
    KvSpec spec;
    for (const std::int32_t window : setup.windows) {
      spec.layers.push_back({.group = static_cast<std::int32_t>(spec.groups.size())});
      spec.groups.push_back({.window_tokens = window,
                             .cache_layers = 1,
                             .kv_heads = 1,
                             .k_dim = 8,
                             .v_dim = 8,
                             .dtype = KvDtype::kF16});
    }
    setup.options.pool = {.pool_bytes = kSlabBytes * static_cast<std::size_t>(setup.slabs),
                          .block_tokens = kBlockTokens,
                          .page_tokens = kBlockTokens,
                          .shared = setup.far};
    Engine::RunnerParts parts;
    parts.pool = *KvPool::Make(*device, spec, setup.options.pool);
    pool = parts.pool.get();
    if (setup.far) CHECK_OK(pool->MakeEncoder(*device, *ops));
    auto fake = std::make_unique<FakeStepRunner>(*pool, kVocab, setup.options.step_tokens,
                                                 setup.options.sequences_max);
    runner = fake.get();
    parts.runner = std::move(fake);
    parts.vocab = kVocab;
    parts.context_tokens_max = 1000;
    parts.end_of_generation = setup.end_of_generation;
    engine = *Engine::MakeOn(std::move(parts), setup.options);
  }

  std::size_t bytes_held() const { return engine->PoolStats().bytes_held; }

  const std::unique_ptr<CpuDevice> cpu = *CpuDevice::Make({.threads = 1, .cpus = {}});
  // Far ones' encoder.
  const std::unique_ptr<kernels::Ops> ops = kernels::MakeCpuOps(*cpu);
  std::unique_ptr<Device> device = *CpuDevice::Make({.threads = 1, .cpus = {}});
  KvPool* pool = nullptr;  // The engine's, as the runner.
  FakeStepRunner* runner = nullptr;
  std::unique_ptr<Engine> engine;
};

inline Request Greedy(std::vector<TokenId> prompt, std::int32_t max_tokens) {
  Request request;
  request.prompt = std::move(prompt);
  request.max_tokens = max_tokens;
  request.sampling.temperature = 0;
  request.ignore_eos = true;
  return request;
}

}  // namespace penstock::engine
