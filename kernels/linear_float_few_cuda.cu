// SPDX-License-Identifier: Apache-2.0
// Products of a few rows of x with float weights: four sums per output, each over every fourth column
// in ascending order. One thread has one of the four.
#include "kernels/gpu.h"
//
#include "kernels/linear_cuda_blocks.h"
#include "kernels/linear_cuda_kernels.h"

namespace penstock::kernels::linear_cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kBlockRows = 8;       // Of x.
constexpr int kThreadRows = 4;      // Of x: those of one parity.
constexpr int kStageColumns = 256;  // A multiple of 4.
constexpr int kStages = 3;

template <WeightFormat format>
constexpr int kColumnBytes = GroupBytes(format);
template <WeightFormat format>
constexpr int kWeightBytes = kStageColumns* kColumnBytes<format>;
template <WeightFormat format>
constexpr int kStageBytes = kWeightBytes<format> + kBlockRows* kStageColumns * 4;

template <WeightFormat format>
GPU_DEVICE float LoadWeight(const std::byte* p) {
  if constexpr (format == WeightFormat::kF32) return gpu::Load<float>(p);
  const auto bits = gpu::Load<std::uint16_t>(p);
  if constexpr (format == WeightFormat::kF16) return gpu::FromF16(bits);
  return gpu::FloatFromBits(static_cast<std::uint32_t>(bits) << 16);
}

// Asynchronously; of x only where its rows are aligned.
template <WeightFormat format>
GPU_DEVICE void FetchStage(const Products& p, const std::byte* panel, int row_begin, int first,
                           int thread, std::byte* stage) {
  const int columns = p.cols - first < kStageColumns ? p.cols - first : kStageColumns;
  const std::byte* from = panel + std::size_t{1} * first * kColumnBytes<format>;
  for (int at = 16 * thread; at < columns * kColumnBytes<format>; at += 16 * kThreads) {
    gpu::CopyAsync16(stage + at, from + at);
  }
  auto* x = reinterpret_cast<float*>(stage + kWeightBytes<format>);
  const int rows = p.rows - row_begin < kBlockRows ? p.rows - row_begin : kBlockRows;
  const float* from_x = p.f32 + std::int64_t{row_begin} * p.cols + first;
  if (p.cols % 4 == 0) {
    for (int i = 4 * thread; i < rows * kStageColumns; i += 4 * kThreads) {
      const int column = i % kStageColumns;
      const std::int64_t at = std::int64_t{i / kStageColumns} * p.cols + column;
      if (column < columns) gpu::CopyAsync16(x + i, from_x + at);
    }
    return;
  }
  for (int i = thread; i < rows * kStageColumns; i += kThreads) {
    const int column = i % kStageColumns;
    const std::int64_t at = std::int64_t{i / kStageColumns} * p.cols + column;
    if (column < columns) x[i] = from_x[at];
  }
}

// One block of threads computes one panel for eight rows of x. Thread (half, j, n) keeps the sums p_j
// of weight row n for rows half, half + 2, ... of x. Block (x, y): panel x, rows of x from 8 y on.
template <WeightFormat format>
GPU_KERNEL(kThreads, 2)
FloatRowsKernel(const Products p) {
  GPU_DYNAMIC_SHARED(shared);
  const int thread = static_cast<int>(threadIdx.x);
  const int n = thread % kPanelRows;
  const int j = thread / kPanelRows % 4;
  const int half = thread / (kPanelRows * 4);
  const Product product = ProductOf(p, static_cast<int>(blockIdx.x));
  const int panel = static_cast<int>(blockIdx.x) - product.tile_begin;
  const std::byte* data = product.data + panel * PanelBytes(format, p.cols);
  const int row_begin = static_cast<int>(blockIdx.y) * kBlockRows;
  const int rows = p.rows - row_begin < kBlockRows ? p.rows - row_begin : kBlockRows;

  GPU_UNROLL()
  for (int stage = 0; stage < kStages - 1; ++stage) {
    if (stage * kStageColumns < p.cols) {
      FetchStage<format>(p, data, row_begin, stage * kStageColumns, thread,
                         shared + stage * kStageBytes<format>);
    }
    gpu::CopyAsyncCommit();
  }
  float sums[kThreadRows] = {};
  for (int first = 0; first < p.cols; first += kStageColumns) {
    const std::byte* stage = shared + first / kStageColumns % kStages * kStageBytes<format>;
    gpu::CopyAsyncWait<kStages - 2>();
    gpu::SyncThreads();
    const int ahead = first + (kStages - 1) * kStageColumns;
    if (ahead < p.cols) {
      FetchStage<format>(p, data, row_begin, ahead, thread,
                         shared + ahead / kStageColumns % kStages * kStageBytes<format>);
    }
    gpu::CopyAsyncCommit();
    const int columns = p.cols - first < kStageColumns ? p.cols - first : kStageColumns;
    const auto* x = reinterpret_cast<const float*>(stage + kWeightBytes<format>);
    GPU_UNROLL(4)
    for (int k = j; k < columns; k += 4) {
      const float w =
          LoadWeight<format>(stage + (k * kPanelRows + n) * (kColumnBytes<format> / kPanelRows));
      GPU_UNROLL()
      for (int i = 0; i < kThreadRows; ++i) {
        if (half + 2 * i < rows) {
          sums[i] = gpu::Fma(x[(half + 2 * i) * kStageColumns + k], w, sums[i]);
        }
      }
    }
  }
  gpu::CopyAsyncWait<0>();
  gpu::SyncThreads();
  auto* all = reinterpret_cast<float*>(shared);  // [kBlockRows][4][kPanelRows]
  GPU_UNROLL()
  for (int i = 0; i < kThreadRows; ++i) {
    all[((half + 2 * i) * 4 + j) * kPanelRows + n] = sums[i];
  }
  gpu::SyncThreads();
  const int row = thread / kPanelRows;
  const float* part = all + row * 4 * kPanelRows + n;
  const float sum = (part[0] + part[kPanelRows]) + (part[2 * kPanelRows] + part[3 * kPanelRows]);
  WriteOutput(product, p.rows, row_begin + row, panel * kPanelRows + n, sum);
}

template <WeightFormat format>
cudaError_t Launch(const Products& p, std::int32_t tiles, cudaStream_t stream) {
  constexpr int shared_bytes = kStages * kStageBytes<format>;
  const auto kernel = FloatRowsKernel<format>;
  if (const cudaError_t error = gpu::AllowShared(kernel, shared_bytes); error != cudaSuccess) {
    return error;
  }
  const dim3 grid(static_cast<unsigned>(tiles),
                  static_cast<unsigned>((p.rows + kBlockRows - 1) / kBlockRows));
  GPU_LAUNCH(kernel, grid, dim3(kThreads), shared_bytes, stream, p);
  return cudaGetLastError();
}

}  // namespace

cudaError_t FloatFewRows(Products products, cudaStream_t stream) {
  const std::int32_t tiles = CutIntoTiles(products, 1);
  return WithFloatFormat(products.format, [&](auto format) {
    return Launch<decltype(format)::value>(products, tiles, stream);
  });
}

}  // namespace penstock::kernels::linear_cuda
