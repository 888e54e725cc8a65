// SPDX-License-Identifier: Apache-2.0
// Products of many rows of x: tiles of outputs whose int8 sums come from tensor cores. Each of the
// blocks' sums is then turned into float and added in registers, in ascending order; those two to
// five operations per sum and 32 columns, at the rate of fp32, are what limits.
#include "kernels/gpu.h"
//
#include "kernels/linear_cuda_blocks.h"
#include "kernels/linear_cuda_kernels.h"

namespace penstock::kernels::linear_cuda {
namespace {

constexpr int kTilePanels = 8;
constexpr int kTileRows = 128;  // Of x.
constexpr int kThreads = 256;   // Warp w computes panels 2 (w % 4), + 1 and rows 64 (w / 4)...
constexpr int kWarpPanels = 2;
constexpr int kWarpColumns = 8;  // Groups of eight rows of x: the columns of an mma.
constexpr int kStages = 2;
constexpr int kStageBlocks = 4;  // 128 columns.
// Bytes between half blocks of x, [kTileRows][16]: free of bank conflicts both ways.
constexpr int kHalfStride = kTileRows * 16 + 16;
constexpr int kXBytes = 2 * kStageBlocks * kHalfStride;

// A panel's part of a stage: for K formats d, dmin, the blocks' sub-scales, their levels; for the
// others whole groups.
template <WeightFormat format>
constexpr int kLevelsAt = SubScaleBegin(format) + kStageBlocks * 2 * kPanelRows;
template <WeightFormat format>
constexpr int kPanelStageBytes = IsKFormat(format)
                                     ? kLevelsAt<format> + kStageBlocks* LevelBytes(format)
                                     : kStageBlocks* GroupBytes(format);
template <WeightFormat format>
constexpr int kStageBytes = kTilePanels* kPanelStageBytes<format> + kXBytes +
                            kStageBlocks* kTileRows* static_cast<int>(sizeof(float));

template <WeightFormat format>
GPU_DEVICE BlockAt StageBlock(const std::byte* panel, int block) {
  if constexpr (IsKFormat(format)) {
    return {panel + kLevelsAt<format> + block * LevelBytes(format), panel,
            panel + SubScaleBegin(format) + block * 2 * kPanelRows};
  } else {
    const std::byte* group = panel + block * GroupBytes(format);
    return {group, group + LevelBytes(format), nullptr};
  }
}

// What a block of threads computes. Kept in shared memory and read anew for each stage: registers are
// for the sums.
struct Tile {
  Product product;
  const std::byte* data;  // The first panel.
  int panels;             // From there to the matrix' end.
  int panel_begin;        // Of the first panel, in the matrix.
  int row_begin;          // Of x.
};

// A warp brings bytes [0, bytes) of `from`; zeros up to `size`.
template <int size>
GPU_DEVICE void FetchBytes(const std::byte* from, int bytes, int lane, std::byte* to) {
  GPU_UNROLL()
  for (int begin = 0; begin < size; begin += 512) {
    const int at = begin + 16 * lane;
    if (at < size) gpu::CopyAsync16(to + at, at < bytes ? from + at : from, at < bytes);
  }
}

// `count` blocks of a panel from first_block on; zeros where the matrix has no such panel.
template <WeightFormat format>
GPU_DEVICE void FetchPanel(const std::byte* panel, bool live, int first_block, int count, int lane,
                           std::byte* to) {
  if constexpr (IsKFormat(format)) {
    const std::byte* group = panel + std::size_t{1} * (first_block / 8) * GroupBytes(format);
    const int block = first_block % 8;
    const int at = 16 * lane;
    const int skip = at < SubScaleBegin(format) ? 0 : block * 2 * kPanelRows;
    if (at < kLevelsAt<format>) gpu::CopyAsync16(to + at, group + skip + at, live);
    FetchBytes<kStageBlocks * LevelBytes(format)>(
        group + KLevelsBegin(format) + block * LevelBytes(format),
        live ? kStageBlocks * LevelBytes(format) : 0, lane, to + kLevelsAt<format>);
  } else {
    FetchBytes<kPanelStageBytes<format>>(panel + std::size_t{1} * first_block * GroupBytes(format),
                                         live ? count * GroupBytes(format) : 0, lane, to);
  }
}

// Warp w brings panel w, and every thread its half block of every 32nd row of x.
template <WeightFormat format>
GPU_DEVICE void FetchStage(const Products& p, const Tile& tile, int first_block, int thread,
                           std::byte* stage) {
  const int blocks = p.cols / kQuantBlock;
  const int count = blocks - first_block < kStageBlocks ? blocks - first_block : kStageBlocks;
  const int panel = thread / 32;
  const bool has_panel = panel < tile.panels;
  FetchPanel<format>(tile.data + (has_panel ? panel * PanelBytes(format, p.cols) : 0), has_panel,
                     first_block, count, thread % 32, stage + panel * kPanelStageBytes<format>);
  constexpr int kHalves = 2 * kStageBlocks;
  constexpr int kStep = kThreads / kHalves;
  const int half = thread % kHalves;
  const int rows = half < 2 * count ? p.rows - tile.row_begin : 0;
  const std::size_t row_bytes = std::size_t{1} * blocks * kQuantBlock;
  const std::int8_t* from_x =
      p.q + tile.row_begin * row_bytes + first_block * kQuantBlock + half * 16;
  std::byte* x = stage + kTilePanels * kPanelStageBytes<format> + half * kHalfStride;
  GPU_UNROLL()
  for (int first = 0; first < kTileRows; first += kStep) {
    const int row = first + thread / kHalves;
    const bool live = row < rows;
    gpu::CopyAsync16(x + row * 16, live ? from_x + row * row_bytes : p.q, live);
  }
}

// Each thread brings two blocks' scales of one row into the stage's [kStageBlocks][kTileRows].
GPU_DEVICE float2 LoadXScales(const Products& p, const Tile& tile, int first_block, int thread) {
  const int blocks = p.cols / kQuantBlock;
  const int row = tile.row_begin + thread / 2;
  const int block = first_block + thread % 2 * 2;
  float2 scales = {0, 0};
  if (row >= p.rows) return scales;
  const float* from = p.scale + std::int64_t{row} * blocks;
  if (block < blocks) scales.x = from[block];
  if (block + 1 < blocks) scales.y = from[block + 1];
  return scales;
}

template <WeightFormat format>
GPU_DEVICE float* XScalesOf(std::byte* stage) {
  return reinterpret_cast<float*>(stage + kTilePanels * kPanelStageBytes<format> + kXBytes);
}

using Sums = float[kWarpPanels][kWarpColumns][4];

template <WeightFormat format>
GPU_DEVICE void AddBlock(const std::byte* panels, const std::byte* x, const float* scales,
                         int block, int g, int t, Sums& sums) {
  std::uint32_t a[kWarpPanels][4];
  RowScales row_scales[kWarpPanels];
  GPU_UNROLL()
  for (int panel = 0; panel < kWarpPanels; ++panel) {
    const BlockAt at = StageBlock<format>(panels + panel * kPanelStageBytes<format>, block);
    LoadLevels<format>(at.levels, g, t, a[panel]);
    LoadScales<format>(at, g, row_scales[panel]);
  }
  const std::byte* low = x + 2 * block * kHalfStride + 16 * g + 4 * t;
  const float* scale_at = scales + block * kTileRows + 2 * t;
  GPU_UNROLL()
  for (int column = 0; column < kWarpColumns; ++column) {
    // Keeps the compiler from loading everything early, for want of registers.
    if (column % (kWarpColumns / 2) == 0) gpu::SyncWarp();
    const auto b0 = gpu::Load<std::uint32_t>(low + column * 128);
    const auto b1 = gpu::Load<std::uint32_t>(low + kHalfStride + column * 128);
    const auto scale = gpu::Load<float2>(scale_at + 8 * column);
    XSums x_sums;
    Start(x_sums.low);
    Start(x_sums.high);
    AddX<format>(b0, b1, x_sums);
    GPU_UNROLL()
    for (int panel = 0; panel < kWarpPanels; ++panel) {
      LevelSums level_sums;
      Start(level_sums.low);
      Start(level_sums.high);
      AddLevels<format>(a[panel], b0, b1, level_sums);
      GPU_UNROLL()
      for (int e = 0; e < 4; ++e) {
        const float value = BlockValue<format>(level_sums, x_sums, row_scales[panel], e);
        sums[panel][column][e] =
            gpu::Fma(value, e % 2 == 0 ? scale.x : scale.y, sums[panel][column][e]);
      }
    }
  }
}

// One block of threads computes 8 panels x 128 rows of x, 128 columns of the input at a time. Block
// (x, y): rows of x from 128 x on, tile y.
template <WeightFormat format>
GPU_KERNEL(kThreads, 2)
ManyRowsKernel(const Products p) {
  GPU_DYNAMIC_SHARED(shared);
  const int thread = static_cast<int>(threadIdx.x);
  const int g = thread % 32 / 4;
  const int t = thread % 4;
  const int first_panel = thread / 32 % 4 * kWarpPanels;
  const int first_row = thread / 128 * 8 * kWarpColumns;
  const int blocks = p.cols / kQuantBlock;
  GPU_SHARED(Tile, shared_tile, 1);
  Tile& tile = shared_tile[0];
  if (thread == 0) {
    tile.product = ProductOf(p, static_cast<int>(blockIdx.y));
    tile.panel_begin = (static_cast<int>(blockIdx.y) - tile.product.tile_begin) * kTilePanels;
    tile.data = tile.product.data + tile.panel_begin * PanelBytes(format, p.cols);
    tile.panels = (tile.product.w_rows + kPanelRows - 1) / kPanelRows - tile.panel_begin;
    tile.row_begin = static_cast<int>(blockIdx.x) * kTileRows;
  }
  gpu::SyncThreads();

  FetchStage<format>(p, tile, 0, thread, shared);
  gpu::CopyAsyncCommit();
  float2 scales = LoadXScales(p, tile, 0, thread);
  Sums sums = {};
  for (int first = 0; first < blocks; first += kStageBlocks) {
    std::byte* stage = shared + first / kStageBlocks % kStages * kStageBytes<format>;
    float* stage_scales = XScalesOf<format>(stage);
    stage_scales[thread % 2 * 2 * kTileRows + thread / 2] = scales.x;
    stage_scales[(thread % 2 * 2 + 1) * kTileRows + thread / 2] = scales.y;
    gpu::CopyAsyncWait<0>();
    gpu::SyncThreads();
    if (first + kStageBlocks < blocks) {
      std::byte* next = shared + (first / kStageBlocks + 1) % kStages * kStageBytes<format>;
      FetchStage<format>(p, tile, first + kStageBlocks, thread, next);
      scales = LoadXScales(p, tile, first + kStageBlocks, thread);
    }
    gpu::CopyAsyncCommit();
    const int count = blocks - first < kStageBlocks ? blocks - first : kStageBlocks;
    const std::byte* x = stage + kTilePanels * kPanelStageBytes<format> + first_row * 16;
    GPU_UNROLL(1)
    for (int block = 0; block < count; ++block) {
      AddBlock<format>(stage + first_panel * kPanelStageBytes<format>, x, stage_scales + first_row,
                       block, g, t, sums);
    }
  }
  GPU_UNROLL()
  for (int panel = 0; panel < kWarpPanels; ++panel) {
    GPU_UNROLL()
    for (int column = 0; column < kWarpColumns; ++column) {
      GPU_UNROLL()
      for (int e = 0; e < 4; ++e) {
        const int row = tile.row_begin + first_row + 8 * column + 2 * t + e % 2;
        const int w_row = (tile.panel_begin + first_panel + panel) * kPanelRows + 2 * g + e / 2;
        WriteOutput(tile.product, p.rows, row, w_row, sums[panel][column][e]);
      }
    }
  }
}

template <WeightFormat format>
cudaError_t Launch(const Products& p, std::int32_t tiles, cudaStream_t stream) {
  constexpr int shared_bytes = kStages * kStageBytes<format>;
  const auto kernel = ManyRowsKernel<format>;
  if (const cudaError_t error =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
      error != cudaSuccess) {
    return error;
  }
  const dim3 grid(static_cast<unsigned>((p.rows + kTileRows - 1) / kTileRows),
                  static_cast<unsigned>(tiles));
  GPU_LAUNCH(kernel, grid, dim3(kThreads), shared_bytes, stream, p);
  return cudaGetLastError();
}

}  // namespace

cudaError_t ManyRows(Products products, cudaStream_t stream) {
  const std::int32_t tiles = CutIntoTiles(products, kTilePanels);
  return WithInt8Format(products.format, [&](auto format) {
    return Launch<decltype(format)::value>(products, tiles, stream);
  });
}

}  // namespace penstock::kernels::linear_cuda
