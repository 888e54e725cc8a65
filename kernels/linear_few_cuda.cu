// SPDX-License-Identifier: Apache-2.0
// Products of a few rows of x; nine to sixteen come as two calls where linear_group_cuda.cu would
// leave a GPU idle. The weights go through once per call, in asynchronous copies; what limits is
// the memory. The sums over a block's levels, in which no order shows, are spread over the warps;
// only the sum over blocks has an order, and one thread per output walks along it.
#include "kernels/gpu.h"
//
#include "kernels/linear_cuda_blocks.h"
#include "kernels/linear_cuda_kernels.h"

namespace penstock::kernels::linear_cuda {
namespace {

constexpr int kStages = 2;          // Units on their way per warp.
constexpr int kXStride = 256 + 16;  // Bytes between rows of x in a unit: free of bank conflicts.
constexpr int kValueStride = 20;    // Floats between columns of values, likewise.
constexpr int kWarpsMax = 8;

template <WeightFormat format, int x_rows>
constexpr int kStageBytes = kUnitBytes<format> + x_rows* kXStride;

// Shared memory of a block of threads: per warp kStages stages; then twice the values of a round,
// [blocks of the round][x_rows][kValueStride], and x's scales of a round, [blocks][x_rows].
template <WeightFormat format, int x_rows>
constexpr std::size_t SharedBytes(int warps) {
  return static_cast<std::size_t>(warps) *
         (kStages * kStageBytes<format, x_rows> +
          2 * kUnitBlocks * x_rows * (kValueStride + 1) * sizeof(float));
}

GPU_DEVICE int BlocksOf(int unit, int blocks) {
  const int left = blocks - unit * kUnitBlocks;
  return left < kUnitBlocks ? left : kUnitBlocks;
}

template <WeightFormat format>
GPU_DEVICE void FetchWeights(const std::byte* panel, int unit, int blocks, int lane,
                             std::byte* stage) {
  const std::byte* from = panel + std::size_t{1} * unit * kUnitBytes<format> + 16 * lane;
  const int bytes =
      IsKFormat(format) ? kUnitBytes<format> : BlocksOf(unit, blocks) * kBlockBytes<format>;
  GPU_UNROLL()
  for (int at = 0; at < kUnitBytes<format>; at += 512) {
    if (at + 16 * lane < bytes) gpu::CopyAsync16(stage + at + 16 * lane, from + at);
  }
}

template <int x_rows>
GPU_DEVICE void FetchX(const Products& p, int unit, int lane, std::byte* x) {
  const int blocks = p.cols / kQuantBlock;
  const int bytes = BlocksOf(unit, blocks) * kQuantBlock;
  GPU_UNROLL()
  for (int first = 0; first < 16 * x_rows; first += 32) {
    const int row = (first + lane) / 16;
    const int at = lane % 16 * 16;
    if (first + lane >= 16 * x_rows) break;
    const std::size_t from =
        (std::size_t{1} * row * blocks + unit * kUnitBlocks) * kQuantBlock + at;
    gpu::CopyAsync16(x + row * kXStride + at, p.q + from, row < p.rows && at < bytes);
  }
}

// The scales of a unit's blocks, element lane + 32 i of [blocks][x_rows].
template <int x_rows>
struct UnitScales {
  static constexpr int kPerLane = (kUnitBlocks * x_rows + 31) / 32;
  float value[kPerLane];
};

template <int x_rows>
GPU_DEVICE UnitScales<x_rows> LoadUnitScales(const Products& p, int unit, int lane) {
  const int blocks = p.cols / kQuantBlock;
  UnitScales<x_rows> scales;
  GPU_UNROLL()
  for (int i = 0; i < scales.kPerLane; ++i) {
    const int block = unit * kUnitBlocks + (lane + 32 * i) / x_rows;
    const int row = (lane + 32 * i) % x_rows;
    const bool live = lane + 32 * i < kUnitBlocks * x_rows && block < blocks && row < p.rows;
    scales.value[i] = live ? p.scale[std::int64_t{row} * blocks + block] : 0.0f;
  }
  return scales;
}

// Values of a unit, [block][x_rows][kValueStride]. The eight columns of an mma are kSetBlocks blocks
// of x_rows rows: each mma of a set multiplies the levels of one block, with the columns of the other
// blocks at zero, so that the sums of all blocks end in one accumulator, spread over all lanes.
template <WeightFormat format, int x_rows>
GPU_DEVICE void UnitValues(const std::byte* stage, int lane, float* values) {
  constexpr int kSetBlocks = 8 / x_rows;
  const int g = lane / 4;
  const int t = lane % 4;
  GPU_UNROLL()
  for (int first = 0; first < kUnitBlocks; first += kSetBlocks) {
    const std::byte* x = stage + kUnitBytes<format> + g % x_rows * kXStride +
                         (first + g / x_rows) * kQuantBlock + 4 * t;
    const auto x0 = gpu::Load<std::uint32_t>(x);
    const auto x1 = gpu::Load<std::uint32_t>(x + 16);
    LevelSums sums;
    Start(sums.low);
    Start(sums.high);
    const XSums x_sums = SumX<format>(x0, x1);
    GPU_UNROLL()
    for (int block = 0; block < kSetBlocks; ++block) {
      const bool mine = g / x_rows == block;
      std::uint32_t a[4];
      LoadLevels<format>(UnitBlock<format>(stage, first + block).levels, g, t, a);
      AddLevels<format>(a, mine ? x0 : 0, mine ? x1 : 0, sums);
    }
    float* to = values + (first * x_rows + 2 * t) * kValueStride + 2 * g;
    RowScales scales;
    GPU_UNROLL()
    for (int e = 0; e < 2; ++e) {
      if (e == 0 || x_rows == 1) {
        const int block = first + (2 * t + e) / x_rows;
        LoadScales<format>(UnitBlock<format>(stage, block), g, scales);
      }
      const float2 pair = {BlockValue<format>(sums, x_sums, scales, e),
                           BlockValue<format>(sums, x_sums, scales, 2 + e)};
      gpu::Store(to + e * kValueStride, pair);
    }
  }
}

// One block of threads computes one panel for all rows of x. A round: each warp takes one unit,
// writes its values and x's scales, and after the barrier one thread per output adds them up.
template <WeightFormat format, int x_rows>
GPU_KERNEL(kWarpsMax * 32, 1)
FewRowsKernel(const Products p) {
  GPU_DYNAMIC_SHARED(shared);
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int warp = thread / 32;
  const int warps = static_cast<int>(blockDim.x) / 32;
  const int blocks = p.cols / kQuantBlock;
  const int units = (blocks + kUnitBlocks - 1) / kUnitBlocks;
  const int rounds = (units + warps - 1) / warps;
  const int round_values = warps * kUnitBlocks * x_rows;
  std::byte* stages = shared + warp * kStages * kStageBytes<format, x_rows>;
  auto* all_values =
      reinterpret_cast<float*>(shared + warps * kStages * kStageBytes<format, x_rows>);
  float* all_scales = all_values + 2 * round_values * kValueStride;
  const Product product = ProductOf(p, static_cast<int>(blockIdx.x));
  const int panel = static_cast<int>(blockIdx.x) - product.tile_begin;
  const std::byte* data = product.data + panel * PanelBytes(format, p.cols);

  gpu::LetNextStart();
  GPU_UNROLL()
  for (int stage = 0; stage < kStages; ++stage) {
    const int unit = stage * warps + warp;
    if (unit < units) {
      FetchWeights<format>(data, unit, blocks, lane, stages + stage * kStageBytes<format, x_rows>);
    }
  }
  // Weights do not come from a kernel ahead; x does.
  gpu::WaitForEarlier();
  GPU_UNROLL()
  for (int stage = 0; stage < kStages; ++stage) {
    const int unit = stage * warps + warp;
    if (unit < units) {
      FetchX<x_rows>(p, unit, lane,
                     stages + stage * kStageBytes<format, x_rows> + kUnitBytes<format>);
    }
    gpu::CopyAsyncCommit();
  }
  UnitScales<x_rows> scales = LoadUnitScales<x_rows>(p, warp, lane);
  float sum = 0;
  for (int round = 0; round < rounds; ++round) {
    const int unit = round * warps + warp;
    std::byte* stage = stages + round % kStages * kStageBytes<format, x_rows>;
    float* values = all_values + round % 2 * round_values * kValueStride;
    float* round_scales = all_scales + round % 2 * round_values;
    GPU_UNROLL()
    for (int i = 0; i < scales.kPerLane; ++i) {
      const int at = lane + 32 * i;
      if (at < kUnitBlocks * x_rows)
        round_scales[warp * kUnitBlocks * x_rows + at] = scales.value[i];
    }
    scales = LoadUnitScales<x_rows>(p, unit + warps, lane);
    gpu::CopyAsyncWait<kStages - 1>();
    gpu::SyncWarp();
    if (unit < units) {
      UnitValues<format, x_rows>(stage, lane, values + warp * kUnitBlocks * x_rows * kValueStride);
    }
    gpu::SyncWarp();
    const int ahead = unit + kStages * warps;
    if (ahead < units) {
      FetchWeights<format>(data, ahead, blocks, lane, stage);
      FetchX<x_rows>(p, ahead, lane, stage + kUnitBytes<format>);
    }
    gpu::CopyAsyncCommit();
    gpu::SyncThreads();
    if (thread < kPanelRows * x_rows) {
      const int left = blocks - round * warps * kUnitBlocks;
      const int count = left < warps * kUnitBlocks ? left : warps * kUnitBlocks;
      const float* value = values + thread / kPanelRows * kValueStride + thread % kPanelRows;
      const float* scale = round_scales + thread / kPanelRows;
      GPU_UNROLL(8)
      for (int block = 0; block < count; ++block) {
        sum = gpu::Fma(value[block * x_rows * kValueStride], scale[block * x_rows], sum);
      }
    }
  }
  if (thread < kPanelRows * x_rows) {
    WriteOutput(product, p.rows, thread / kPanelRows, panel * kPanelRows + thread % kPanelRows,
                sum);
  }
}

template <WeightFormat format, int x_rows>
cudaError_t Launch(const Products& p, std::int32_t tiles, cudaStream_t stream) {
  const int units = (p.cols / kQuantBlock + kUnitBlocks - 1) / kUnitBlocks;
  // From four rows on, half the values of a round leave room for more blocks of threads.
  const int warps_max = x_rows >= 4 ? kWarpsMax / 2 : kWarpsMax;
  const int warps = units <= warps_max / 2 && x_rows < 4 ? warps_max / 2 : warps_max;
  const std::size_t shared_bytes = SharedBytes<format, x_rows>(warps);
  const auto kernel = FewRowsKernel<format, x_rows>;
  if (const cudaError_t error = gpu::AllowShared(kernel, shared_bytes); error != cudaSuccess) {
    return error;
  }
  GPU_LAUNCH_EARLY(kernel, dim3(static_cast<unsigned>(tiles)),
                   dim3(static_cast<unsigned>(warps) * 32), shared_bytes, stream, p);
  return cudaGetLastError();
}

template <WeightFormat format>
cudaError_t LaunchRows(const Products& p, std::int32_t tiles, cudaStream_t stream) {
  if (p.rows == 1) return Launch<format, 1>(p, tiles, stream);
  if (p.rows == 2) return Launch<format, 2>(p, tiles, stream);
  if (p.rows <= 4) return Launch<format, 4>(p, tiles, stream);
  return Launch<format, 8>(p, tiles, stream);
}

}  // namespace

cudaError_t FewRows(Products products, cudaStream_t stream) {
  const std::int32_t tiles = CutIntoTiles(products, 1);
  return WithInt8Format(products.format, [&](auto format) {
    return LaunchRows<decltype(format)::value>(products, tiles, stream);
  });
}

}  // namespace penstock::kernels::linear_cuda
