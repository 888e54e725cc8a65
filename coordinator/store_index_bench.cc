// SPDX-License-Identifier: Apache-2.0
// How many longest-prefix lookups a second one core can do, and what the index weighs.
//
// Ten million (block, holder) on 64 nodes, as 5,000 chains of 2,000 blocks. A query is one of the
// chains; queries come in random order, so that nothing of them is in the caches.
#include <benchmark/benchmark.h>

#include <random>
#include <vector>

#include "base/check.h"
#include "coordinator/store_index.h"

namespace penstock::coordinator {
namespace {

constexpr std::size_t kChainBlocks = 2000;
constexpr std::size_t kChains = 5000;
constexpr std::uint32_t kNodes = 64;

// How chains came into the index.
enum class Shape {
  kRuns32,      // In order; a chain's holder changes 31 times.
  kNeighbours,  // In order; no two neighbours have the same holder.
  kScattered,   // In random order, of all chains together: nobody has a place behind its parent.
};

struct Bench {
  explicit Bench(Shape shape) : index({.node_copies_max = 16u << 20}), random(4711) {
    for (StoreIndex::Node node = 0; node < kNodes; ++node) CHECK(index.Add(node).ok());
    names.resize(kChains * kChainBlocks);
    for (CopyName& name : names) {
      for (std::size_t i = 0; i < 16; i += 8) {
        const std::uint64_t value = random();
        std::memcpy(name.bytes.data() + i, &value, sizeof(value));
      }
    }
    std::vector<std::uint32_t> order(names.size());
    for (std::uint32_t i = 0; i < order.size(); ++i) order[i] = i;
    if (shape == Shape::kScattered) std::shuffle(order.begin(), order.end(), random);
    const std::size_t change = shape == Shape::kRuns32 ? kChainBlocks / 32 + 1 : 1;
    std::vector<std::uint64_t> next(kNodes, 1);
    for (const std::uint32_t i : order) {
      const std::size_t block = i % kChainBlocks;
      const auto node = static_cast<std::uint32_t>((i / kChainBlocks + block / change) % kNodes);
      CopyEvent event = {.name = names[i], .codec = 1, .bytes = 737'280};
      if (block > 0 && shape != Shape::kScattered) event.parent = names[i - 1];
      CHECK(index.Apply(node, next[node]++, {&event, 1}) == Applied::kApplied);
    }
  }
  std::span<const CopyName> Chain() {
    return std::span(names).subspan(random() % kChains * kChainBlocks, kChainBlocks);
  }

  StoreIndex index;
  std::mt19937_64 random;
  std::vector<CopyName> names;
};

void Lookup(benchmark::State& state, Shape shape) {
  Bench bench(shape);
  StoreIndex::Found found;
  std::size_t runs = 0;
  for (auto _ : state) {
    found.clear();
    bench.index.Lookup(bench.Chain(), 0, StoreIndex::AtHole::kEnd, found);
    CHECK_EQ(found.runs.back().end, kChainBlocks);
    runs = found.runs.size();
  }
  state.counters["lookups_per_s"] =
      benchmark::Counter(static_cast<double>(state.iterations()), benchmark::Counter::kIsRate);
  state.counters["runs"] = static_cast<double>(runs);
  state.counters["bytes_per_copy"] =
      static_cast<double>(bench.index.bytes()) / static_cast<double>(bench.names.size());
}
BENCHMARK_CAPTURE(Lookup, runs_32, Shape::kRuns32)->Iterations(100000);
BENCHMARK_CAPTURE(Lookup, runs_of_one, Shape::kNeighbours)->Iterations(40000);
BENCHMARK_CAPTURE(Lookup, scattered, Shape::kScattered)->Iterations(40000);

}  // namespace
}  // namespace penstock::coordinator
