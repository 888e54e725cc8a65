// SPDX-License-Identifier: Apache-2.0
// Products of many rows of x with float weights: four sums per output, each over every fourth column
// in ascending order. A thread has one of the four for 8 x 8 outputs.
#include "kernels/gpu.h"
//
#include "kernels/linear_cuda_blocks.h"
#include "kernels/linear_cuda_kernels.h"

namespace penstock::kernels::linear_cuda {
namespace {

constexpr int kThreads = 256;  // Warp w: panel w % 4, rows 32 (w / 4)... of x.
constexpr int kTilePanels = 4;
constexpr int kTileRows = 64;  // Of x.
constexpr int kPart = 8;       // Weight rows, and rows of x, of a thread.
constexpr int kStageColumns = 32;
constexpr int kXStride = kTileRows + 4;  // Floats between columns of x: free of bank conflicts.
constexpr int kXPerThread = kTileRows * kStageColumns / kThreads;

template <WeightFormat format>
constexpr int kPanelStageBytes = kStageColumns* GroupBytes(format);
template <WeightFormat format>
constexpr int kStageBytes = kTilePanels* kPanelStageBytes<format> + kStageColumns* kXStride * 4;

struct Tile {
  const std::byte* data;  // The first panel.
  int panels;             // From there to the matrix' end.
  int row_begin;          // Of x.
};

template <WeightFormat format>
GPU_DEVICE void FetchWeights(const Products& p, const Tile& tile, int first, int thread,
                             std::byte* stage) {
  const int left = (p.cols - first) * GroupBytes(format);
  GPU_UNROLL()
  for (int begin = 0; begin < kTilePanels * kPanelStageBytes<format>; begin += 16 * kThreads) {
    const int panel = (begin + 16 * thread) / kPanelStageBytes<format>;
    const int at = (begin + 16 * thread) % kPanelStageBytes<format>;
    const std::byte* from = tile.data + panel * PanelBytes(format, p.cols) +
                            std::size_t{1} * first * GroupBytes(format) + at;
    gpu::CopyAsync16(stage + begin + 16 * thread, from, panel < tile.panels && at < left);
  }
}

// x comes through registers, since its rows lie across. A warp brings kLoadColumns columns of
// kLoadRows rows at a time: whole sectors of memory, and no bank twice as they are stored.
constexpr int kLoadColumns = 8;
constexpr int kLoadRows = 32 / kLoadColumns;
struct XPlace {
  int row;     // Of the tile, for value 0; kRowStep more for each next one.
  int column;  // Of the stage.
};
constexpr int kRowStep = kThreads / kStageColumns;
GPU_DEVICE XPlace XPlaceOf(int thread) {
  constexpr int kAcross = kStageColumns / kLoadColumns;  // Warps side by side.
  const int warp = thread / 32;
  return {warp / kAcross * kLoadRows + thread % 32 / kLoadColumns,
          warp % kAcross * kLoadColumns + thread % kLoadColumns};
}

struct XPart {
  float value[kXPerThread];
};
GPU_DEVICE XPart LoadX(const Products& p, const Tile& tile, int first, int thread) {
  XPart part;
  const XPlace at = XPlaceOf(thread);
  const int column = first + at.column;
  GPU_UNROLL()
  for (int i = 0; i < kXPerThread; ++i) {
    const int row = tile.row_begin + at.row + i * kRowStep;
    const bool live = row < p.rows && column < p.cols;
    part.value[i] = live ? p.f32[std::int64_t{row} * p.cols + column] : 0;
  }
  return part;
}
GPU_DEVICE void StoreX(const XPart& part, int thread, float* x) {
  const XPlace at = XPlaceOf(thread);
  GPU_UNROLL()
  for (int i = 0; i < kXPerThread; ++i) {
    x[at.column * kXStride + at.row + i * kRowStep] = part.value[i];
  }
}

// kPart weights, widened.
template <WeightFormat format>
GPU_DEVICE void LoadWeights(const std::byte* from, float (&w)[kPart]) {
  if constexpr (format == WeightFormat::kF32) {
    GPU_UNROLL()
    for (int i = 0; i < kPart; i += 4) {
      const auto four = gpu::Load<float4>(from + 4 * i);
      w[i] = four.x;
      w[i + 1] = four.y;
      w[i + 2] = four.z;
      w[i + 3] = four.w;
    }
  } else {
    const auto eight = gpu::Load<uint4>(from);
    const std::uint32_t pairs[4] = {eight.x, eight.y, eight.z, eight.w};
    GPU_UNROLL()
    for (int i = 0; i < 4; ++i) {
      if constexpr (format == WeightFormat::kF16) {
        w[2 * i] = gpu::FromF16(static_cast<std::uint16_t>(pairs[i] & 0xffff));
        w[2 * i + 1] = gpu::FromF16(static_cast<std::uint16_t>(pairs[i] >> 16));
      } else {
        w[2 * i] = gpu::FloatFromBits(pairs[i] << 16);
        w[2 * i + 1] = gpu::FloatFromBits(pairs[i] & 0xffff0000u);
      }
    }
  }
}

using Sums = float[kPart][kPart];  // [weight row][row of x]

// Columns j, j + 4, ... of a stage.
template <WeightFormat format>
GPU_DEVICE void AddColumns(const std::byte* weights, const float* x, int columns, int j,
                           Sums& sums) {
  GPU_UNROLL(2)
  for (int k = j; k < columns; k += 4) {
    float w[kPart];
    LoadWeights<format>(weights + k * GroupBytes(format), w);
    const auto low = gpu::Load<float4>(x + k * kXStride);
    const auto high = gpu::Load<float4>(x + k * kXStride + 4);
    const float row[kPart] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    GPU_UNROLL()
    for (int n = 0; n < kPart; ++n) {
      GPU_UNROLL()
      for (int r = 0; r < kPart; ++r) sums[n][r] = gpu::Fma(row[r], w[n], sums[n][r]);
    }
  }
}

// One block of threads computes 4 panels x 64 rows of x. Block (x, y): rows of x from 64 x on, tile y.
// Lane (x group, half, j) of a warp: sums p_j of eight weight rows and eight rows of x.
template <WeightFormat format>
GPU_KERNEL(kThreads, 2)
FloatManyRowsKernel(const Products p) {
  GPU_DYNAMIC_SHARED(shared);
  const int thread = static_cast<int>(threadIdx.x);
  const int j = thread % 4;
  const int half = thread / 4 % 2;
  const int panel = thread / 32 % kTilePanels;
  const int first_row = thread / 128 * 32 + thread / 8 % 4 * kPart;
  const Product product = ProductOf(p, static_cast<int>(blockIdx.y));
  const int tile_panel = (static_cast<int>(blockIdx.y) - product.tile_begin) * kTilePanels;
  const Tile tile = {product.data + tile_panel * PanelBytes(format, p.cols),
                     (product.w_rows + kPanelRows - 1) / kPanelRows - tile_panel,
                     static_cast<int>(blockIdx.x) * kTileRows};

  FetchWeights<format>(p, tile, 0, thread, shared);
  gpu::CopyAsyncCommit();
  XPart part = LoadX(p, tile, 0, thread);
  Sums sums = {};
  for (int first = 0; first < p.cols; first += kStageColumns) {
    std::byte* stage = shared + first / kStageColumns % 2 * kStageBytes<format>;
    auto* x = reinterpret_cast<float*>(stage + kTilePanels * kPanelStageBytes<format>);
    StoreX(part, thread, x);
    gpu::CopyAsyncWait<0>();
    gpu::SyncThreads();
    const int next = first + kStageColumns;
    if (next < p.cols) {
      FetchWeights<format>(p, tile, next, thread,
                           shared + next / kStageColumns % 2 * kStageBytes<format>);
      part = LoadX(p, tile, next, thread);
    }
    gpu::CopyAsyncCommit();
    AddColumns<format>(stage + panel * kPanelStageBytes<format> + half * (GroupBytes(format) / 2),
                       x + first_row,
                       p.cols - first < kStageColumns ? p.cols - first : kStageColumns, j, sums);
  }
  GPU_UNROLL()
  for (int n = 0; n < kPart; ++n) {
    GPU_UNROLL()
    for (int r = 0; r < kPart; ++r) {
      // (p_0 + p_1) + (p_2 + p_3), in every lane of the four.
      float sum = sums[n][r];
      sum += gpu::ShflXor(sum, 1);
      sum += gpu::ShflXor(sum, 2);
      if (r % 4 == j) {
        WriteOutput(product, p.rows, tile.row_begin + first_row + r,
                    (tile_panel + panel) * kPanelRows + half * kPart + n, sum);
      }
    }
  }
}

template <WeightFormat format>
cudaError_t Launch(const Products& p, std::int32_t tiles, cudaStream_t stream) {
  constexpr int shared_bytes = 2 * kStageBytes<format>;
  static_assert(shared_bytes <= 48 * 1024);
  const auto kernel = FloatManyRowsKernel<format>;
  const dim3 grid(static_cast<unsigned>((p.rows + kTileRows - 1) / kTileRows),
                  static_cast<unsigned>(tiles));
  GPU_LAUNCH(kernel, grid, dim3(kThreads), shared_bytes, stream, p);
  return cudaGetLastError();
}

}  // namespace

cudaError_t FloatManyRows(Products products, cudaStream_t stream) {
  const std::int32_t tiles = CutIntoTiles(products, kTilePanels);
  return WithFloatFormat(products.format, [&](auto format) {
    return Launch<decltype(format)::value>(products, tiles, stream);
  });
}

}  // namespace penstock::kernels::linear_cuda
