// SPDX-License-Identifier: Apache-2.0
// Attention against the machine's limits, both measured in this run:
//   read_GBps     how fast the same threads can read the same pages and do nothing else
//   peak_GFLOPs   how fast they can multiply and add in registers
// Counters add up the best times of short pieces (a layer, a tile) over all iterations, since other
// work on the machine only ever takes time away; so do the limits. As shares of the limits:
// read_share, peak_share.
//
// Decode walks the layers of a model in turn, each with its own pages, as a decode step does; what one
// step took is `us`.
// Prefill takes one layer, the whole prompt in tiles of 64 tokens per thread, as the forward pass
// cuts it.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "device/cpu_device.h"
#include "device/thread_pool.h"
#include "kernels/attention.h"
#include "kernels/bench_limits.h"
#include "kernels/elementwise.h"

namespace penstock::kernels {
namespace {

struct Model {
  const char* name;
  std::int32_t layers;
  std::int32_t kv_heads;
  std::int32_t heads;  // Per KV head.
  std::int32_t dim;    // Of K and of V.
};
constexpr Model kModels[] = {
    {"smollm2-135m", 30, 3, 3, 64}, {"gemma3-270m", 18, 1, 4, 256}, {"llama3-8b", 4, 8, 4, 128}};

constexpr std::int32_t kPageTokens = 32;
// The pages of one sequence in all layers, slab by slab as in a worker's pool.
class Cache {
 public:
  Cache(const Model& model, KvDtype dtype, std::int32_t tokens)
      : model_(model),
        layout_(*PageLayout::Make({.cache_layers = 1,
                                   .kv_heads = 1,
                                   .k_dim = model.dim,
                                   .v_dim = model.dim,
                                   .dtype = dtype},
                                  kPageTokens, kPageTokens)),
        page_bytes_(layout_.page_bytes()),
        blocks_((tokens + kPageTokens - 1) / kPageTokens) {
    device_ = *CpuDevice::Make({.threads = 1});
    memory_ = *device_->Allocate(bytes());
    const std::vector<std::byte> page = RandomPage();
    for (std::size_t i = 0; i < bytes(); i += page_bytes_) {
      std::copy(page.begin(), page.end(), memory_->data() + i);
    }
    for (std::int32_t list = 0; list < model.layers * model.kv_heads; ++list) {
      for (std::int32_t block = 0; block < blocks_; ++block) {
        pages_.push_back(memory_->data() +
                         page_bytes_ *
                             (std::size_t{1} * block * model.layers * model.kv_heads + list));
      }
    }
  }

  std::size_t bytes() const {
    return page_bytes_ * static_cast<std::size_t>(blocks_ * model_.layers * model_.kv_heads);
  }
  const std::byte* data() const { return memory_->data(); }
  KvDtype dtype() const { return layout_.group.dtype; }
  std::span<const std::byte* const> Pages(std::int32_t layer, std::int32_t kv_head) const {
    return std::span(pages_).subspan(
        static_cast<std::size_t>((layer * model_.kv_heads + kv_head) * blocks_),
        static_cast<std::size_t>(blocks_));
  }

 private:
  std::vector<std::byte> RandomPage() const {
    std::vector<std::byte> page(page_bytes_);
    std::mt19937 random(1);
    std::uniform_real_distribution<float> uniform(-1, 1);
    std::vector<float> row(static_cast<std::size_t>(model_.dim));
    for (std::size_t token = 0; token < kPageTokens; ++token) {
      const std::size_t at = token * layout_.k_row_bytes();
      const std::size_t scale_at =
          layout_.k_scales_offset() + token * ScaleBytes(layout_.group.dtype);
      for (const auto& [row_at, scale] :
           {std::pair{at, scale_at},
            std::pair{layout_.v_offset() + at, scale_at + layout_.scales_bytes()}}) {
        for (float& v : row) v = uniform(random);
        NarrowRow(layout_.group.dtype, row.data(), model_.dim, page.data() + row_at,
                  page.data() + scale);
      }
    }
    return page;
  }

  const Model model_;
  const PageLayout layout_;
  const std::size_t page_bytes_;
  const std::int32_t blocks_;
  std::unique_ptr<CpuDevice> device_;
  std::unique_ptr<DeviceMemory> memory_;
  std::vector<const std::byte*> pages_;
};

struct alignas(64) Line {
  std::byte bytes[64];
};

// Scratch of one worker.
class Scratch {
 public:
  explicit Scratch(std::size_t bytes) : lines_((bytes + 63) / 64) {}
  std::span<std::byte> span() { return std::as_writable_bytes(std::span(lines_)); }

 private:
  std::vector<Line> lines_;
};

struct Batch {
  Batch(const Model& m, const Cache& c, std::int32_t t, std::int32_t p)
      : model(m), cache(c), tokens(t), position(p) {
    std::mt19937 random(2);
    std::normal_distribution<float> normal;
    const std::size_t floats = std::size_t{1} * t * m.kv_heads * m.heads * m.dim;
    q.resize(floats);
    for (float& v : q) v = normal(random);
    out.resize(floats);
  }
  AttentionTask Task(std::int32_t layer, std::int32_t kv_head, std::int32_t begin,
                     std::int32_t count) {
    AttentionTask task;
    const std::int64_t stride = std::int64_t{1} * model.kv_heads * model.heads * model.dim;
    const std::int64_t at = begin * stride + std::int64_t{1} * kv_head * model.heads * model.dim;
    task.q = q.data() + at;
    task.q_token_stride = stride;
    task.out = out.data() + at;
    task.out_token_stride = stride;
    task.tokens = count;
    task.heads = model.heads;
    task.position = position + begin;
    task.scale = 0.125f;
    task.pages = cache.Pages(layer, kv_head);
    task.page_tokens = kPageTokens;
    task.k_dim = model.dim;
    task.v_dim = model.dim;
    task.dtype = cache.dtype();
    return task;
  }

  const Model model;
  const Cache& cache;
  const std::int32_t tokens;
  const std::int32_t position;
  std::vector<float> q;
  std::vector<float> out;
};

// One layer of a decode step on one thread, or its partitions shared out.
void DecodeLayer(Batch& batch, std::int32_t layer, int threads, std::vector<Scratch>& scratch,
                 std::vector<float>& states) {
  const std::int32_t kv_heads = batch.model.kv_heads;
  if (threads == 1) {
    for (std::int32_t h = 0; h < kv_heads; ++h) {
      Attend(batch.Task(layer, h, 0, 1), scratch[0].span());
    }
    return;
  }
  const std::int32_t partitions = batch.position / kPartitionTokens + 1;
  const std::int64_t state = std::int64_t{1} * batch.model.heads * (2 + batch.model.dim);
  states.resize(static_cast<std::size_t>(state * partitions * kv_heads));
  BenchThreads(threads).Run([&](int worker) {
    const Range range = SplitRange(std::int64_t{1} * partitions * kv_heads, 1, worker, threads);
    for (std::int64_t i = range.begin; i < range.end; ++i) {
      AttendPartition(batch.Task(layer, static_cast<std::int32_t>(i / partitions), 0, 1),
                      static_cast<std::int32_t>(i % partitions), states.data() + i * state,
                      scratch[static_cast<std::size_t>(worker)].span());
    }
  });
  for (std::int32_t h = 0; h < kv_heads; ++h) {
    MergePartitions(batch.Task(layer, h, 0, 1), states.data() + h * partitions * state, partitions);
  }
}

void Decode(benchmark::State& run, KvDtype dtype) {
  const Model& model = kModels[run.range(0)];
  const auto context = static_cast<std::int32_t>(run.range(1));
  const auto threads = static_cast<int>(run.range(2));
  const Cache cache(model, dtype, context);
  Batch batch(model, cache, 1, context - 1);
  std::vector<Scratch> scratch(
      static_cast<std::size_t>(threads),
      Scratch(AttentionScratchBytes(1, model.heads, model.dim, model.dim)));
  std::vector<float> states;
  BestTimes times(static_cast<std::size_t>(model.layers));
  BestTimes reads(static_cast<std::size_t>(model.layers));
  for (auto _ : run) {
    for (std::int32_t layer = 0; layer < model.layers; ++layer) {
      times.Run(static_cast<std::size_t>(layer),
                [&] { DecodeLayer(batch, layer, threads, scratch, states); });
    }
    run.PauseTiming();
    ReadOnce(cache.data(), cache.bytes(), threads, reads);
    run.ResumeTiming();
  }
  run.SetLabel(model.name);
  run.counters["us"] = 1e6 * times.Sum();
  run.counters["MB"] = 1e-6 * static_cast<double>(cache.bytes());
  run.counters["GBps"] = 1e-9 * static_cast<double>(cache.bytes()) / times.Sum();
  run.counters["read_GBps"] = 1e-9 * static_cast<double>(cache.bytes()) / reads.Sum();
  run.counters["read_share"] = reads.Sum() / times.Sum();
}

void Prefill(benchmark::State& run, KvDtype dtype) {
  const std::int32_t tile_tokens = 64 * static_cast<std::int32_t>(run.range(2));
  Model model = kModels[run.range(0)];
  model.layers = 1;
  const auto tokens = static_cast<std::int32_t>(run.range(1));
  const auto threads = static_cast<int>(run.range(2));
  const Cache cache(model, dtype, tokens);
  Batch batch(model, cache, tokens, 0);
  std::vector<Scratch> scratch(
      static_cast<std::size_t>(threads),
      Scratch(AttentionScratchBytes(tile_tokens, model.heads, model.dim, model.dim)));
  const std::int32_t tiles = (tokens + tile_tokens - 1) / tile_tokens;
  BestTimes times(static_cast<std::size_t>(tiles));
  for (auto _ : run) {
    for (std::int32_t tile = 0; tile < tiles; ++tile) {
      const std::int32_t begin = tile * tile_tokens;
      times.Run(static_cast<std::size_t>(tile), [&] {
        BenchThreads(threads).Run([&](int worker) {
          // Each worker takes a share of the tile's tokens for every KV head.
          const Range range = SplitRange(std::min(tile_tokens, tokens - begin), 1, worker, threads);
          for (std::int32_t h = 0; h < model.kv_heads; ++h) {
            Attend(batch.Task(0, h, begin + static_cast<std::int32_t>(range.begin),
                              static_cast<std::int32_t>(range.end - range.begin)),
                   scratch[static_cast<std::size_t>(worker)].span());
          }
        });
      });
    }
  }
  const double pairs = 0.5 * tokens * (tokens + 1.0) * model.kv_heads * model.heads;
  const double peak = 2 * PeakGmacs(threads, /*floats=*/true);
  run.SetLabel(model.name);
  run.counters["ms"] = 1e3 * times.Sum();
  run.counters["GFLOPs"] = 1e-9 * pairs * 4 * model.dim / times.Sum();
  run.counters["peak_GFLOPs"] = peak;
  run.counters["peak_share"] = 1e-9 * pairs * 4 * model.dim / times.Sum() / peak;
}

void DecodeArguments(benchmark::internal::Benchmark* b) {
  for (const int threads : {1, 2}) {
    for (const int context : {256, 512, 1024, 2048, 4096, 8192}) b->Args({0, context, threads});
    for (const int context : {1024, 8192}) b->Args({1, context, threads});
    for (const int context : {1024, 8192}) b->Args({2, context, threads});
  }
}
BENCHMARK_CAPTURE(Decode, f16, KvDtype::kF16)->Apply(DecodeArguments)->MinTime(0.5)->UseRealTime();
BENCHMARK_CAPTURE(Decode, int8, KvDtype::kInt8)
    ->Apply(DecodeArguments)
    ->MinTime(0.5)
    ->UseRealTime();

void PrefillArguments(benchmark::internal::Benchmark* b) {
  for (const int threads : {1, 2}) {
    for (const int tokens : {512, 2048, 8192}) b->Args({0, tokens, threads});
    for (const int model : {1, 2}) b->Args({model, 2048, threads});
  }
}
BENCHMARK_CAPTURE(Prefill, f16, KvDtype::kF16)
    ->Apply(PrefillArguments)
    ->MinTime(0.5)
    ->UseRealTime();
BENCHMARK_CAPTURE(Prefill, int8, KvDtype::kInt8)
    ->Apply(PrefillArguments)
    ->MinTime(0.5)
    ->UseRealTime();

}  // namespace
}  // namespace penstock::kernels
