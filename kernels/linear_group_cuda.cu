// SPDX-License-Identifier: Apache-2.0
// Products of a group of rows of x: more than linear_few_cuda.cu takes at once, too few to fill a
// GPU with the tiles of linear_many_cuda.cu. A block of threads has one panel, so that it takes
// many panels to fill a GPU; where they are few, linear_few_cuda.cu is called twice instead. The
// eight warps take the eight blocks of a unit, and then share the sums over blocks, one
// thread per output, in order.
#include "kernels/gpu.h"
//
#include "kernels/linear_cuda_blocks.h"
#include "kernels/linear_cuda_kernels.h"

namespace penstock::kernels::linear_cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kXRows = kGroupRowsMax;  // Rows of x that a block of threads has.
constexpr int kXStride = 256 + 16;  // Bytes between rows of x in a stage: free of bank conflicts.
constexpr int kValueStride = 20;    // Floats between columns of values, likewise.

constexpr int kStages = 4;

template <WeightFormat format>
constexpr int kStageBytes = kUnitBytes<format> + kXRows* kXStride;
constexpr int kValueFloats = kUnitBlocks * kXRows * kValueStride;
template <WeightFormat format>
constexpr int kSharedBytes = kStages* kStageBytes<format> +
                             2 * static_cast<int>(sizeof(float)) *
                                 (kValueFloats + kUnitBlocks * kXRows);

struct Group {
  const std::byte* panel;
  int row_begin;  // Of x.
  int rows;
};

template <WeightFormat format>
GPU_DEVICE void FetchWeights(const Group& group, int unit, int count, int thread,
                             std::byte* stage) {
  const std::byte* from = group.panel + std::size_t{1} * unit * kUnitBytes<format> + 16 * thread;
  const int bytes = IsKFormat(format) ? kUnitBytes<format> : count * kBlockBytes<format>;
  GPU_UNROLL()
  for (int at = 0; at < kUnitBytes<format>; at += 16 * kThreads) {
    if (at + 16 * thread < bytes) gpu::CopyAsync16(stage + at + 16 * thread, from + at);
  }
}

GPU_DEVICE void FetchX(const Products& p, const Group& group, int unit, int count, int thread,
                       std::byte* x) {
  const int blocks = p.cols / kQuantBlock;
  GPU_UNROLL()
  for (int first = 0; first < 16 * kXRows; first += kThreads) {
    const int row = (first + thread) / 16;
    const int at = thread % 16 * 16;
    if (first + thread >= 16 * kXRows) break;
    const std::size_t from =
        (std::size_t{1} * (group.row_begin + row) * blocks + unit * kUnitBlocks) * kQuantBlock + at;
    gpu::CopyAsync16(x + row * kXStride + at, p.q + from,
                     row < group.rows && at < count * kQuantBlock);
  }
}

// Element `thread` of the unit's [kUnitBlocks][kXRows] scales of x.
GPU_DEVICE float LoadXScale(const Products& p, const Group& group, int unit, int thread) {
  const int blocks = p.cols / kQuantBlock;
  const int block = unit * kUnitBlocks + thread / kXRows;
  const int row = thread % kXRows;
  if (thread >= kUnitBlocks * kXRows || block >= blocks || row >= group.rows) return 0;
  return p.scale[std::int64_t{group.row_begin + row} * blocks + block];
}

// The values of one block for all rows of x: values [kXRows][kValueStride].
template <WeightFormat format>
GPU_DEVICE void BlockValues(const std::byte* stage, int block, int lane, float* values) {
  const int g = lane / 4;
  const int t = lane % 4;
  const BlockAt at = UnitBlock<format>(stage, block);
  std::uint32_t a[4];
  RowScales scales;
  LoadLevels<format>(at.levels, g, t, a);
  LoadScales<format>(at, g, scales);
  const std::byte* x = stage + kUnitBytes<format> + g * kXStride + block * kQuantBlock + 4 * t;
  GPU_UNROLL()
  for (int column = 0; column < kXRows; column += 8) {
    const auto b0 = gpu::Load<std::uint32_t>(x + column * kXStride);
    const auto b1 = gpu::Load<std::uint32_t>(x + column * kXStride + 16);
    LevelSums sums;
    Start(sums.low);
    Start(sums.high);
    const XSums x_sums = SumX<format>(b0, b1);
    AddLevels<format>(a, b0, b1, sums);
    float* to = values + (column + 2 * t) * kValueStride + 2 * g;
    GPU_UNROLL()
    for (int e = 0; e < 2; ++e) {
      const float2 pair = {BlockValue<format>(sums, x_sums, scales, e),
                           BlockValue<format>(sums, x_sums, scales, 2 + e)};
      gpu::Store(to + e * kValueStride, pair);
    }
  }
}

// Sums of one thread: outputs thread + kThreads * i of [kXRows][kPanelRows].
struct Sums {
  static constexpr int kPerThread = (kXRows * kPanelRows + kThreads - 1) / kThreads;
  float sum[kPerThread];
};

GPU_DEVICE void AddUnit(const float* values, const float* scales, int count, int thread,
                        Sums& sums) {
  GPU_UNROLL()
  for (int i = 0; i < sums.kPerThread; ++i) {
    const int output = thread + i * kThreads;
    if (output >= kXRows * kPanelRows) break;
    const float* value = values + output / kPanelRows * kValueStride + output % kPanelRows;
    const float* scale = scales + output / kPanelRows;
    GPU_UNROLL()
    for (int block = 0; block < kUnitBlocks; ++block) {
      if (block < count) {
        sums.sum[i] =
            gpu::Fma(value[block * kXRows * kValueStride], scale[block * kXRows], sums.sum[i]);
      }
    }
  }
}

// One block of threads computes one panel for kXRows rows of x. Block (x, y): rows of x from
// x * kXRows on, panel y. A step adds up the values of the last unit and computes those of the
// next.
template <WeightFormat format>
GPU_KERNEL(kThreads, 2)
GroupRowsKernel(const Products p) {
  GPU_DYNAMIC_SHARED(shared);
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / 32;
  const int blocks = p.cols / kQuantBlock;
  const int units = (blocks + kUnitBlocks - 1) / kUnitBlocks;
  auto* all_values = reinterpret_cast<float*>(shared + kStages * kStageBytes<format>);
  float* all_scales = all_values + 2 * kValueFloats;
  const Product product = ProductOf(p, static_cast<int>(blockIdx.y));
  const int panel = static_cast<int>(blockIdx.y) - product.tile_begin;
  const int row_begin = static_cast<int>(blockIdx.x) * kXRows;
  const Group group = {product.data + panel * PanelBytes(format, p.cols), row_begin,
                       p.rows - row_begin < kXRows ? p.rows - row_begin : kXRows};

  const auto blocks_of = [&](int unit) {
    const int left = blocks - unit * kUnitBlocks;
    return left < kUnitBlocks ? left : kUnitBlocks;
  };
  const auto stage_of = [&](int unit) { return shared + unit % kStages * kStageBytes<format>; };
  gpu::LetNextStart();
  GPU_UNROLL()
  for (int unit = 0; unit < kStages - 1; ++unit) {
    if (unit < units) {
      FetchWeights<format>(group, unit, blocks_of(unit), thread, stage_of(unit));
    }
  }
  // Weights do not come from a kernel ahead; x does.
  gpu::WaitForEarlier();
  GPU_UNROLL()
  for (int unit = 0; unit < kStages - 1; ++unit) {
    if (unit < units) {
      FetchX(p, group, unit, blocks_of(unit), thread, stage_of(unit) + kUnitBytes<format>);
    }
    gpu::CopyAsyncCommit();
  }
  float x_scale = LoadXScale(p, group, 0, thread);
  Sums sums = {};
  for (int unit = 0; unit <= units; ++unit) {
    gpu::CopyAsyncWait<kStages - 2>();
    gpu::SyncThreads();
    const int ahead = unit + kStages - 1;
    if (ahead < units) {
      FetchWeights<format>(group, ahead, blocks_of(ahead), thread, stage_of(ahead));
      FetchX(p, group, ahead, blocks_of(ahead), thread, stage_of(ahead) + kUnitBytes<format>);
    }
    gpu::CopyAsyncCommit();
    if (unit < units) {
      if (thread < kUnitBlocks * kXRows) {
        all_scales[unit % 2 * kUnitBlocks * kXRows + thread] = x_scale;
      }
      x_scale = LoadXScale(p, group, unit + 1, thread);
      if (unit * kUnitBlocks + warp < blocks) {
        BlockValues<format>(stage_of(unit), warp, thread % 32,
                            all_values + unit % 2 * kValueFloats + warp * kXRows * kValueStride);
      }
    }
    if (unit > 0) {
      const int last = unit - 1;
      AddUnit(all_values + last % 2 * kValueFloats, all_scales + last % 2 * kUnitBlocks * kXRows,
              blocks - last * kUnitBlocks, thread, sums);
    }
  }
  GPU_UNROLL()
  for (int i = 0; i < sums.kPerThread; ++i) {
    const int output = thread + i * kThreads;
    if (output < kXRows * kPanelRows) {
      WriteOutput(product, p.rows, row_begin + output / kPanelRows,
                  panel * kPanelRows + output % kPanelRows, sums.sum[i]);
    }
  }
}

template <WeightFormat format>
cudaError_t Launch(const Products& p, std::int32_t tiles, cudaStream_t stream) {
  constexpr int shared_bytes = kSharedBytes<format>;
  const auto kernel = GroupRowsKernel<format>;
  if (const cudaError_t error = gpu::AllowShared(kernel, shared_bytes); error != cudaSuccess) {
    return error;
  }
  const dim3 grid(static_cast<unsigned>((p.rows + kXRows - 1) / kXRows),
                  static_cast<unsigned>(tiles));
  GPU_LAUNCH_EARLY(kernel, grid, dim3(kThreads), shared_bytes, stream, p);
  return cudaGetLastError();
}

}  // namespace

cudaError_t GroupRows(Products products, cudaStream_t stream) {
  const std::int32_t tiles = CutIntoTiles(products, 1);
  return WithInt8Format(products.format, [&](auto format) {
    return Launch<decltype(format)::value>(products, tiles, stream);
  });
}

}  // namespace penstock::kernels::linear_cuda
