// SPDX-License-Identifier: Apache-2.0
// Where the order of tokens is cut: kernels/sampling_cuda.h's top_k and top_p.
#include "kernels/sampling_cuda_parts.h"

namespace penstock::kernels {
namespace {

// The bits of a key that a level looks at, and how many are below them.
GPU_DEVICE int ShiftOf(int level) { return level == 0 ? 21 : level == 1 ? 10 : 0; }
GPU_DEVICE std::uint32_t BinsOf(int level) { return level == 2 ? 1024 : kBins; }

// Where a cut finds the bins of a level: the first level's, of all tokens, serve both.
GPU_DEVICE int TableOf(int by, int level) { return level == 0 ? 0 : 2 * by + level; }

// Weights are added up in two halves, in 32 bits each, since atomics on 64 are slow in shared memory.
constexpr int kLowBits = 20;
static_assert((std::uint64_t{kPerBlock} << kLowBits) <= std::uint64_t{1} << 32);
static_assert(std::uint64_t{kPerBlock} << (kDrawWeightBits - kLowBits) < std::uint64_t{1} << 32);

// A block per 4096 logits adds up those whose keys begin as the cut does, in the bins of a level.
GPU_KERNEL(kThreads, 4)
BinsKernel(const DrawLaunch a, int by, int level) {
  GPU_SHARED(std::uint32_t, counts, kBins);
  GPU_SHARED(std::uint32_t, lows, kBins);
  GPU_SHARED(std::uint32_t, highs, kBins);
  gpu::LetNextStart();
  gpu::WaitForEarlier();
  const One one = OneOf(a);
  if (level == 0 ? !one.spec.filters() : !Wants(one.spec, by, a.vocab)) return;
  for (int i = static_cast<int>(threadIdx.x); i < kBins; i += kThreads) {
    counts[i] = lows[i] = highs[i] = 0;
  }
  gpu::SyncThreads();
  const bool weighs = one.spec.top_p < 1;
  const float max = MaxOf(a, one);
  const int shift = ShiftOf(level);
  const std::uint32_t begins = level == 0 ? 0 : a.cuts[2 * one.at + by].key >> ShiftOf(level - 1);
  GPU_UNROLL(4)
  for (int i = 0; i < kPerLane; ++i) {
    const auto index = static_cast<std::int32_t>(blockIdx.y * kPerBlock +
                                                 static_cast<unsigned>(i) * kThreads + threadIdx.x);
    if (index >= a.vocab) break;
    const std::uint32_t key = DrawKey(one.row[index]);
    if (level > 0 && key >> ShiftOf(level - 1) != begins) continue;
    const std::uint32_t bin = key >> shift & (BinsOf(level) - 1);
    gpu::AtomicAdd(&counts[bin], 1);
    if (!weighs) continue;
    const std::uint64_t weight = DrawWeight(LogitOfKey(key), max, one.spec.temperature);
    const auto low = static_cast<std::uint32_t>(weight) & ((1u << kLowBits) - 1);
    const auto high = static_cast<std::uint32_t>(weight >> kLowBits);
    gpu::AtomicAdd(&lows[bin], low);
    gpu::AtomicAdd(&highs[bin], high);
  }
  gpu::SyncThreads();
  const std::int64_t table = (one.at * kTables + TableOf(by, level)) * kBins;
  for (int i = static_cast<int>(threadIdx.x); i < kBins; i += kThreads) {
    if (counts[i] == 0) continue;
    gpu::AtomicAdd(a.bin_count + table + i, counts[i]);
    const std::uint64_t mass = lows[i] + (std::uint64_t{highs[i]} << kLowBits);
    if (mass != 0) gpu::AtomicAdd64(a.bin_mass + table + i, mass);
  }
}

struct CountAndMass {
  std::uint64_t count;
  std::uint64_t mass;
};
// Of the threads before this one, and of all. Every thread of the block comes here, once.
GPU_DEVICE CountAndMass SumBefore(CountAndMass own, CountAndMass& all) {
  GPU_SHARED(std::uint64_t, counts, kWarps);
  GPU_SHARED(std::uint64_t, masses, kWarps);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const CountAndMass up_to = {SumUpTo(own.count, lane), SumUpTo(own.mass, lane)};
  if (lane == 31) {
    counts[warp] = up_to.count;
    masses[warp] = up_to.mass;
  }
  gpu::SyncThreads();
  CountAndMass before = {up_to.count - own.count, up_to.mass - own.mass};
  all = {};
  for (int i = 0; i < kWarps; ++i) {
    if (i < warp) before = {before.count + counts[i], before.mass + masses[i]};
    all = {all.count + counts[i], all.mass + masses[i]};
  }
  return before;
}

// With the last bits of the key known: how many tokens that have it remain.
GPU_DEVICE void EndCut(Cut& cut, int by, std::uint64_t count, std::uint64_t mass) {
  const std::uint64_t weight = mass / count;  // All of one key weigh the same.
  std::uint64_t ties = cut.target - cut.count_above;
  if (by == kByMass) ties = (cut.target - cut.mass_above + weight - 1) / weight;
  cut.ties = static_cast<std::uint32_t>(ties);
  cut.mass = cut.mass_above + ties * weight;
}

// A block finds the bin in which the draw's target is reached: each thread has eight, from the last.
GPU_KERNEL(kThreads, 4)
CutKernel(const DrawLaunch a, int by, int level) {
  constexpr int kOwn = kBins / kThreads;
  gpu::LetNextStart();
  gpu::WaitForEarlier();
  const One one = OneOf(a);
  if (!Wants(one.spec, by, a.vocab)) return;
  Cut cut = {};
  if (level > 0) cut = a.cuts[2 * one.at + by];
  const std::int64_t table = (one.at * kTables + TableOf(by, level)) * kBins;
  const int last = kBins - 1 - kOwn * static_cast<int>(threadIdx.x);
  CountAndMass own = {};
  GPU_UNROLL()
  for (int i = 0; i < kOwn; ++i) {
    own.count += a.bin_count[table + last - i];
    own.mass += a.bin_mass[table + last - i];
  }
  CountAndMass all;
  CountAndMass above = SumBefore(own, all);
  if (level == 0) {
    const bool is_cut = by == kByMass && Wants(one.spec, kByCount, a.vocab);
    const std::uint64_t mass = is_cut ? a.cuts[2 * one.at + kByCount].mass : all.mass;
    cut.target = by == kByCount ? static_cast<std::uint64_t>(one.spec.top_k)
                                : NucleusMass(one.spec.top_p, mass);
  }
  above = {above.count + cut.count_above, above.mass + cut.mass_above};
  for (int bin = last; bin > last - kOwn; --bin) {
    const std::uint64_t count = a.bin_count[table + bin];
    const std::uint64_t mass = a.bin_mass[table + bin];
    const std::uint64_t before = by == kByCount ? above.count : above.mass;
    if (before < cut.target && before + (by == kByCount ? count : mass) >= cut.target) {
      cut.key |= static_cast<std::uint32_t>(bin) << ShiftOf(level);
      cut.count_above = above.count;
      cut.mass_above = above.mass;
      if (level == kLevels - 1) EndCut(cut, by, count, mass);
      a.cuts[2 * one.at + by] = cut;
      return;
    }
    above = {above.count + count, above.mass + mass};
  }
}

}  // namespace

void LaunchCuts(const DrawLaunch& a, const DrawKinds& kinds, dim3 pieces, cudaStream_t stream) {
  const dim3 draws(static_cast<unsigned>(kinds.count));
  for (const int by : {kByCount, kByMass}) {
    if (by == kByCount ? !kinds.top_k : !kinds.top_p) continue;
    for (int level = 0; level < kLevels; ++level) {
      const bool is_there = level == 0 && by == kByMass && kinds.top_k;
      if (!is_there) GPU_LAUNCH_EARLY(BinsKernel, pieces, dim3(kThreads), 0, stream, a, by, level);
      GPU_LAUNCH_EARLY(CutKernel, draws, dim3(kThreads), 0, stream, a, by, level);
    }
  }
}

}  // namespace penstock::kernels
