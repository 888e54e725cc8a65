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

// Warp w has `panels` panels from w % 4 * panels on, and half w / 4 of the rows of x: `columns`
// groups of eight, the columns of an mma.
constexpr int kThreads = 256;
constexpr int kWarpsAcross = 4;
constexpr int kStages = 2;
constexpr int kStageBlocks = 4;  // 128 columns.
constexpr int kHalves = 2 * kStageBlocks;

template <int columns>
constexpr int kTileRows = 2 * 8 * columns;
// Bytes between half blocks of x, [kTileRows][16]: free of bank conflicts both ways.
template <int columns>
constexpr int kHalfStride = kTileRows<columns> * 16 + 16;

// A panel's part of a stage: for K formats d, dmin, the blocks' sub-scales, their levels; for the
// others whole groups.
template <WeightFormat format>
constexpr int kLevelsAt = SubScaleBegin(format) + kStageBlocks * 2 * kPanelRows;
template <WeightFormat format>
constexpr int kPanelStageBytes = IsKFormat(format)
                                     ? kLevelsAt<format> + kStageBlocks* LevelBytes(format)
                                     : kStageBlocks* GroupBytes(format);
// x's scales of a stage, [kStageBlocks][kTileRows]; with the sums beside them where they are used.
template <WeightFormat format>
constexpr bool kWithSums = KindOf(format) == ProductKind::kScaleMin;
template <WeightFormat format>
constexpr int kXScaleFloats = kWithSums<format> ? 2 : 1;
template <int panels>
constexpr int kTilePanels = kWarpsAcross* panels;
// Of ManyRowsWide.
constexpr int kWideColumns = 8;
constexpr int kWidePanelsPerWarp = 2;
static_assert(kTilePanels<kWidePanelsPerWarp> == kWidePanels);
static_assert(kTileRows<kWideColumns> == kWideRows);
template <WeightFormat format, int panels>
constexpr int kPanelsBytes = kTilePanels<panels>* kPanelStageBytes<format>;
template <WeightFormat format, int columns, int panels>
constexpr int kStageBytes = kPanelsBytes<format, panels> + kHalves* kHalfStride<columns> +
                            kStageBlocks* kTileRows<columns> * 4 * kXScaleFloats<format>;
// d and m of a panel's block, per pair of rows, as the lanes of a warp share them for K formats;
// and floats from block to block, so that eight lanes that write the pairs of four blocks meet few
// banks.
template <WeightFormat format>
constexpr int kPairFloats = KindOf(format) == ProductKind::kHalvesMin ? 8 : 4;
template <WeightFormat format>
constexpr int kPairsStride = 8 * kPairFloats<format> + 8;
template <WeightFormat format>
constexpr int kPanelPairFloats = IsKFormat(format) ? kStageBlocks* kPairsStride<format> : 4;

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

// What a block of threads computes.
struct Tile {
  Product product;
  int panel_begin;  // In the matrix.
  int row_begin;    // Of x.
};

// Where a thread fetches from: warp w brings the wth panel, every thread its half block of every
// 32nd row of x, and two blocks' scales of one row.
constexpr int kRowStep = kThreads / kHalves;
struct Feed {
  const std::byte* panel;
  const std::int8_t* x;  // Row thread / kHalves, half block thread % kHalves of the first stage.
  int rows;              // From there on.
  bool has_panel;
  const float* scales;  // Row thread / 2, block thread % 2 * 2 of the first stage; null: no row.
  const std::int32_t* sums;
};
static_assert(sizeof(Feed) == 40);  // As neighbours in shared memory, few meet in a bank.

template <WeightFormat format, int columns>
GPU_DEVICE Feed FeedOf(const Products& p, const Tile& tile, int thread) {
  const int blocks = p.cols / kQuantBlock;
  const int panel = tile.panel_begin + thread / 32;
  const int row = tile.row_begin + thread / kHalves;
  const int scale_row = tile.row_begin + thread / 2;
  const std::int64_t scale_at = std::int64_t{scale_row} * blocks + thread % 2 * 2;
  const bool has_scales = thread / 2 < kTileRows<columns> && scale_row < p.rows;
  Feed feed;
  feed.has_panel = panel * kPanelRows < tile.product.w_rows;
  feed.panel = tile.product.data + (feed.has_panel ? panel * PanelBytes(format, p.cols) : 0);
  feed.rows = p.rows - row;
  feed.x = p.q + (feed.rows > 0 ? std::size_t{1} * row * blocks * kQuantBlock : 0) +
           thread % kHalves * 16;
  feed.scales = has_scales ? p.scale + scale_at : nullptr;
  feed.sums = has_scales ? p.sum + scale_at : nullptr;
  return feed;
}

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

template <WeightFormat format, int columns, int panels>
GPU_DEVICE void FetchStage(const Feed& feed, int blocks, int first_block, int thread,
                           std::byte* stage) {
  const int count = blocks - first_block < kStageBlocks ? blocks - first_block : kStageBlocks;
  if (thread < 32 * kTilePanels<panels>) {
    FetchPanel<format>(feed.panel, feed.has_panel, first_block, count, thread % 32,
                       stage + thread / 32 * kPanelStageBytes<format>);
  }
  const int rows = thread % kHalves < 2 * count ? feed.rows : 0;
  const std::int8_t* from = feed.x + first_block * kQuantBlock;
  std::byte* to = stage + kPanelsBytes<format, panels> + thread % kHalves * kHalfStride<columns> +
                  thread / kHalves * 16;
  GPU_UNROLL()
  for (int row = 0; row < kTileRows<columns>; row += kRowStep) {
    gpu::CopyAsync16(to + row * 16, from, row < rows);
    if (row + kRowStep < rows) from += std::size_t{kRowStep} * blocks * kQuantBlock;
  }
}

// Of one row and two blocks.
struct XScales {
  float scale[2];
  float sum[2];
};

template <WeightFormat format>
GPU_DEVICE XScales LoadXScales(const Feed& feed, int blocks, int first_block, int thread) {
  XScales x = {};
  if (feed.scales == nullptr) return x;
  GPU_UNROLL()
  for (int i = 0; i < 2; ++i) {
    if (first_block + thread % 2 * 2 + i >= blocks) break;
    x.scale[i] = feed.scales[first_block + i];
    if constexpr (kWithSums<format>) x.sum[i] = static_cast<float>(feed.sums[first_block + i]);
  }
  return x;
}

template <WeightFormat format, int columns, int panels>
GPU_DEVICE float* XScalesOf(std::byte* stage) {
  return reinterpret_cast<float*>(stage + kPanelsBytes<format, panels> +
                                  kHalves * kHalfStride<columns>);
}

template <WeightFormat format, int columns>
GPU_DEVICE void StoreXScales(const XScales& x, int thread, float* scales) {
  if (thread / 2 >= kTileRows<columns>) return;
  GPU_UNROLL()
  for (int i = 0; i < 2; ++i) {
    const int at = (thread % 2 * 2 + i) * kTileRows<columns> + thread / 2;
    if constexpr (kWithSums<format>) {
      const float2 pair = {x.scale[i], x.sum[i]};
      gpu::Store(scales + 2 * at, pair);
    } else {
      scales[at] = x.scale[i];
    }
  }
}

// Decodes the scales of a panel for all blocks of a stage, lane (g, t) those of rows 2g and 2g + 1
// and block t: `pairs` is [kStageBlocks, kPairsStride apart][8][kPairFloats].
template <WeightFormat format>
GPU_DEVICE void DecodeScales(const std::byte* panel, int g, int t, float* pairs) {
  static_assert(kStageBlocks == 4);
  RowScales s;
  LoadScales<format>(StageBlock<format>(panel, t), g, s);
  float* to = pairs + t * kPairsStride<format> + g * kPairFloats<format>;
  const float4 d = {s.d[0][0], s.d[0][1], kInHalves<format> ? s.d[1][0] : s.m[0][0],
                    kInHalves<format> ? s.d[1][1] : s.m[0][1]};
  gpu::Store(to, d);
  if constexpr (KindOf(format) == ProductKind::kHalvesMin) {
    const float4 m = {s.m[0][0], s.m[0][1], s.m[1][0], s.m[1][1]};
    gpu::Store(to + 4, m);
  }
}

// As LoadScales, from what DecodeScales left for (block, g).
template <WeightFormat format>
GPU_DEVICE void LoadDecoded(const float* from, RowScales& s) {
  const auto d = gpu::Load<float4>(from);
  s.d[0][0] = d.x;
  s.d[0][1] = d.y;
  if constexpr (kInHalves<format>) {
    s.d[1][0] = d.z;
    s.d[1][1] = d.w;
  } else {
    s.m[0][0] = d.z;
    s.m[0][1] = d.w;
  }
  if constexpr (KindOf(format) == ProductKind::kHalvesMin) {
    const auto m = gpu::Load<float4>(from + 4);
    s.m[0][0] = m.x;
    s.m[0][1] = m.y;
    s.m[1][0] = m.z;
    s.m[1][1] = m.w;
  }
  SetFirstProduct<format>(s);
}

template <int columns, int panels>
using Sums = float[panels][columns][4];

template <WeightFormat format, int columns, int panels>
GPU_DEVICE void AddBlock(const std::byte* first_panel, const float* pairs, const std::byte* x,
                         const float* scales, int block, int lane, Sums<columns, panels>& sums) {
  const int g = lane / 4;
  const int t = lane % 4;
  std::uint32_t a[panels][4];
  RowScales row_scales[panels];
  GPU_UNROLL()
  for (int panel = 0; panel < panels; ++panel) {
    const BlockAt at = StageBlock<format>(first_panel + panel * kPanelStageBytes<format>, block);
    LoadLevels<format>(at.levels, g, t, a[panel]);
    if constexpr (IsKFormat(format)) {
      LoadDecoded<format>(pairs + panel * kPanelPairFloats<format> + block * kPairsStride<format> +
                              g * kPairFloats<format>,
                          row_scales[panel]);
    } else {
      LoadScales<format>(at, g, row_scales[panel]);
    }
  }
  // Two columns' operands in one load: lane i names row i % 8 of half block i / 8 % 2 of column
  // i / 16.
  const std::byte* operands =
      x + (2 * block + lane / 8 % 2) * kHalfStride<columns> + (lane / 16 * 8 + lane % 8) * 16;
  const float* scale_at = scales + (block * kTileRows<columns> + 2 * t) * kXScaleFloats<format>;
  GPU_UNROLL()
  for (int pair = 0; pair < columns; pair += 2) {
    std::uint32_t b[4];
    // Keeps the compiler from loading all columns early, for want of registers.
    if (kInHalves<format> || (panels > 1 && pair % 4 == 0)) gpu::SyncWarp();
    gpu::LoadMatrices(b, operands + pair * 128);
    GPU_UNROLL()
    for (int column = pair; column < pair + 2; ++column) {
      const std::uint32_t b0 = b[column % 2 * 2];
      const std::uint32_t b1 = b[column % 2 * 2 + 1];
      float scale[2];
      XSums x_sums = {};
      if constexpr (kWithSums<format>) {
        const auto both = gpu::Load<float4>(scale_at + 16 * column);
        scale[0] = both.x;
        scale[1] = both.z;
        x_sums.low[0] = both.y;
        x_sums.low[1] = both.w;
      } else {
        const auto both = gpu::Load<float2>(scale_at + 8 * column);
        scale[0] = both.x;
        scale[1] = both.y;
        x_sums = SumX<format>(b0, b1);
      }
      GPU_UNROLL()
      for (int panel = 0; panel < panels; ++panel) {
        LevelSums level_sums;
        Start(level_sums.low);
        Start(level_sums.high);
        AddLevels<format>(a[panel], b0, b1, level_sums);
        GPU_UNROLL()
        for (int e = 0; e < 4; ++e) {
          const float value = BlockValue<format>(level_sums, x_sums, row_scales[panel], e);
          sums[panel][column][e] = gpu::Fma(value, scale[e % 2], sums[panel][column][e]);
        }
      }
    }
  }
}

template <WeightFormat format, int columns, int panels>
GPU_DEVICE void AddStage(std::byte* stage, float* all_pairs, int count, int thread,
                         Sums<columns, panels>& sums) {
  const int lane = thread % 32;
  const int first_row = thread / 128 * 8 * columns;
  const std::byte* first_panel =
      stage + thread / 32 % kWarpsAcross * panels * kPanelStageBytes<format>;
  const std::byte* x = stage + kPanelsBytes<format, panels> + first_row * 16;
  const float* scales =
      XScalesOf<format, columns, panels>(stage) + first_row * kXScaleFloats<format>;
  float* pairs = all_pairs + thread / 32 * panels * kPanelPairFloats<format>;
  if constexpr (IsKFormat(format)) {
    GPU_UNROLL()
    for (int panel = 0; panel < panels; ++panel) {
      DecodeScales<format>(first_panel + panel * kPanelStageBytes<format>, lane / 4, lane % 4,
                           pairs + panel * kPanelPairFloats<format>);
    }
    gpu::SyncWarp();
  }
  GPU_UNROLL(1)
  for (int block = 0; block < count; ++block) {
    AddBlock<format, columns, panels>(first_panel, pairs, x, scales, block, lane, sums);
  }
}

template <int columns, int panels>
GPU_DEVICE void WriteTile(const Tile& tile, int rows, int thread,
                          const Sums<columns, panels>& sums) {
  const int row_begin = tile.row_begin + thread / 128 * 8 * columns + 2 * (thread % 4);
  GPU_UNROLL()
  for (int panel = 0; panel < panels; ++panel) {
    const int w_row =
        (tile.panel_begin + thread / 32 % kWarpsAcross * panels + panel) * kPanelRows +
        2 * (thread % 32 / 4);
    GPU_UNROLL()
    for (int column = 0; column < columns; ++column) {
      GPU_UNROLL()
      for (int e = 0; e < 4; ++e) {
        WriteOutput(tile.product, rows, row_begin + 8 * column + e % 2, w_row + e / 2,
                    sums[panel][column][e]);
      }
    }
  }
}

// One block of threads computes kTilePanels panels x kTileRows rows of x, 128 columns of the input
// at a time. Block (x, y): rows of x from x * kTileRows on, tile y.
template <WeightFormat format, int columns, int panels>
GPU_KERNEL(kThreads, 2)
ManyRowsKernel(const Products p) {
  GPU_DYNAMIC_SHARED(shared);
  GPU_SHARED(float4, all_pairs, panels * kPanelPairFloats<format> / 4 * kThreads / 32);
  const int thread = static_cast<int>(threadIdx.x);
  const int blocks = p.cols / kQuantBlock;
  GPU_SHARED(Tile, shared_tile, 1);
  Tile& tile = shared_tile[0];
  if (thread == 0) {
    tile.product = ProductOf(p, static_cast<int>(blockIdx.y));
    tile.panel_begin =
        (static_cast<int>(blockIdx.y) - tile.product.tile_begin) * kTilePanels<panels>;
    tile.row_begin = static_cast<int>(blockIdx.x) * kTileRows<columns>;
  }
  gpu::SyncThreads();
  // The sums of large tiles need the registers, so there a thread's feed lies in shared memory and
  // is read anew for each stage.
  constexpr bool kFeedInShared = panels > 1;
  GPU_SHARED(Feed, shared_feed, kFeedInShared ? kThreads : 1);
  Feed own_feed;
  Feed& feed = kFeedInShared ? shared_feed[thread] : own_feed;
  feed = FeedOf<format, columns>(p, tile, thread);

  FetchStage<format, columns, panels>(feed, blocks, 0, thread, shared);
  gpu::CopyAsyncCommit();
  XScales x_scales = LoadXScales<format>(feed, blocks, 0, thread);
  Sums<columns, panels> sums = {};
  for (int first = 0; first < blocks; first += kStageBlocks) {
    std::byte* stage =
        shared + first / kStageBlocks % kStages * kStageBytes<format, columns, panels>;
    StoreXScales<format, columns>(x_scales, thread, XScalesOf<format, columns, panels>(stage));
    gpu::CopyAsyncWait<0>();
    gpu::SyncThreads();
    const int next = first + kStageBlocks;
    if (next < blocks) {
      FetchStage<format, columns, panels>(
          feed, blocks, next, thread,
          shared + next / kStageBlocks % kStages * kStageBytes<format, columns, panels>);
      x_scales = LoadXScales<format>(feed, blocks, next, thread);
    }
    gpu::CopyAsyncCommit();
    AddStage<format, columns, panels>(stage, reinterpret_cast<float*>(all_pairs),
                                      next <= blocks ? kStageBlocks : blocks - first, thread, sums);
  }
  WriteTile<columns, panels>(tile, p.rows, thread, sums);
}

template <WeightFormat format, int columns, int panels>
cudaError_t Launch(Products p, cudaStream_t stream) {
  const std::int32_t tiles = CutIntoTiles(p, kTilePanels<panels>);
  constexpr int shared_bytes = kStages * kStageBytes<format, columns, panels>;
  const auto kernel = ManyRowsKernel<format, columns, panels>;
  if (const cudaError_t error = gpu::AllowShared(kernel, shared_bytes); error != cudaSuccess) {
    return error;
  }
  const dim3 grid(static_cast<unsigned>((p.rows + kTileRows<columns> - 1) / kTileRows<columns>),
                  static_cast<unsigned>(tiles));
  GPU_LAUNCH(kernel, grid, dim3(kThreads), shared_bytes, stream, p);
  return cudaGetLastError();
}

}  // namespace

cudaError_t ManyRows(Products products, cudaStream_t stream) {
  return WithInt8Format(products.format, [&](auto format) {
    return Launch<decltype(format)::value, 4, 1>(products, stream);
  });
}

cudaError_t ManyRowsWide(Products products, cudaStream_t stream) {
  return WithInt8Format(products.format, [&](auto format) {
    constexpr WeightFormat kFormat = decltype(format)::value;
    if constexpr (kFormat == WeightFormat::kQ2_K) {  // Large tiles do not fit the registers.
      return Launch<kFormat, 4, 1>(products, stream);
    } else {
      return Launch<kFormat, kWideColumns, kWidePanelsPerWarp>(products, stream);
    }
  });
}

}  // namespace penstock::kernels::linear_cuda
